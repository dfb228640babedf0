"""Campaigns on simulated devices that something slows down, beside the same campaigns on quiet ones.

Everything but the devices is the product's: coordinator, search, and the agent's measuring on a virtual clock. The
true latencies are known, so every statement of a campaign can be compared with them. Per design space and profile
(tests/rigs/disturbances.py defines them) every seed is searched twice: with `auto:4`, and with six explicit
targets at the profile's long-run slow-down, of which the first is below the fastest subnet and the last above the
largest. benchmarks/README.md explains the figures.

`ofa-mbv3` needs OFA's published accuracy predictor (`ofa_mbv3/acc_predictor.pth` under `FLEETNAS_DATA`); `digits` takes
the one that ships. The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import gc
import itertools
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import Figures, parser
from rigs.disturbances import PROFILES, Disturbance, disturbance, long_run_slowdown, sensitivity
from rigs.disturbed_device import DisturbedAgent, DisturbedDevice, SimulatedBench, TrueLatency
from rigs.simulated_fleet import Simulation, StandInModels

from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.search.engine import search
from fleetnas.coordinator.search.latency import SlotTableLatency
from fleetnas.coordinator.search.problem import PredictedAccuracy, Problem
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.digits.accuracy import load_predictor
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes
from fleetnas.supernet_export.spaces.registry import make_space

Floats = NDArray[np.float64]

DATA = Path(os.environ.get("FLEETNAS_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
SPACES = ("digits", "ofa-mbv3")
AUTOMATIC = 4
#: Explicit targets between the fastest subnet and the slowest useful one.
_BETWEEN = 4
#: Generations of the search in a campaign. Its default, 40, takes three times as long and finds hardly better subnets.
_ROUNDS = 6
#: A subnet within this of the best accuracy is as good (a fraction).
_SAME_ACCURACY = 0.001
_PROBES, _RANDOM_SUBNETS = 24, 200
#: From one look of the coordinator at its agents to the next, seconds.
_TICK_S = 0.05
_MOST_TICKS = 20_000


@dataclass(frozen=True)
class Family:
    """A design space with its accuracy predictor."""

    name: str
    space: DesignSpace
    accuracy: PredictedAccuracy


@cache
def family(name: str) -> Family:
    """One of `SPACES`."""
    if name == "digits":
        space, predictor = make_space(name, {}), load_predictor()
    else:
        space = make_space(name, {"width": 1.2, "resolutions": [160, 176, 192, 208, 224]})
        predictor = AccuracyPredictor.from_pth(DATA / "ofa_mbv3" / "acc_predictor.pth")
    return Family(name, space, PredictedAccuracy(space, predictor))


class Truth:
    """True latencies of a device's subnets that are worth having, fastest first."""

    def __init__(self, of: Family, seed: int) -> None:
        self.space, self.latency = of.space, TrueLatency(of.space, seed)
        smallest, largest = of.space.smallest(), of.space.largest()
        table = SlotTableLatency(of.space, *self.latency.features.slot_tables(self.latency.weights))
        fastest_ms, largest_ms = table.predict(np.concatenate([smallest, largest]))
        coarse = self._front(of, table, float(fastest_ms), float(largest_ms), seed)
        # Once more where accuracy rises with latency, and nowhere else.
        top1 = np.asarray(of.accuracy.predict(coarse), dtype=np.float64)
        useful_ms = float(table.predict(coarse[top1 >= top1.max() - _SAME_ACCURACY]).min())
        front = np.concatenate([coarse, self._front(of, table, float(fastest_ms), 1.1 * useful_ms, seed)])
        near = of.space.mutate(np.repeat(smallest, 400, axis=0), 1.5 / of.space.gene_count, np.random.default_rng(seed))
        #: Subnets (n, G) with their milliseconds at undisturbed speed and their predicted accuracy, (n,) each.
        self.genomes: Genomes = np.unique(np.concatenate([smallest, largest, near, front]), axis=0)
        self.ms: Floats = self.latency.predict(self.genomes)
        self.top1: Floats = np.asarray(of.accuracy.predict(self.genomes), dtype=np.float64)
        self.sensitivity = sensitivity(of.space, self.genomes)
        self.worst_top1 = float(of.accuracy.predict(smallest)[0])
        useful = self.top1 >= self.top1.max() - _SAME_ACCURACY
        self._slowest_useful = int(np.flatnonzero(useful)[np.argmin(self.ms[useful])])
        self._largest = int(np.flatnonzero((self.genomes == largest).all(axis=1))[0])

    @staticmethod
    def _front(of: Family, table: SlotTableLatency, fastest_ms: float, slowest_ms: float, seed: int) -> Genomes:
        """Pareto front of a thorough search between two latencies, (n, G)."""
        probes = np.geomspace(1.02 * fastest_ms, slowest_ms, _PROBES).tolist()
        return search(Problem(of.space, of.accuracy, table), probes, rng=np.random.default_rng(seed)).front_genomes

    def fastest_ms(self, slowdown: Floats) -> float:
        """The fastest subnet's milliseconds, given each subnet's slow-down, (n,)."""
        return float((self.ms * slowdown).min())

    def range(self, slowdown: Floats) -> float:
        """From the fastest subnet to the slowest one that gains accuracy, in the logarithm."""
        slowest_ms = self.ms[self._slowest_useful] * slowdown[self._slowest_useful]
        return float(np.log(slowest_ms / self.fastest_ms(slowdown)))

    def targets_ms(self, profile: str) -> list[float]:
        """Explicit targets, ascending, that are equally hard under every profile.

        The best subnet for a target of the quiet device takes the same share of the profile's target, at the profile's
        long-run slow-down. The first target is below the fastest subnet, the last above the largest.
        """
        fastest_ms, useful_ms = float(self.ms.min()), float(self.ms[self._slowest_useful])
        slowdown = long_run_slowdown(profile, self.sensitivity)
        found = [0.85 * self.fastest_ms(slowdown)]
        for target_ms in np.geomspace(1.2 * fastest_ms, 0.95 * useful_ms, _BETWEEN):
            best = int(np.argmax(np.where(self.ms <= target_ms, self.top1, -np.inf)))
            found.append(float(target_ms * slowdown[best]))
        found.append(float(1.25 * self.ms[self._largest] * slowdown[self._largest]))
        return [float(f"{target_ms:.5g}") for target_ms in found]


