"""Two ways to train the digits supernet: CompOFA's compound schedule on half the budget of OFA's progressive shrinking.

Both train in the one trainer, from the same seeds; then the same compound subnets of both (depth and expand ratio
tied per stage, one kernel size, three resolutions: all there are) are batch-norm-calibrated and run on the test
digits, and of progressive shrinking also subnets drawn from its own, larger space. Two runs at a time, one thread
each. Needs torch; draws `docs/img/training_fronts.png`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figures, parser
from numpy.typing import NDArray

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.digits.data import load_digits, preprocess
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from fleetnas.supernet_export.training.schedule import Phase

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "img" / "training_fronts.png"
SPACE = DigitsSpace(resolutions=(8, 12, 16))
FIXED_KERNEL = 5
#: Subnets of progressive shrinking's own space, from its smallest to its largest.
OWN_COUNT = 40
GRID_POINTS = 50
#: Accuracy in percent that guessing has, from which hypervolume counts.
CHANCE = 10.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One trained supernet: what it took, and its subnets as (MACs, test accuracy in percent)."""

    schedule: str
    seed: int
    epochs: int
    sample_steps: int  #: images times subnets that passed forward and backward
    wall_s: float
    cpu_s: float
    compound: list[tuple[int, float]]
    own: list[tuple[int, float]]


def phases(schedule: str, epochs: int) -> tuple[Phase, ...]:
    """`epochs` is the length of progressive shrinking's long phases."""
    from fleetnas.supernet_export.training.published_schedules import published_schedule

    return published_schedule("progressive-shrinking" if schedule == "progressive" else "compound", SPACE, epochs)


def compound_subnets() -> list[Architecture]:
    """Every compound subnet with the fixed kernel, at every resolution."""
    tied = dict(zip(SPACE.depths, SPACE.expands, strict=True))
    stage_of = [block.stage for block in SPACE.block_list]
    return [
        Architecture(ks=(FIXED_KERNEL,) * len(stage_of), e=tuple(tied[depth[s]] for s in stage_of), d=depth, r=side)
        for side in SPACE.resolutions
        for depth in itertools.product(SPACE.depths, repeat=SPACE.stage_count)
    ]


def train(schedule: str, seed: int, epochs: int) -> Run:
    """Train one supernet and evaluate its subnets; runs in a process of its own."""
    from fleetnas.supernet_export.training.accuracy import stratified_genomes
    from fleetnas.supernet_export.training.digits import RECIPE, train_digits
    from fleetnas.supernet_export.training.trainer import calibrated_logits

    chosen, recipe = phases(schedule, epochs), dataclasses.replace(RECIPE, resolutions=SPACE.resolutions, seed=seed)
    wall, cpu = time.perf_counter(), time.process_time()
    net = train_digits(chosen, lambda progress: None, recipe=recipe)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu

    digits = load_digits()
    seen = {
        side: (preprocess(digits.calibration.images, side), preprocess(digits.test.images, side))
        for side in SPACE.resolutions
    }

    def evaluate(subnets: list[Architecture]) -> list[tuple[int, float]]:
        macs = SPACE.macs(SPACE.encode(subnets))
        right = [
            calibrated_logits(net, subnet, *seen[subnet.r]).argmax(axis=1) == digits.test.labels for subnet in subnets
        ]
        return [(int(count), 100 * float(hits.mean())) for count, hits in zip(macs, right, strict=True)]

    own = SPACE.decode(stratified_genomes(SPACE, OWN_COUNT, np.random.default_rng(0)))
    return Run(
        schedule=schedule,
        seed=seed,
        epochs=sum(phase.epochs for phase in chosen),
        sample_steps=len(digits.train) * sum(phase.epochs * (1 + phase.random_subnets) for phase in chosen),
        wall_s=wall,
        cpu_s=cpu,
        compound=evaluate(compound_subnets()),
        own=evaluate(own) if schedule == "progressive" else [],
    )


def train_all(seeds: int, epochs: int) -> Iterator[Run]:
    """All runs as they end, two at a time."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        waiting = [
            pool.submit(train, schedule, seed, epochs)
            for seed in range(seeds)
            for schedule in ("progressive", "compound")
        ]
        for done in as_completed(waiting):
            yield done.result()


def front(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The points that no other beats in both MACs and accuracy, by MACs."""
    kept: list[tuple[int, float]] = []
    for macs, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((macs, accuracy))
    return kept


def at(grid: Floats, points: list[tuple[int, float]]) -> Floats:
    """Best accuracy in percent within each number of MACs of the grid."""
    macs, accuracy = np.array(front(points)).T
    best: Floats = accuracy[np.searchsorted(macs, grid, side="right") - 1]
    return best


def common_grid(*fronts: list[tuple[int, float]]) -> Floats:
    """MACs, evenly spaced in their logarithm, from where all have a subnet to the largest subnet of all."""
    low = max(min(macs for macs, _ in points) for points in fronts)
    high = max(macs for points in fronts for macs, _ in points)
    grid: Floats = np.ceil(np.geomspace(low, high, GRID_POINTS))
    return grid


def gap(ours: list[tuple[int, float]], others: list[tuple[int, float]]) -> float:
    """Mean over the grid of ours less the others, in percentage points."""
    grid = common_grid(ours, others)
    return float((at(grid, ours) - at(grid, others)).mean())


def hypervolume(points: list[tuple[int, float]], grid: Floats) -> float:
    """Area under the front over the logarithm of MACs, above chance."""
    return float((at(grid, points) - CHANCE).mean())


