"""The search against the peer's, in time and in quality, and what it costs for one target to a hundred.

The peer is the `ofa` package's `EvolutionFinder` with OFA's published accuracy predictor and the Samsung Note10 block
tables, one search per target, in the same process. `--quick` gives every part a small budget: a smoke test, whose
figures mean nothing. Needs torch, the `ofa` package and the public reference data (`FLEETNAS_DATA`); writes the
pictures of docs/search.md.

`--peer-seconds 105` takes the peer's time as given, leaves out all that needs its winners, and ends after CompOFA: a
look at one's own changes in a minute, whose figures are not to be reported.
"""

from __future__ import annotations

import io
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import Figures, parser
from resnet_table import measure
from rigs.peer import import_peer

from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.search.block_table import read_block_table
from fleetnas.coordinator.search.engine import SearchResult, search
from fleetnas.coordinator.search.evolution import EvolutionSettings
from fleetnas.coordinator.search.guided import GuidedSettings
from fleetnas.coordinator.search.latency import SlotTableLatency
from fleetnas.coordinator.search.offline import draw_fronts
from fleetnas.coordinator.search.problem import Problem
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.registry import make_space

ROOT = Path(__file__).resolve().parent.parent
TARGETS_MS = [float(ms) for ms in range(15, 61, 5)]
RESOLUTIONS = [160, 176, 192, 208, 224]
PICTURES = ROOT / "docs" / "img"
COUNTS = (1, 2, 3, 4, 5, 10)
PAPER_STRATEGIES: tuple[Strategy, ...] = (Strategy.INDEPENDENT, Strategy.BOTTOM_UP, Strategy.TOP_DOWN)
#: Rounds and islands of the guided engine: of the peer's quality, of 1 % and of 10 % of its time.
EQUAL, ONE_PERCENT, TEN_PERCENT = (8, 1), (25, 7), (20, 70)


@dataclass(frozen=True)
class Family:
    """A design space with its models."""

    name: str
    space: DesignSpace
    accuracy: AccuracyPredictor
    latency: SlotTableLatency

    def targets_ms(self, count: int) -> list[float]:
        """`count` targets evenly over most of the latencies that random subnets have."""
        if self.name == "ofa-mbv3":
            return np.linspace(15, 60, count).tolist() if count > 1 else [30.0]
        genomes = self.space.sample(2000, np.random.default_rng(0))
        low, high = np.quantile(self.latency.predict(genomes), [0.001, 0.9])
        return np.linspace(low, high, count).tolist() if count > 1 else [float(low + high) / 2]


class Peer:
    """The `ofa` package's search."""

    def __init__(self, data: Path) -> None:
        import torch

        table = import_peer("ofa.tutorial.latency_table")
        self._finder = import_peer("ofa.tutorial.evolution_finder")
        self._finder.tqdm = lambda steps, **_: steps
        accuracy = import_peer("ofa.tutorial.accuracy_predictor")
        self.accuracy = accuracy.AccuracyPredictor(pretrained=False, device="cpu")
        state = torch.load(data / "ofa_mbv3" / "acc_predictor.pth", map_location="cpu", weights_only=True)
        self.accuracy.model.load_state_dict(state)
        self.latency = table.LatencyTable.__new__(table.LatencyTable)
        self.latency.latency_tables = {}
        for resolution in RESOLUTIONS:
            # Their constructor downloads the file that lies in the data folder.
            estimator = table.LatencyEstimator.__new__(table.LatencyEstimator)
            path = data / "ofa_mbv3" / "note10_lut" / f"{resolution}_lookup_table.yaml"
            estimator.lut = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
            self.latency.latency_tables[resolution] = estimator
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - theirs
        torch.manual_seed(0)

    def search(self, target_ms: float, generations: int) -> tuple[float, float]:
        """Accuracy of the winner, and seconds."""
        finder = self._finder.EvolutionFinder(
            "note10", target_ms, self.latency, self.accuracy, max_time_budget=generations
        )
        started = time.perf_counter()
        _, winner = finder.run_evolution_search()
        return float(winner[0]), time.perf_counter() - started


def spec(architecture: Any) -> dict[str, Any]:
    """An architecture as the peer's functions take it."""
    return {
        "ks": list(architecture.ks),
        "e": [int(ratio) for ratio in architecture.e],
        "d": list(architecture.d),
        "r": [architecture.r],
    }


def timed(run: Callable[[], SearchResult]) -> tuple[SearchResult, float]:
    """A result, and seconds."""
    started = time.perf_counter()
    result = run()
    return result, time.perf_counter() - started


def accuracies(result: SearchResult) -> np.ndarray:
    return np.array([winner.accuracy for winner in result.winners])