@dataclass(frozen=True)
class Target:
    """How a target ended. `true_ms` is what its winner takes at the typical slow-down while the campaign ran."""

    target_ms: float
    status: str
    feasible: bool
    """Whether some subnet meets it at the typical slow-down while the campaign ran."""
    reachable: bool
    """Whether it is feasible, and at the profile's long-run slow-down too: a device may have become slower for good."""
    best_top1: float
    """Of the most accurate subnet known that meets it at that slow-down; the smallest subnet's where none does."""
    top1: float | None = None
    true_ms: float | None = None
    verified_ms: float | None = None
    constrains: bool = True
    reason: str = ""

    @property
    def met(self) -> bool:
        return self.status == "met"


@dataclass(frozen=True)
class Row:
    """One campaign."""

    space: str
    seed: int
    profile: str
    automatic: bool
    status: str
    reason: str
    targets: tuple[Target, ...]
    measurements: int
    seconds: float
    """Virtual."""
    busy_s: float
    subject_share: float
    predictor_error: float
    span_percent: float | None
    worst_top1: float = field(repr=False)
    """Accuracy of the smallest subnet: what a target without a winner counts as."""

    def top1(self, target: Target) -> float:
        return self.worst_top1 if target.top1 is None or not target.met else target.top1

    @property
    def mean_top1(self) -> float:
        """Over the targets that some subnet meets."""
        feasible = [self.top1(target) for target in self.targets if target.feasible]
        return float(np.mean(feasible)) if feasible else self.worst_top1


def campaign(of: Family, truth: Truth, design: InitialDesign, seed: int, profile: str, *, automatic: bool) -> Row:
    """Run one campaign to its end, and compare its statements with the truth."""
    targets = truth.targets_ms(profile)
    plan = CampaignPlan(
        targets=f"auto:{AUTOMATIC}" if automatic else ",".join(f"{target:.6g}" for target in targets), seed=seed
    )
    simulation = Simulation(
        plan,
        space=of.space,
        accuracy=of.accuracy,
        search_rounds=_ROUNDS,
        design=design,
        models=StandInModels(of.space, of.accuracy),
        checked=False,
    )
    course = disturbance(profile, seed)
    device = DisturbedDevice(of.space, seed, course, simulation.clock)
    agent = simulation.take_in(DisturbedAgent(simulation.broker, "device", simulation.clock, seconds_per_task=0.0))
    agent.bench = bench = SimulatedBench(device)
    simulation.begin()
    for _ in range(_MOST_TICKS):
        if simulation.campaign.finished:
            break
        simulation.step(_TICK_S)
    (setting_run,) = simulation.campaign.setting_runs.values()
    end_s = simulation.clock.now_s - device.begin_s
    slowdown = course.typical(truth.sensitivity, 0.0, end_s)
    lasting_ms = truth.fastest_ms(long_run_slowdown(profile, truth.sensitivity))
    ended = tuple(_target(truth, state, course, end_s, lasting_ms) for state in setting_run.search.targets)
    span = None
    if automatic:
        resolved = [target.target_ms for target in ended]
        span = 100.0 * float(np.log(max(resolved) / min(resolved))) / truth.range(slowdown) if resolved else 0.0
    return Row(
        space=of.name,
        seed=seed,
        profile=profile,
        automatic=automatic,
        status=setting_run.status,
        reason=setting_run.reason,
        targets=ended,
        measurements=len(agent.measured),
        seconds=end_s,
        busy_s=bench.busy_s,
        subject_share=bench.subject_s / max(bench.busy_s, 1e-9),
        predictor_error=predictor_error(of.space, truth, setting_run.search),
        span_percent=span,
        worst_top1=truth.worst_top1,
    )


