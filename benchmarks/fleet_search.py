"""A whole search of an OFA-MobileNetV3 supernet on real agents: three device settings of this machine.

The supernet has random weights in the layout of OFA's checkpoints (latency does not depend on what weights are, only on
their shapes), the objective is the accuracy predictor that OFA published (`ofa_mbv3/acc_predictor.pth` under
`FLEETNAS_DATA`). The agents are processes of their own behind an embedded broker: onnxruntime with one and with two
threads, and LiteRT. Each gets 10 measurements to cover the space and 4 per target. Needs torch and the `ofa` package.
The exit status is 1 if a bar is missed.

Two searches are compared, of equal budgets and seeds, in turns (`--rounds`): one measures as precisely as each subnet
needs, the other every subnet by the same protocol. Each resolves its own automatic targets, at the same places of the
range that it measures, so accuracies are compared place by place.

Timings of a machine that is busy otherwise are worth little: `load_average_before` says whether it was. The
search itself loads the machine as well, so `load_average_after` is above 1 anyway.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import Figures, parser

from fleetnas.coordinator.app.compose import open_search
from fleetnas.coordinator.app.demo import agents
from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
from fleetnas.coordinator.app.priority import session_yields_to_measurements
from fleetnas.coordinator.app.request import FleetAccess, NewRun, SearchRequest
from fleetnas.coordinator.records.outcome import CampaignOutcome, TargetOutcome
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.precision import PrecisionChoice
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.view.lines import LinesView
from fleetnas.fleet_protocol.messages import MeasurementProtocol
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.export import export_checkpoint
from fleetnas.supernet_export.spaces.registry import make_space

DATA = Path(os.environ.get("FLEETNAS_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
FAMILY, RESOLUTIONS = "ofa-mbv3-w1.0", (160, 176, 192, 208, 224)
SETTINGS = (
    ("onnxruntime-1", ("--runtime", "onnxruntime", "--threads", "1")),
    ("onnxruntime-2", ("--runtime", "onnxruntime", "--threads", "2")),
    ("litert-1", ("--runtime", "litert", "--threads", "1")),
)
TARGETS, INITIAL_DESIGN, PER_TARGET = 4, 10, 4
PROTOCOL = MeasurementProtocol(warmup_s=0.2, min_s=0.5, min_runs=20, max_s=4.0)
BOTH: tuple[PrecisionChoice, ...] = ("auto", "fixed")


@dataclass(frozen=True)
class Searched:
    """One search, and its wall time, seconds."""

    outcome: CampaignOutcome
    wall_s: float

    @property
    def targets(self) -> list[TargetOutcome]:
        return [target for device in self.outcome.devices for target in device.targets]

    @property
    def met(self) -> list[TargetOutcome]:
        return [target for target in self.targets if target.met]


def export(directory: Path, resolutions: Sequence[int] = RESOLUTIONS) -> Path:
    """The supernet's bundle, by way of a checkpoint as OFA's trainer writes it."""
    from rigs.peer_supernets import peer_supernet, save_checkpoint

    checkpoint = save_checkpoint(peer_supernet(FAMILY), directory / "ofa_mbv3_random.pth")
    published = DATA / "ofa_mbv3" / "acc_predictor.pth"
    bundle = directory / "ofa-mbv3-random.supernet"
    export_checkpoint(
        checkpoint,
        make_space("ofa-mbv3", {"width": 1.0, "resolutions": list(resolutions)}),
        bundle,
        accuracy=AccuracyPredictor.from_pth(published),
        accuracy_source="OFA's published predictor",
    )
    return bundle


def plan_of(options: Options, precision: PrecisionChoice, seed: int) -> CampaignPlan:
    return CampaignPlan(
        targets=TargetRequest.parse(f"auto:{TARGETS}"),
        budget=INITIAL_DESIGN + PER_TARGET * TARGETS,
        initial_design=INITIAL_DESIGN,
        seed=seed,
        devices=tuple(name for name, _ in SETTINGS),
        wait_for=len(SETTINGS),
        deadline_s=options.deadline_s,
        protocol=PROTOCOL,
        precision=precision,
        prior="default",
    )


@dataclass(frozen=True)
class Options:
    """How often, and how long one measurement may take."""

    rounds: int
    deadline_s: float
    seed: int


def search(directory: Path, supernet: Path, plan: CampaignPlan) -> Searched:
    """Broker, agents and one search, its progress on standard error."""
    work = directory / "agents"
    work.mkdir(parents=True)
    store = MeasurementStore.open(directory / "runs.sqlite")
    with EmbeddedBroker(port=0) as broker, agents(broker.address, work, SETTINGS):
        request = SearchRequest(
            store=store.url,
            devices_at=FleetAccess(broker.address),
            run=NewRun(supernet, plan),
            out=directory / "out",
        )
        running = open_search(request, lambda: LinesView(sys.stderr), store)
        try:
            started_s = time.monotonic()
            with session_yields_to_measurements():
                running.run()
            return Searched(outcome_of(store, running.run_id), time.monotonic() - started_s)
        finally:
            running.close()


def slacks(found: Sequence[Searched]) -> tuple[list[float], list[float]]:
    """Percent that each winner is below its target: as it ran, and at the slower of that and the typical speed."""
    met = [target for one in found for target in one.met if target.verified_ms is not None and target.target_ms]
    as_ran = [100.0 * (1.0 - t.verified_ms / t.target_ms) for t in met]  # type: ignore[operator]
    # A winner keeps its target as it ran and at the typical speed of the run: the slower of the two decides.
    decisive = [100.0 * (1.0 - max(t.verified_ms, t.typical_ms or 0.0) / t.target_ms) for t in met]  # type: ignore[operator, type-var]
    return as_ran, decisive


def timed_s(one: Searched) -> float:
    """Seconds inside timed inferences of subnets, all settings together."""
    return sum(device.timed_s for device in one.outcome.devices)


def add_figures(figures: Figures, found: dict[PrecisionChoice, list[Searched]]) -> None:
    """Whether the targets were met, how close to them, what was predicted, and what it took."""
    asked = TARGETS * len(SETTINGS) * len(found["auto"])
    for precision, searches in found.items():
        bars = precision == "auto"
        as_ran, decisive = slacks(searches)
        prefix = "" if bars else "fixed_precision_"

        def add(name: str, value: float, bar: str = "", prefix: str = prefix, bars: bool = bars) -> None:
            figures.add(f"{prefix}{name}", value, bar if bars else "")

        add("targets_met_fraction", sum(len(one.met) for one in searches) / asked, ">= 1")
        for name, slack in (("", as_ran), ("at_decisive_speed_", decisive)):
            add(f"winners_below_target_{name}percent_median", statistics.median(slack or [100.0]), "<= 3")
            add(f"winners_below_target_{name}percent_max", max(slack, default=100.0), "<= 6")
        add("search_s", statistics.median(one.wall_s for one in searches), "< 360")
        add("timed_s", statistics.median(map(timed_s, searches)))
        add("top1_mean_percent", 100.0 * _mean_top1(searches))
    pairs = list(zip(found["auto"], found["fixed"], strict=True))
    figures.add("wall_time_over_fixed_precision", statistics.median(a.wall_s / b.wall_s for a, b in pairs), "<= 0.5")
    figures.add("timed_s_over_fixed_precision", statistics.median(timed_s(a) / timed_s(b) for a, b in pairs))
    figures.add("top1_points_over_fixed_precision", 100.0 * _top1_gain(pairs), ">= 0")
    for device in found["auto"][-1].outcome.devices:
        _add_device(figures, device.device.replace("-", "_"), found)


def _mean_top1(searches: Sequence[Searched]) -> float:
    return statistics.fmean(t.predicted_accuracy or 0.0 for one in searches for t in one.met) if searches else 0.0


def _top1_gain(pairs: Sequence[tuple[Searched, Searched]]) -> float:
    """Mean difference in predicted top-1, a fraction, over the targets by place: each setting chose its own."""
    gains = [
        (a.predicted_accuracy or 0.0) - (b.predicted_accuracy or 0.0)
        for auto, fixed in pairs
        for a, b in zip(auto.targets, fixed.targets, strict=False)
        if a.met and b.met
    ]
    return statistics.fmean(gains) if gains else -1.0


def _add_device(figures: Figures, name: str, found: dict[PrecisionChoice, list[Searched]]) -> None:
    device = next(d for d in found["auto"][-1].outcome.devices if d.device.replace("-", "_") == name)
    figures.add(f"{name}_measurements", device.measurements, f"<= {INITIAL_DESIGN + PER_TARGET * TARGETS}")
    if device.targets and device.targets[0].target_ms and device.targets[-1].target_ms:
        figures.add(f"{name}_range_of_targets", device.targets[-1].target_ms / device.targets[0].target_ms)
    if device.predictor is not None and device.predictor.mape_percent is not None:
        figures.add(f"{name}_held_out_mape_percent", device.predictor.mape_percent)
    # Of the candidates alone: each was predicted before it was measured, near a target.
    errors = [
        100.0 * abs(row.measurement.median_ms / row.predicted_ms - 1.0)
        for row in device.rows
        if row.purpose == "candidate" and row.predicted_ms is not None
    ]
    if errors:
        figures.add(f"{name}_candidates_error_percent_median", statistics.median(errors))


def table(precision: PrecisionChoice, found: Searched) -> list[str]:
    """One line per target."""
    lines = []
    for device in found.outcome.devices:
        if device.reason:
            lines.append(f"{device.device:<15} {device.status}: {device.reason}")
        lines += [
            f"{precision:<6}{device.device:<15} target {target.target_ms or 0.0:8.3f} ms  verified "
            f"{target.verified_ms or 0.0:8.3f} ms  typically {target.typical_ms or 0.0:8.3f} ms  "
            f"top-1 {target.predicted_accuracy or 0.0:.4f}  {target.reason}"
            for target in device.targets
        ]
    return lines


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--rounds", type=int, default=2, help="searches of each kind, in turns")
    arguments.add_argument("--deadline", type=float, default=60.0, help="seconds of one measurement")
    arguments.add_argument("--keep", type=Path, help="folder to work in and to leave everything in")
    given = arguments.parse_args()
    options = Options(given.rounds, given.deadline, given.seed)
    figures = Figures()
    figures.add("load_average_before", os.getloadavg()[0])
    found: dict[PrecisionChoice, list[Searched]] = {precision: [] for precision in BOTH}
    with tempfile.TemporaryDirectory() as temporary:
        directory = given.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        supernet = export(directory)
        for number in range(options.rounds):
            for precision in BOTH if number % 2 == 0 else BOTH[::-1]:
                plan = plan_of(options, precision, options.seed + number)
                one = search(directory / f"{precision}-{number}", supernet, plan)
                found[precision].append(one)
                if not given.json:
                    print("\n".join(table(precision, one)), flush=True)
    figures.add("load_average_after", os.getloadavg()[0])
    add_figures(figures, found)
    return figures.report(as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
