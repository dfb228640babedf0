"""Two ways to train a supernet: CompOFA's compound schedule on half the budget of OFA's progressive shrinking.

Both train in the one trainer, from the same seeds, on the built-in digits or on textures, for several budgets. Then
the same compound subnets of both (depth and expand ratio tied per stage, one kernel size: all there are at three
resolutions of the digits or two of the textures) are batch-norm-calibrated and run on the test images, and of
progressive shrinking also subnets drawn from its own, larger space. Two runs at a time, one thread each. Needs torch,
and for textures scikit-image where `--data` names no folder of images; draws `docs/img/training_fronts.png`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from figures import Figures, parser
from training_fronts import GAP_BAR, Comparison, at, common_grid, draw, gap, table
from training_runs import (
    IMAGE_SETS,
    LEAST_BUDGET,
    SCHEDULES,
    Key,
    Run,
    keep_run,
    read_runs,
    textures_folder,
    train_all,
)

from fleetnas.fleet_protocol.errors import FleetnasError

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "img" / "training_fronts.png"
TEXTURES = ROOT / "build" / "textures"
#: Accuracy in percent that guessing has, from which hypervolume counts.
CHANCE = {"digits": 10.0, "textures": 12.5}
RATIO_BAR = "<= 0.55"


def add_figures(figures: Figures, comparison: Comparison, *, longest: bool) -> None:
    """Add the figures of one data set and budget, medians over the seeds; the front has a bar at the longest budget."""
    prefix = f"{comparison.images}_budget_{comparison.budget}_"
    figures.add(f"{prefix}epochs_ratio", comparison.ratio("epochs"))
    figures.add(f"{prefix}sample_steps_ratio", comparison.ratio("sample_steps"), RATIO_BAR)
    figures.add(f"{prefix}cpu_seconds_ratio", comparison.ratio("cpu_s"), RATIO_BAR)
    figures.add(f"{prefix}wall_seconds_ratio", comparison.ratio("wall_s"))
    gaps = comparison.gaps
    figures.add(f"{prefix}front_gap_points", statistics.median(gaps), f">= {GAP_BAR}" if longest else "")
    figures.add(f"{prefix}front_gap_points_worst_seed", min(gaps))
    figures.add(f"{prefix}front_gap_points_best_seed", max(gaps))
    # The front that a search of OFA's own space would find holds compound subnets as well.
    own = [gap(c.compound, [*p.compound, *p.own]) for c, p in comparison.pairs]
    figures.add(f"{prefix}front_gap_to_own_space_points", statistics.median(own))
    ratios = [hypervolume_ratio(c, p, CHANCE[comparison.images]) for c, p in comparison.pairs]
    figures.add(f"{prefix}hypervolume_ratio", statistics.median(ratios))


def hypervolume_ratio(ours: Run, other: Run, chance: float) -> float:
    """Return the ratio of the areas under two fronts over the logarithm of MACs, above chance."""
    grid = common_grid(ours.compound, other.compound)
    areas = [float((at(grid, run.compound) - chance).mean()) for run in (ours, other)]
    return areas[0] / areas[1]


def comparisons_of(runs: Mapping[Key, Run], images: str, budgets: Sequence[int], seeds: int) -> list[Comparison] | None:
    """Return the comparison at each budget, from short to long; None where a run is missing."""

    def of(schedule: str, budget: int) -> tuple[Run, ...]:
        return tuple(runs[images, schedule, budget, seed] for seed in range(seeds))

    try:
        return [Comparison(images, budget, of("compound", budget), of("progressive", budget)) for budget in budgets]
    except KeyError:
        return None


def numbers(text: str) -> tuple[int, ...]:
    """Read budgets such as `3,8,16`, ascending."""
    found = sorted({int(part) for part in text.split(",")})
    if found[0] < LEAST_BUDGET:
        raise argparse.ArgumentTypeError(f"a budget is {LEAST_BUDGET} epochs or more, found {found[0]}")
    return tuple(found)


def options() -> argparse.Namespace:
    """Read the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", nargs="+", choices=IMAGE_SETS, default=["digits"], help="default: digits")
    arguments.add_argument("--data", type=Path, help="folder of textures with train and test (default: they are made)")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument(
        "--budgets",
        type=numbers,
        default=(3, 8, 16),
        help="lengths of each schedule: epochs of progressive shrinking's full phases (default: 3,8,16)",
    )
    arguments.add_argument(
        "--runs",
        type=Path,
        help="file of the trained runs, a line each: those in it are not trained again, and the picture also shows "
        "another data set that is complete in it",
    )
    arguments.add_argument("--picture", type=Path, default=PICTURE)
    given = arguments.parse_args()
    if given.seeds < 1:
        arguments.error("--seeds must be 1 or more")
    return given


def train_missing(given: argparse.Namespace, runs: dict[Key, Run]) -> None:
    """Train what is asked and not there yet, the longest first within each data set and seed."""
    missing = [
        key
        for images in given.images
        for seed in range(given.seeds)
        for budget in sorted(given.budgets, reverse=True)
        for schedule in SCHEDULES
        if (key := (images, schedule, budget, seed)) not in runs
    ]
    data = None
    if any(images == "textures" for images, *_ in missing):
        data = textures_folder(given.data, TEXTURES)
    started = time.monotonic()
    for count, run in enumerate(train_all(missing, data), 1):
        keep_run(given.runs, run)
        runs[run.key] = run
        print(
            f"{count} of {len(missing)}, {(time.monotonic() - started) / 60:.0f} min: {run.images}, {run.schedule}, "
            f"budget {run.budget}, seed {run.seed}: {run.cpu_s:.0f} CPU s of training",
            file=sys.stderr,
            flush=True,
        )


def main() -> int:
    """Run the benchmark."""
    given = options()
    try:
        runs = read_runs(given.runs)
        train_missing(given, runs)
    except FleetnasError as error:
        sys.exit(str(error))
    complete = {
        images: found
        for images in IMAGE_SETS
        if (found := comparisons_of(runs, images, given.budgets, given.seeds)) is not None
    }
    draw(list(complete.values()), given.picture)
    figures = Figures()
    for images in given.images:
        for comparison in complete[images]:
            add_figures(figures, comparison, longest=comparison.budget == max(given.budgets))
        if not given.json:
            every = [run for comparison in complete[images] for pair in comparison.pairs for run in pair]
            print(f"{images}\n\n{table(every)}", end="\n\n")
    return figures.report(as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