def _target(truth: Truth, state: TargetState, course: Disturbance, end_s: float, lasting_ms: float) -> Target:
    """How a target ended; `lasting_ms` is the fastest subnet's latency in the long run."""
    typical_ms = truth.ms * course.typical(truth.sensitivity, 0.0, end_s)
    within = typical_ms <= state.target_ms
    best = float(truth.top1[within].max()) if within.any() else truth.worst_top1
    feasible = bool(within.any())
    reachable = feasible and lasting_ms <= state.target_ms
    ended = partial(Target, state.target_ms, state.status, feasible, reachable, best, reason=state.reason)
    if state.status != "met" or state.genome is None:
        return ended()
    genome = state.genome[None]
    slowdown = float(course.typical(sensitivity(truth.space, genome), 0.0, end_s)[0])
    return ended(
        top1=state.accuracy,
        true_ms=float(truth.latency.predict(genome)[0]) * slowdown,
        verified_ms=state.verified_ms,
        constrains=state.target_ms < typical_ms.max(),
    )


def predictor_error(space: DesignSpace, truth: Truth, found: DeviceTuner) -> float:
    """Median relative error of the final predictor on random subnets; a factor that is common to all is no error."""
    genomes = space.sample(_RANDOM_SUBNETS, np.random.default_rng(12))
    ratio = np.log(found.predict(genomes)[0] / truth.latency.predict(genomes))
    return float(np.median(np.abs(np.expm1(ratio - np.median(ratio)))))


def run_seed(profiles: Sequence[str], job: tuple[str, int]) -> list[Row]:
    """All campaigns of one space and seed."""
    name, seed = job
    of = family(name)
    # The agent collects garbage before every measurement: of the campaign's objects alone, or it would take an hour.
    gc.collect()
    gc.freeze()
    logging.getLogger("fleetnas").setLevel(logging.ERROR)  # the agent says every new regime
    with single_threaded_blas():
        truth = Truth(of, seed)
        plan = CampaignPlan(targets=f"auto:{AUTOMATIC}")
        design = InitialDesign(of.space, count=min(plan.initial_design, plan.budget), seed=seed)
        return [
            campaign(of, truth, design, seed, profile, automatic=automatic)
            for profile in profiles
            for automatic in (True, False)
        ]


# -- figures ---------------------------------------------------------------------------------------------------


def add_figures(figures: Figures, rows: Sequence[Row], quiet: Sequence[Row], prefix: str) -> None:
    """Figures of one space under one profile, beside the quiet campaigns of the same seeds."""
    automatic = [(row, still) for row, still in zip(rows, quiet, strict=True) if row.automatic]
    explicit = [(row, still) for row, still in zip(rows, quiet, strict=True) if not row.automatic]
    targets = [target for row in rows for target in row.targets]
    met = [target for target in targets if target.met and target.true_ms is not None]

    def add(name: str, value: float, bar: str = "") -> None:
        figures.add(f"{prefix}_{name}", value, bar)

    disturbed = rows is not quiet
    if disturbed:
        loss = [still.mean_top1 - row.mean_top1 for row, still in automatic]
        add("top1_loss_points_auto", 100.0 * float(np.mean(loss)), "<= 0.2")
        add("top1_loss_points_explicit", 100.0 * float(np.mean(_losses(explicit))), "<= 0.2")
        ratio = sum(row.measurements for row in rows) / sum(row.measurements for row in quiet)
        add("measurements_ratio", ratio, "<= 1.3")
    within = [target.true_ms is not None and target.true_ms <= target.target_ms for target in met]
    add("winners_within_percent", 100.0 * float(np.mean(within)) if within else 0.0, ">= 98")
    add("false_infeasible", sum(target.status == "infeasible" and target.feasible for target in targets), "== 0")
    add("devices_given_up", sum(row.status != "finished" for row in rows), "== 0")
    spans = [min(row.span_percent, 100.0) for row, _ in automatic if row.span_percent is not None]
    add("auto_span_percent", float(np.mean(spans)), ">= 90")
    add("auto_span_percent_least", float(np.min(spans)))
    error = float(np.mean([row.predictor_error for row in rows]))
    add("predictor_error_percent", 100.0 * error)
    if disturbed:
        add("predictor_error_ratio", error / float(np.mean([row.predictor_error for row in quiet])), "<= 1.5")
    add("not_monotone", sum(_not_monotone(row) for row in rows), "== 0")
    missed = sum(target.reachable and not target.met for target in targets)
    add("missed_targets", missed, "" if disturbed else "== 0")
    slack = [1.0 - target.true_ms / target.target_ms for target in met if target.constrains and target.true_ms]
    below = [target.best_top1 - row.top1(target) for row in rows for target in row.targets if target.reachable]
    add("top1_below_best_points", 100.0 * float(np.mean(below)) if below else 100.0)
    add("slack_percent", 100.0 * float(np.mean(slack)) if slack else 100.0)
    add(
        "subject_share_percent",
        100.0 * float(np.mean([row.subject_share for row in rows])),
        "" if disturbed else ">= 80",
    )
    add("busy_s_per_measurement", sum(row.busy_s for row in rows) / sum(row.measurements for row in rows))
    add("seconds_per_campaign", float(np.mean([row.seconds for row in rows])))


