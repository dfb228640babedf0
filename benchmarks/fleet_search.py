"""A whole search of an OFA-MobileNetV3 supernet on real agents: three device settings of this machine.

The supernet has random weights in the layout of OFA's checkpoints (latency does not depend on what weights are, only on
their shapes), the objective is the accuracy predictor that OFA published (`ofa_mbv3/acc_predictor.pth` under
`FLEETNAS_DATA`). The agents are processes of their own behind an embedded broker: onnxruntime with one and with two
threads, and LiteRT. Each gets 10 measurements to cover the space and 4 per target. Needs torch and the `ofa` package.
The exit status is 1 if a bar is missed.

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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import Figures, parser

from fleetnas.coordinator.app.compose import open_search
from fleetnas.coordinator.app.demo import agents
from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
from fleetnas.coordinator.app.priority import session_yields_to_measurements
from fleetnas.coordinator.app.request import FleetAccess, NewRun, SearchRequest
from fleetnas.coordinator.records.outcome import CampaignOutcome
from fleetnas.coordinator.records.plan import CampaignPlan
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


def search(directory: Path, supernet: Path, seed: int) -> CampaignOutcome:
    """Broker, agents and one search, its progress on standard error."""
    work = directory / "agents"
    work.mkdir()
    store = MeasurementStore.open(directory / "runs.sqlite")
    with EmbeddedBroker(port=0) as broker, agents(broker.address, work, SETTINGS):
        request = SearchRequest(
            store=store.url,
            devices_at=FleetAccess(broker.address),
            run=NewRun(
                supernet,
                CampaignPlan(
                    targets=f"auto:{TARGETS}",
                    budget=INITIAL_DESIGN + PER_TARGET * TARGETS,
                    initial_design=INITIAL_DESIGN,
                    seed=seed,
                    devices=tuple(name for name, _ in SETTINGS),
                    wait_for=len(SETTINGS),
                    deadline_s=60.0,
                    protocol=PROTOCOL,
                ),
            ),
            out=directory / "out",
        )
        running = open_search(request, lambda: LinesView(sys.stderr), store)
        try:
            with session_yields_to_measurements():
                running.run()
            return outcome_of(store, running.run_id)
        finally:
            running.close()


def add_figures(figures: Figures, outcome: CampaignOutcome) -> None:
    """Whether the targets were met, how close to them, and what was predicted."""
    targets = [target for device in outcome.devices for target in device.targets]
    slack = [100.0 * (1.0 - t.verified_ms / t.target_ms) for t in targets if t.met and t.verified_ms is not None]
    # A winner keeps its target as it ran and at the typical speed of the run: the slower of the two decides.
    decisive = [
        100.0 * (1.0 - max(t.verified_ms, t.typical_ms or 0.0) / t.target_ms)
        for t in targets
        if t.met and t.verified_ms is not None
    ]
    asked = TARGETS * len(SETTINGS)
    figures.add("targets_met_fraction", len(slack) / asked, ">= 1")
    figures.add("winners_below_target_percent_median", statistics.median(slack or [100.0]), "<= 5")
    figures.add("winners_below_target_percent_max", max(slack, default=100.0), "<= 3")
    figures.add("winners_below_target_at_decisive_speed_percent_median", statistics.median(decisive or [100.0]))
    for device in outcome.devices:
        name = device.device.replace("-", "_")
        figures.add(f"{name}_measurements", device.measurements, f"<= {INITIAL_DESIGN + PER_TARGET * TARGETS}")
        if device.targets:
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


def table(outcome: CampaignOutcome) -> list[str]:
    """One line per target."""
    lines = []
    for device in outcome.devices:
        if device.reason:
            lines.append(f"{device.device:<15} {device.status}: {device.reason}")
        for target in device.targets:
            accuracy = target.predicted_accuracy
            lines.append(
                f"{device.device:<15} target {target.target_ms:8.3f} ms  verified {target.verified_ms or 0.0:8.3f} ms  "
                f"measured {target.measured_ms or 0.0:8.3f} ms  top-1 {accuracy or 0.0:.4f}  {target.reason}"
            )
    return lines


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--keep", type=Path, help="folder to work in and to leave everything in")
    options = arguments.parse_args()
    figures = Figures()
    figures.add("load_average_before", os.getloadavg()[0])
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        supernet = export(directory)
        started_s = time.monotonic()
        outcome = search(directory, supernet, options.seed)
        figures.add("search_s", time.monotonic() - started_s, "< 360")
        figures.add("load_average_after", os.getloadavg()[0])
        add_figures(figures, outcome)
    if not options.json:
        print("\n".join(table(outcome)))
    return figures.report(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