def guided(
    family: Family, targets: Sequence[float], seed: int, effort: tuple[int, int], strategy: Strategy = Strategy.JOINT
) -> SearchResult:
    return search(
        Problem(family.space, family.accuracy, family.latency),
        targets,
        rng=np.random.default_rng(seed),
        strategy=strategy,
        engine=GuidedSettings(rounds=effort[0], islands=effort[1]),
    )


def evolved(family: Family, targets: Sequence[float], strategy: Strategy, settings: EvolutionSettings) -> SearchResult:
    return search(
        Problem(family.space, family.accuracy, family.latency),
        targets,
        rng=np.random.default_rng(0),
        strategy=strategy,
        engine=settings,
    )


def mobilenet_family(data: Path) -> Family:
    """OFA-MobileNetV3 on the Samsung Note10."""
    space = make_space("ofa-mbv3", {"width": 1.2, "resolutions": RESOLUTIONS})
    assert isinstance(space, MBConvSpace)
    predictor = AccuracyPredictor.from_pth(data / "ofa_mbv3" / "acc_predictor.pth")
    return Family("ofa-mbv3", space, predictor, read_block_table(data / "ofa_mbv3" / "note10_lut", space))


def families(data: Path, quick: bool) -> list[Family]:
    """The papers' three design spaces."""
    mobilenet = mobilenet_family(data)
    predictor = mobilenet.accuracy
    proxyless = make_space("ofa-proxyless", {"width": 1.0, "resolutions": [224]})
    assert isinstance(proxyless, MBConvSpace)
    resnet = make_space("ofa-resnet50", {"resolutions": [128] if quick else [128, 160, 192, 224]})
    return [
        mobilenet,
        Family(
            "ofa-proxyless",
            proxyless,
            borrowed_predictor(predictor, proxyless),
            read_block_table(data / "proxylessnas" / "mobile_trim.yaml", proxyless),
        ),
        Family(
            "ofa-resnet50",
            resnet,
            AccuracyPredictor.from_pth(data / "ofa_resnet50" / "acc_predictor.pth"),
            measure(resnet, 1 if quick else 5),  # type: ignore[arg-type]
        ),
    ]