def _losses(pairs: Sequence[tuple[Row, Row]]) -> list[float]:
    """Per feasible explicit target, accuracy of the quiet campaign's winner minus this campaign's, a fraction."""
    losses = []
    for row, still in pairs:
        by_place = dict(enumerate(row.targets))
        for place, target in enumerate(still.targets):
            if target.feasible:
                ours = row.top1(by_place[place]) if place in by_place else row.worst_top1
                losses.append(still.top1(target) - ours)
    return losses


def _not_monotone(row: Row) -> int:
    """Pairs of met targets of which the looser one has the less accurate winner."""
    found = [target.top1 for target in sorted(row.targets, key=lambda t: t.target_ms) if target.met]
    return sum(a is not None and b is not None and b < a - 1e-9 for a, b in itertools.combinations(found, 2))


def table(rows: Sequence[Row]) -> list[str]:
    """One line per campaign, then one per target."""
    lines = []
    for row in rows:
        span = "" if row.span_percent is None else f", span {row.span_percent:.0f} %"
        lines.append(
            f"{row.space} {row.profile} seed {row.seed} {'auto' if row.automatic else 'explicit'}: {row.status} "
            f"{row.reason}, {row.measurements} measurements in {row.seconds:.0f} s, subject {row.subject_share:.0%}, "
            f"predictor error {row.predictor_error:.2%}{span}"
        )
        lines += [
            f"    {target.target_ms:9.4g} ms {target.status:10} "
            + (
                f"true {target.true_ms:9.4g} ms ({target.true_ms / target.target_ms - 1.0:+.1%})  verified "
                f"{target.verified_ms or 0.0:9.4g} ms  top-1 {target.top1 or 0.0:.4f}"
                if target.true_ms is not None
                else f"{'' if target.feasible else '(infeasible) '}{target.reason}"
            )
            for target in row.targets
        ]
    return lines


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=20)
    arguments.add_argument("--spaces", default=",".join(SPACES), help=f"some of {', '.join(SPACES)}")
    arguments.add_argument("--profiles", default=",".join(PROFILES), help=f"some of {', '.join(PROFILES)}")
    arguments.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    arguments.add_argument("--details", action="store_true", help="print every campaign and target")
    options = arguments.parse_args()
    began_s = time.monotonic()
    asked, spaces = options.profiles.split(","), options.spaces.split(",")
    unknown = [name for name in (*asked, *spaces) if name not in (*PROFILES, *SPACES)]
    if unknown:
        arguments.error(f"there is no profile or space {', '.join(unknown)}")
    # The others are compared with the quiet one.
    profiles = [profile for profile in PROFILES if profile == "quiet" or profile in asked]
    jobs = [(name, seed) for name in reversed(spaces) for seed in range(options.seeds)]
    rows: list[Row] = []
    # A worker that is killed ends the benchmark; a `multiprocessing.Pool` would wait for it for ever.
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(run_seed, profiles, job) for job in jobs]
        for done, finished in enumerate(as_completed(running), start=1):
            rows += finished.result()
            took_s = time.monotonic() - began_s
            print(f"{done} of {len(jobs)} devices after {took_s:.0f} s", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: (row.space, PROFILES.index(row.profile), row.seed, not row.automatic))
    if options.details:
        print("\n".join(table(rows)), file=sys.stderr if options.json else sys.stdout)
    figures = Figures()
    for name in spaces:
        quiet = [row for row in rows if (row.space, row.profile) == (name, "quiet")]
        for profile in profiles:
            chosen = quiet if profile == "quiet" else [r for r in rows if (r.space, r.profile) == (name, profile)]
            add_figures(figures, chosen, quiet, f"{name.replace('-', '_')}_{profile}")
    figures.add("benchmark_s", time.monotonic() - began_s)
    return figures.report(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