def compare(compound: list[Run], progressive: list[Run]) -> Figures:
    """The figures, medians over the seeds."""
    pairs = list(zip(compound, progressive, strict=True))
    figures = Figures()

    def median(name: str, values: list[float], bar: str = "") -> None:
        figures.add(name, statistics.median(values), bar)

    median("budget_epochs_ratio", [c.epochs / p.epochs for c, p in pairs])
    median("budget_sample_steps_ratio", [c.sample_steps / p.sample_steps for c, p in pairs], "<= 0.55")
    median("budget_cpu_seconds_ratio", [c.cpu_s / p.cpu_s for c, p in pairs], "<= 0.55")
    median("budget_wall_seconds_ratio", [c.wall_s / p.wall_s for c, p in pairs])
    gaps = [gap(c.compound, p.compound) for c, p in pairs]
    median("front_gap_points", gaps, ">= -0.5")
    figures.add("front_gap_points_worst_seed", min(gaps))
    figures.add("front_gap_points_best_seed", max(gaps))
    # The front that a search of OFA's own space would find holds compound subnets as well.
    median("front_gap_to_own_space_points", [gap(c.compound, p.compound + p.own) for c, p in pairs])
    ratios = []
    for c, p in pairs:
        grid = common_grid(c.compound, p.compound)
        ratios.append(hypervolume(c.compound, grid) / hypervolume(p.compound, grid))
    median("hypervolume_ratio", ratios)
    return figures


def table(runs: list[Run]) -> str:
    """Budgets and fronts in Markdown, a row for each run; the last columns are best accuracies within MACs."""
    limits = (0.5e6, 1e6, 2e6, 3e6, 5.5e6)
    columns = ["schedule", "seed", "epochs", "sample-steps", "CPU s", "wall s", *(f"{x / 1e6:g} M" for x in limits)]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for run in runs:
        best = at(np.array(limits), run.compound)
        cells: list[Any] = [run.schedule, run.seed, run.epochs, f"{run.sample_steps:,}"]
        cells += [f"{run.cpu_s:.0f}", f"{run.wall_s:.0f}", *(f"{accuracy:.1f}" for accuracy in best)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def draw(runs: list[Run]) -> None:
    """Fronts beside budgets."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"progressive": "tab:blue", "compound": "tab:orange"}
    names = {"progressive": "progressive shrinking (OFA)", "compound": "compound (CompOFA)"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(2.2, 1))
    grid = common_grid(*(run.compound for run in runs))
    for schedule, colour in colours.items():
        chosen = [run for run in runs if run.schedule == schedule]
        fronts = np.array([at(grid, run.compound) for run in chosen])
        left.fill_between(grid / 1e6, fronts.min(0), fronts.max(0), step="post", color=colour, alpha=0.2, lw=0)
        left.step(grid / 1e6, np.median(fronts, 0), where="post", color=colour, lw=2, label=names[schedule])
        macs, accuracy = np.array([point for run in chosen for point in run.compound]).T
        left.scatter(macs / 1e6, accuracy, color=colour, s=6, alpha=0.35, lw=0)
    left.set_xscale("log")
    ticks = (0.5, 1, 2, 4)
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.set_xticks([], minor=True)
    left.set_ylim(bottom=min(at(grid, run.compound).min() for run in runs) - 2, top=100.3)
    left.set_xlabel("million MACs")
    left.set_ylabel("accuracy on the 600 test digits, %")
    left.set_title("fronts: median and range of the seeds; dots are subnets", fontsize=10)
    left.legend(loc="lower right")
    left.grid(alpha=0.3)
    measures: dict[str, Callable[[Run], float]] = {
        "epochs": lambda run: run.epochs,
        "sample steps": lambda run: run.sample_steps,
        "CPU seconds": lambda run: run.cpu_s,
    }
    base = {
        name: statistics.median(measure(run) for run in runs if run.schedule == "progressive")
        for name, measure in measures.items()
    }
    for offset, (schedule, colour) in zip((-0.2, 0.2), colours.items(), strict=True):
        heights = [
            100 * statistics.median(measure(run) for run in runs if run.schedule == schedule) / base[name]
            for name, measure in measures.items()
        ]
        bars = right.bar(np.arange(len(measures)) + offset, heights, 0.4, color=colour)
        right.bar_label(bars, fmt="%.0f", fontsize=9)
    right.set_xticks(range(len(measures)), [name.replace(" ", "\n") for name in measures])
    right.set_ylim(0, 112)
    right.set_ylabel("% of progressive shrinking")
    right.set_title("training budget", fontsize=10)
    figure.tight_layout()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--epochs", type=int, default=8, help="of each long phase of progressive shrinking")
    arguments.add_argument(
        "--runs",
        type=Path,
        help="file of the trained runs, a line each: read where it exists, written where it does not",
    )
    given = arguments.parse_args()
    if given.runs is not None and given.runs.exists():
        runs = [Run(**json.loads(line)) for line in given.runs.read_text().splitlines()]
    else:
        runs = []
        for run in train_all(given.seeds, given.epochs):
            print(f"trained {run.schedule}, seed {run.seed}: {run.wall_s:.0f} s", file=sys.stderr, flush=True)
            runs.append(run)
            if given.runs is not None:
                with given.runs.open("a") as file:
                    file.write(json.dumps(dataclasses.asdict(run)) + "\n")
    runs.sort(key=lambda run: (run.schedule, run.seed))
    figures = compare(
        [run for run in runs if run.schedule == "compound"], [run for run in runs if run.schedule == "progressive"]
    )
    draw(runs)
    if not given.json:
        print(table(runs), end="\n\n")
    return figures.report(as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