def borrowed_predictor(predictor: AccuracyPredictor, space: MBConvSpace) -> AccuracyPredictor:
    """OFA publishes no predictor for ProxylessNAS: MobileNetV3's, of the first 20 blocks, stands in for it.

    Good enough to compare searches with; its accuracies are not ProxylessNAS's.
    """
    tensors = dict(predictor.tensors())
    theirs = tensors["0.weight"]
    blocks = space.block_count
    mine = np.zeros((len(theirs), 6 * blocks + len(space.resolutions)), np.float32)
    mine[:, :60] = theirs[:, :60]
    mine[:, 3 * blocks : 3 * blocks + 60] = theirs[:, 60:120]
    for column, resolution in enumerate(space.resolutions):
        mine[:, 6 * blocks + column] = theirs[:, 120 + (resolution - 112) // 16]
    return AccuracyPredictor.from_tensors({**tensors, "0.weight": mine})


def parity(figures: Figures, family: Family, peer: Peer) -> None:
    genomes = family.space.sample(1000, np.random.default_rng(0))
    specs = [spec(architecture) for architecture in family.space.decode(genomes)]
    latency = [peer.latency.predict_efficiency(one) for one in specs]
    top1 = peer.accuracy.predict_accuracy(specs).numpy()[:, 0]
    ours = family.accuracy.predict(family.space.one_hot(genomes))
    figures.add("parity_accuracy_largest_difference", float(np.abs(ours - top1).max()), "<= 1e-5")
    figures.add(
        "parity_latency_largest_difference_ms",
        float(np.abs(family.latency.predict(genomes) - latency).max()),
        "<= 1e-9",
    )


def against_the_peer(
    figures: Figures, family: Family, peer: Peer | None, quick: bool, peer_s: float | None = None
) -> float:
    """Speed at equal quality, quality at 1 % and at 10 % of the peer's time; returns the peer's seconds.

    Without a peer its time `peer_s` is given, and nothing is compared with its winners."""
    seeds = range(2 if quick else 10)
    peer_top1 = None
    if peer is not None:
        peer_runs = [peer.search(target, 5 if quick else 500) for target in TARGETS_MS]
        peer_top1 = np.array([top1 for top1, _ in peer_runs])
        peer_s = sum(seconds for _, seconds in peer_runs)
        figures.add("peer_mean_accuracy", float(peer_top1.mean()))
    assert peer_s is not None
    figures.add("peer_independent_s", peer_s)

    runs = [timed(partial(guided, family, TARGETS_MS, seed, EQUAL)) for seed in seeds]
    median_s = statistics.median(seconds for _, seconds in runs)
    worst = min(result.mean_accuracy for result, _ in runs)
    figures.add("equal_quality_median_s", median_s)
    if peer_top1 is not None:
        figures.add("equal_quality_worst_seed_gain_over_peer", worst - float(peer_top1.mean()), ">= 0")
    figures.add("speed_at_equal_quality_ratio", peer_s / median_s, "" if quick else ">= 1000")

    for name, effort, bar, share in (
        ("one_percent", ONE_PERCENT, ">= 0.8330", "<= 0.01"),
        ("ten_percent", TEN_PERCENT, ">= 0.8336", "<= 0.10"),
    ):
        effort = (2, 2) if quick else effort
        few = seeds if name == "one_percent" else seeds[:5]
        runs = [timed(partial(guided, family, TARGETS_MS, seed, effort)) for seed in few]
        figures.add(f"{name}_share_of_peer_time", statistics.median(s for _, s in runs) / peer_s, share)
        figures.add(f"{name}_mean_accuracy", statistics.median(r.mean_accuracy for r, _ in runs), "" if quick else bar)
        if peer_top1 is not None:
            least = min(float((accuracies(result) - peer_top1).min()) for result, _ in runs)
            figures.add(f"{name}_least_gain_over_peer_of_a_target", least, ">= 0")
    return peer_s


def compofa(figures: Figures, data: Path, family: Family, peer_s: float, quick: bool) -> None:
    """The exact optimum of CompOFA, and its front beside OFA's."""
    space = make_space("compofa", {"width": 1.2, "resolutions": RESOLUTIONS})
    assert isinstance(space, MBConvSpace)
    latency = read_block_table(data / "ofa_mbv3" / "note10_lut", space)

    def exhaustive() -> SearchResult:
        return search(
            Problem(space, family.accuracy, latency),
            TARGETS_MS,
            rng=np.random.default_rng(0),
            strategy=Strategy.EXHAUSTIVE,
        )

    exhaustive()
    runs = [timed(exhaustive) for _ in range(50)]  # some ms each: a moment of noise spans several
    result = runs[0][0]
    everything = space.enumerate()
    top1, ms = family.accuracy.predict(space.one_hot(everything)), latency.predict(everything)
    best = np.array([top1[ms <= target].max() for target in TARGETS_MS])
    figures.add("compofa_difference_from_brute_force", float(np.abs(best - accuracies(result)).max()), "<= 1e-7")
    figures.add("compofa_mean_accuracy", result.mean_accuracy)
    ratio = peer_s / statistics.median(s for _, s in runs)
    figures.add("compofa_speed_ratio_to_peer", ratio, "" if quick else ">= 10000")
    if not quick:
        many = np.linspace(10, 60, 51).tolist()
        fronts = {"ofa-mbv3": guided(family, many, 0, (30, 4)), "compofa": result}
        draw_fronts(fronts, PICTURES / "search_fronts.png", "Samsung Note10, OFA's accuracy predictor")


def papers_table(
    figures: Figures, every: Sequence[Family], quick: bool
) -> list[tuple[str, str, str, int, float, float]]:
    """Family, engine, strategy, targets, seconds, mean accuracy: medians over seeds."""
    rows = []
    counts = (1, 2) if quick else COUNTS
    for family in every:
        for count in counts:
            targets = family.targets_ms(count)
            for strategy in (Strategy.JOINT, *PAPER_STRATEGIES):
                runs = [timed(partial(guided, family, targets, seed, (15, 1), strategy)) for seed in range(3)]
                rows.append(_row(family, "guided", strategy, count, runs))
            if family.name != "ofa-mbv3":
                continue
            settings = EvolutionSettings(generations=5, further_generations=2) if quick else EvolutionSettings()
            for strategy in PAPER_STRATEGIES:
                run = timed(partial(evolved, family, targets, strategy, settings))
                rows.append(_row(family, "evolution", strategy, count, [run]))
    ten = {(r[0], r[1], r[2]): r for r in rows if r[3] == counts[-1]}
    for (name, engine, strategy), row in ten.items():
        if strategy in (Strategy.BOTTOM_UP, Strategy.TOP_DOWN):
            alone = ten[name, engine, Strategy.INDEPENDENT]
            key = f"{name}_{engine}_{strategy}".replace("-", "_")
            figures.add(f"{key}_speed_over_independent", alone[4] / row[4])
            figures.add(f"{key}_accuracy_over_independent", row[5] - alone[5])
    return rows


def _row(
    family: Family, engine: str, strategy: str, count: int, runs: Sequence[tuple[SearchResult, float]]
) -> tuple[str, str, str, int, float, float]:
    seconds = statistics.median(s for _, s in runs)
    return family.name, engine, strategy, count, seconds, statistics.median(r.mean_accuracy for r, _ in runs)


def many_targets(figures: Figures, family: Family, quick: bool) -> list[tuple[int, float]]:
    """Seconds for 1 to 100 targets."""
    found = []
    for count in (1, 10) if quick else (1, 2, 5, 10, 20, 50, 100):
        targets = np.linspace(15, 60, count).tolist() if count > 1 else [60.0]
        runs = [timed(partial(guided, family, targets, seed, (15, 1))) for seed in range(3)]
        found.append((count, statistics.median(s for _, s in runs)))
    counts, seconds = np.log(np.array(found)).T
    figures.add("cost_exponent_in_targets", float(np.polyfit(counts, seconds, 1)[0]), "<= 1")
    last = found[-1]
    figures.add("cost_of_most_targets_over_linear", last[1] / (last[0] * found[0][1]), "<= 1")
    return found


def draw(rows: Sequence[tuple[str, str, str, int, float, float]], costs: Sequence[tuple[int, float]]) -> None:
    """The papers' comparison, and the cost of targets."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row[0] for row in rows))
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False, sharex=True)
    for column, name in enumerate(names):
        for strategy in (Strategy.JOINT, *PAPER_STRATEGIES):
            chosen = [row for row in rows if row[0] == name and row[1] == "guided" and row[2] == strategy]
            axes[0, column].plot([r[3] for r in chosen], [r[4] for r in chosen], "o-", markersize=3, label=strategy)
            axes[1, column].plot([r[3] for r in chosen], [100 * r[5] for r in chosen], "o-", markersize=3)
        axes[0, column].set_title(name, loc="left", fontsize=10)
        axes[0, column].set_yscale("log")
        axes[1, column].set_xlabel("latency targets")
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("mean predicted top-1, %")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(PICTURES / "search_strategies.png", dpi=150)

    figure = Figure(figsize=(6, 4), layout="constrained")
    one = figure.subplots()
    counts, seconds = zip(*costs, strict=True)
    one.loglog(counts, seconds, "o-", label="joint search")
    one.loglog(counts, [count * seconds[0] for count in counts], "--", color="grey", label="linear")
    one.set_xlabel("latency targets")
    one.set_ylabel("seconds")
    one.legend(frameon=False)
    figure.savefig(PICTURES / "search_targets.png", dpi=150)


def print_table(rows: Sequence[tuple[str, str, str, int, float, float]]) -> None:
    """The papers' table as docs/search.md has it: a line per space, engine and strategy, a column per target count."""
    counts = sorted({row[3] for row in rows})
    print(f"| space | engine | strategy | {' | '.join(map(str, counts))} |\n|---|---|---|{'---|' * len(counts)}")
    lines: dict[tuple[str, str, str], list[str]] = {}
    for name, engine, strategy, _, seconds, top1 in sorted(rows, key=lambda row: row[3]):
        lines.setdefault((name, engine, strategy), []).append(f"{seconds:.3g} s, {100 * top1:.2f}")
    order = list(dict.fromkeys(row[:3] for row in rows))
    for key in sorted(lines, key=lambda key: ([row[0] for row in order].index(key[0]), key[1] != "guided")):
        print(f"| {' | '.join(key)} | {' | '.join(lines[key])} |")


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="a smoke test")
    arguments.add_argument("--peer-seconds", type=float, metavar="S", help="take the peer's time as S: a quick look")
    chosen = arguments.parse_args()
    data = Path(os.environ.get("FLEETNAS_DATA", ROOT.parent / "shared" / "data"))
    figures = Figures()
    if chosen.peer_seconds is not None:
        mobilenet = mobilenet_family(data)
        guided(mobilenet, TARGETS_MS, 99, EQUAL)
        against_the_peer(figures, mobilenet, None, chosen.quick, chosen.peer_seconds)
        compofa(figures, data, mobilenet, chosen.peer_seconds, chosen.quick)
        return figures.report(as_json=chosen.json)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        peer = Peer(data)
    every = families(data, chosen.quick)
    mobilenet = every[0]
    guided(mobilenet, TARGETS_MS, 99, EQUAL)  # loads what is loaded once
    parity(figures, mobilenet, peer)
    peer_s = against_the_peer(figures, mobilenet, peer, chosen.quick)
    compofa(figures, data, mobilenet, peer_s, chosen.quick)
    rows = papers_table(figures, every, chosen.quick)
    costs = many_targets(figures, mobilenet, chosen.quick)
    if not chosen.quick:
        PICTURES.mkdir(parents=True, exist_ok=True)
        draw(rows, costs)
    if not chosen.json:
        print_table(rows)
    return figures.report(as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
