"""Baselines beside a search on simulated devices: what is measured, compared, stored, resumed and refused."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rigs.model_files import onnx_model
from rigs.simulated_fleet import ACCURACY, SPACE, SimulatedAgent, Simulation, StandInModels, measurement

from fleetnas.coordinator.app.baselines import choose_baselines, model_baseline
from fleetnas.coordinator.app.dry_run import expected_counts
from fleetnas.coordinator.app.search_history import SearchHistory
from fleetnas.coordinator.campaign.baseline_measurer import BaselineMeasurer
from fleetnas.coordinator.campaign.baseline_row import Preparation
from fleetnas.coordinator.campaign.campaign import Campaign
from fleetnas.coordinator.records.baselines import Baseline, BaselineRecord, Comparison
from fleetnas.coordinator.records.clocks import Clocks
from fleetnas.coordinator.records.comparisons import comparisons
from fleetnas.coordinator.records.events import BaselineMeasured
from fleetnas.coordinator.records.outcome import DeviceOutcome, TakenMeasurement, TargetOutcome
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.statuses import RunStatus, SettingStatus
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.report.conversion import results_of
from fleetnas.coordinator.report.results import BaselineResult
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.store.export_files import write_rows
from fleetnas.coordinator.store.exported_fields import FIELDS, exported_rows
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.judgement import DISTURBED_TRIES
from fleetnas.coordinator.tuning.no_search import NoSearch
from fleetnas.coordinator.tuning.subnet_tuner import REPEATS
from fleetnas.coordinator.view.baseline_table import comparison_words
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import StoreUnavailableError, UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting

LARGEST, SMALLEST = (SPACE.decode(end)[0] for end in (SPACE.largest(), SPACE.smallest()))
ENDS = (Baseline(name="largest", architecture=LARGEST), Baseline(name="smallest", architecture=SMALLEST))

#: Baselines alone are measured.
NONE = TargetRequest()


def plan(*baselines: Baseline, **fields: Any) -> CampaignPlan:
    values: dict[str, Any] = {"targets": "auto:2", "budget": 12, "initial_design": 8, "grace_s": 30, "deadline_s": 60}
    return CampaignPlan(baselines=baselines, **{**values, **fields})


@dataclass
class Fleet(Simulation):
    """A simulated fleet whose coordinator measures the plan's baselines."""

    evaluate_file: Callable[[Baseline], tuple[float, int] | None] = field(default=lambda baseline: None)
    measurer: BaselineMeasurer = field(init=False)

    def make_search(self, info: Any, setting: RuntimeSetting) -> Any:
        return NoSearch(SPACE) if self.plan.only_baselines else super().make_search(info, setting)

    def begin(self, *, resume: bool = False) -> Campaign:
        campaign = super().begin(resume=resume)

        def predict(baseline: Baseline) -> float | None:
            if baseline.architecture is None:
                return None
            return float(ACCURACY.predict(SPACE.encode([baseline.architecture]))[0])

        self.measurer = BaselineMeasurer(
            campaign,
            self.store.baselines,
            Preparation(self.models, self.executor, predict, self.evaluate_file),
            Clocks(self.clock, self.clock.unix),
            emit=self.events.append,
            token=f"{self.starts:06}",
        )
        return campaign

    def step(self, seconds: float = 1.0) -> None:
        super().step(seconds)
        self.measurer.on_tick()

    def run(self, most_steps: int = 2000, until: Callable[[], bool] = lambda: False) -> None:
        for _ in range(most_steps):
            if until() or (self.campaign.finished and self.measurer.finished):
                return
            self.step()
        raise AssertionError(f"not finished after {most_steps} steps: {list(self.campaign.log)[-5:]}")

    def results(self) -> dict[str, dict[str, BaselineResult]]:
        """The baselines in the results, by device setting and name."""
        found = results_of(outcome_of(self.store, self.run_id), lambda device, target: None)
        return {device.label: {row.name: row for row in device.baselines} for device in found.fleet}


@pytest.fixture
def file(tmp_path: Path) -> Baseline:
    path = tmp_path / "mine.onnx"
    path.write_bytes(onnx_model())
    return model_baseline(path, {}, 0.5)


def test_ends_of_the_space_are_measured_beside_the_winners() -> None:
    fleet = Fleet(plan(*ENDS))
    for seed, name in enumerate(("pi4", "pi5")):
        fleet.add(name, seed=seed, noise=0.0)
    fleet.begin()
    fleet.run()
    assert fleet.campaign.finish() is RunStatus.COMPLETE
    outcome = outcome_of(fleet.store, fleet.run_id)
    for agent, device in zip(fleet.agents, outcome.devices, strict=True):
        hidden = agent.devices[RuntimeSetting()]
        last = agent.measured[-2 * REPEATS :]
        assert {(subnet, calibrated) for _, subnet, calibrated in last} == {(LARGEST, True), (SMALLEST, True)}
        rows = {row.baseline: row for row in device.baselines}
        assert list(rows) == ["largest", "smallest"]
        for baseline in ENDS:
            row, subnet = rows[baseline.name], baseline.architecture
            assert subnet is not None
            assert row.measurement is not None
            assert row.measurement.median_ms == pytest.approx(hidden.latency_ms(subnet))
            # The stand-in evaluates what the predictor says.
            assert row.accuracy == row.predicted_accuracy == pytest.approx(predicted(subnet))
            assert row.accuracy_images == 600
            against = comparisons(device, row)
            assert len(against) == len(device.targets) == 2
            for compared, target in zip(against, device.targets, strict=True):
                assert target.architecture is not None
                truth = hidden.latency_ms(subnet) / hidden.latency_ms(target.architecture)
                assert compared.speedup == pytest.approx(truth, rel=1e-6)
                gained = 100 * (predicted(target.architecture) - predicted(subnet))
                assert compared.accuracy_points == pytest.approx(gained, abs=1e-6)
                assert compared.accuracy_basis == "evaluated"


def predicted(subnet: Architecture) -> float:
    return float(ACCURACY.predict(SPACE.encode([subnet]))[0])


def test_baselines_count_against_no_budget_and_no_total() -> None:
    counts = []
    for baselines in ((), ENDS):
        fleet = Fleet(plan(*baselines))
        fleet.add("pi4", seed=1)
        fleet.begin()
        fleet.run()
        fleet.campaign.finish()
        results = results_of(outcome_of(fleet.store, fleet.run_id), lambda device, target: None)
        (device,) = results.fleet
        counts.append((results.targets_met, results.targets_asked, device.measurements, device.verifications))
        counts[-1] = (*counts[-1], [target.sha256 for target in device.targets])  # type: ignore[assignment]
    assert counts[0] == counts[1]


def test_a_model_file_goes_to_agents_that_take_it(file: Baseline) -> None:
    fleet = Fleet(plan(file))
    taking = fleet.add("taking", seed=1, accepts_models=True, noise=0.0)
    refusing = fleet.add("refusing", seed=2)
    litert = fleet.add("litert", seed=3, accepts_models=True, settings=(RuntimeSetting(runtime="litert"),))
    fleet.begin()
    fleet.run()
    assert fleet.campaign.finish() is RunStatus.COMPLETE
    assert [len(agent.files) for agent in (taking, refusing, litert)] == [REPEATS, 0, 0]
    assert file.file is not None
    assert all(task.model == file.file.reference for task in taking.files)
    rows = {label: found["mine.onnx"] for label, found in fleet.results().items()}
    measured = rows["taking/onnxruntime_cpu_1t_fp32"]
    assert (measured.latency_ms, measured.reason, measured.accuracy) == (10.0, "", 0.5)
    assert {each.accuracy_basis for each in measured.comparisons} == {"given"}
    for target, compared in zip(met_targets(fleet, "taking"), measured.comparisons, strict=True):
        assert compared.speedup == pytest.approx(10.0 / (target.verified_ms or 0.0))
        assert compared.accuracy_points == pytest.approx(100 * ((target.accuracy or 0.0) - 0.5))
    assert "--accept-models" in rows["refusing/onnxruntime_cpu_1t_fp32"].reason
    assert rows["litert/litert_cpu_1t_fp32"].reason == "runtime litert takes no .onnx files (onnxruntime does)"
    told = [event for event in fleet.events if isinstance(event, BaselineMeasured)]
    assert sorted((event.device, event.measured_ms, bool(event.reason)) for event in told) == [
        ("litert", None, True),
        ("refusing", None, True),
        ("taking", 10.0, False),
    ]


def met_targets(fleet: Fleet, device: str) -> list[TargetOutcome]:
    found = next(each for each in outcome_of(fleet.store, fleet.run_id).devices if each.device == device)
    return [target for target in found.targets if target.met]


def test_a_file_without_an_accuracy_has_a_speed_alone(file: Baseline) -> None:
    unknown = file.model_copy(update={"accuracy": None})
    fleet = Fleet(plan(unknown))
    fleet.add("pi4", seed=1, accepts_models=True)
    fleet.begin()
    fleet.run()
    (rows,) = fleet.results().values()
    assert {(each.accuracy_points, each.accuracy_basis) for each in rows["mine.onnx"].comparisons} == {(None, None)}


def test_a_file_is_evaluated_where_it_can_be(file: Baseline) -> None:
    unknown = file.model_copy(update={"accuracy": None})
    fleet = Fleet(plan(unknown), evaluate_file=lambda baseline: (0.75, 600))
    fleet.add("pi4", seed=1, accepts_models=True)
    fleet.begin()
    fleet.run()
    (rows,) = fleet.results().values()
    row = rows["mine.onnx"]
    assert (row.accuracy, row.accuracy_images) == (0.75, 600)
    assert {each.accuracy_basis for each in row.comparisons} == {"evaluated"}


def test_an_evaluation_that_fails_costs_the_accuracy_alone(file: Baseline) -> None:
    def fails(baseline: Baseline) -> tuple[float, int] | None:
        raise RuntimeError("no such runtime")

    unknown = file.model_copy(update={"accuracy": None})
    fleet = Fleet(plan(unknown), evaluate_file=fails)
    fleet.add("pi4", seed=1, accepts_models=True)
    fleet.begin()
    fleet.run()
    (rows,) = fleet.results().values()
    assert (rows["mine.onnx"].latency_ms, rows["mine.onnx"].accuracy) == (10.0, None)
    assert any("has no accuracy: " in line for line in fleet.campaign.log)


def test_a_subnet_without_a_file_costs_itself_alone() -> None:
    class Broken(StandInModels):
        def calibrate(self, architecture: Architecture, setting: RuntimeSetting) -> Any:
            if architecture == LARGEST:
                raise UsageError("this one cannot be built")
            return super().calibrate(architecture, setting)

    fleet = Fleet(plan(*ENDS, targets="1000"), models=Broken())
    fleet.add("pi4", seed=1)
    fleet.begin()
    fleet.run()
    (rows,) = fleet.results().values()
    assert rows["largest"].reason == "its file cannot be made: this one cannot be built"
    assert rows["smallest"].latency_ms is not None


def test_two_failures_give_a_baseline_up(file: Baseline) -> None:
    fleet = Fleet(plan(file, *ENDS, targets=NONE))
    agent = fleet.add("pi4", seed=1, accepts_models=True)
    agent.fails = lambda task: "crashed" if task.op == "measure_model" else None
    fleet.begin()
    fleet.run()
    (rows,) = fleet.results().values()
    assert (rows["mine.onnx"].reason, len(agent.files)) == ("crashed", 2)
    assert rows["largest"].latency_ms is not None
    fleet.step()  # the last acknowledgement arrives
    assert not agent.outbox  # failures are acknowledged too


def test_another_file_than_the_ordered_one_is_no_result(file: Baseline) -> None:
    class Cheat(SimulatedAgent):
        def _measure(self, task: Any) -> Any:
            return measurement(0.001, "d" * 64)

    fleet = Fleet(plan(file, targets=NONE))
    fleet.take_in(Cheat(fleet.broker, "cheat", fleet.clock, accepts_models=True))
    fleet.begin()
    fleet.run()
    (rows,) = fleet.results().values()
    assert (rows["mine.onnx"].latency_ms, rows["mine.onnx"].measurements) == (None, 0)
    assert "measured a file with SHA-256 dddd" in rows["mine.onnx"].reason


def test_a_device_that_is_gone_ends_its_baselines() -> None:
    fleet = Fleet(plan(*ENDS, targets=NONE, wait_for=2))
    fleet.add("stays", seed=1)
    fleet.add("goes", seed=2)
    fleet.begin()
    fleet.run(until=lambda: bool(fleet.agents[1].measured))
    fleet.broker.cut("goes")
    gone = fleet.agents.pop()
    assert 0 < len(gone.measured) < 2 * REPEATS
    fleet.run()
    rows = fleet.results()
    assert all(row.reason.startswith("the device is lost: ") for row in rows["goes/onnxruntime_cpu_1t_fp32"].values())
    assert all(not row.reason for row in rows["stays/onnxruntime_cpu_1t_fp32"].values())


def test_a_silent_device_gets_three_attempts() -> None:
    fleet = Fleet(plan(ENDS[0], targets=NONE))
    agent = fleet.add("mute", seed=1)
    agent.mute = True
    fleet.begin()
    fleet.run()
    (rows,) = fleet.results().values()
    assert rows["largest"].reason == "3 attempts ended without a result"


@pytest.mark.parametrize(("slow", "measurements"), [(2, REPEATS), (3, REPEATS + 1), (99, REPEATS + DISTURBED_TRIES)])
def test_a_slowed_device_is_waited_for(file: Baseline, slow: int, measurements: int) -> None:
    class Slowed(SimulatedAgent):
        def _measure(self, task: Any) -> Any:
            quality = "slowed" if len(self.files) <= slow else "ok"
            return measurement(10.0, task.model.sha256, quality=quality)

    fleet = Fleet(plan(file, targets=NONE))
    agent = fleet.take_in(Slowed(fleet.broker, "pi4", fleet.clock, accepts_models=True))
    fleet.begin()
    fleet.run()
    assert len(agent.files) == measurements
    assert [task.wait_above is not None for task in agent.files] == [False] * REPEATS + [True] * (
        measurements - REPEATS
    )
    (rows,) = fleet.results().values()
    assert rows["mine.onnx"].quality == ("slowed" if slow == 99 else "ok")


def test_a_killed_coordinator_measures_only_what_is_missing(file: Baseline) -> None:
    fleet = Fleet(plan(file, *ENDS))
    agent = fleet.add("pi4", seed=1, accepts_models=True, noise=0.0)
    fleet.begin()
    fleet.run(until=lambda: len(agent.files) == 2)
    stored = sum(len(row.measurements) for row in fleet.store.baselines.of_run(fleet.run_id))
    assert stored > 0
    (rows,) = fleet.results().values()
    assert list(rows) == ["mine.onnx", "largest", "smallest"]  # also those that are not measured yet
    subnets = len(agent.measured)
    fleet.vanish()
    fleet.begin(resume=True)
    fleet.run()
    assert fleet.campaign.finish() is RunStatus.COMPLETE
    (rows,) = fleet.results().values()
    assert {name: row.measurements for name, row in rows.items()} == {
        "mine.onnx": REPEATS,
        "largest": REPEATS,
        "smallest": REPEATS,
    }
    # What was stored is not measured again; what was on its way may be, once.
    repeated = len(agent.files) + len(agent.measured[subnets:])
    assert repeated <= 3 * REPEATS - stored + 2 + 1
    fleet.step()
    assert not agent.outbox


def test_a_resumed_run_tries_again_what_could_not_be_measured(file: Baseline) -> None:
    fleet = Fleet(plan(file, targets=NONE))
    agent = fleet.add("pi4", seed=1)
    fleet.begin()
    fleet.run()
    (rows,) = fleet.results().values()
    assert "--accept-models" in rows["mine.onnx"].reason
    fleet.vanish()
    fleet.broker.cut(agent.name)
    fleet.agents = [fleet.take_in(SimulatedAgent(fleet.broker, "pi4", fleet.clock, session=2, accepts_models=True))]
    fleet.begin(resume=True)
    fleet.run()
    (rows,) = fleet.results().values()
    assert (rows["mine.onnx"].reason, rows["mine.onnx"].latency_ms) == ("", 10.0)


def test_nothing_is_acknowledged_before_it_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(plan(ENDS[0], targets=NONE))
    agent = fleet.add("pi4", seed=1)
    fleet.begin()
    fleet.run(until=lambda: bool(fleet.campaign.setting_runs))
    put = fleet.store.baselines.put

    def away(baselines: Any) -> None:
        raise StoreUnavailableError("the disk is full")

    monkeypatch.setattr(fleet.store.baselines, "put", away)
    for _ in range(20):
        fleet.step()
    assert len(agent.measured) == 1  # it waits with the next task
    assert len(agent.outbox) == 1
    monkeypatch.setattr(fleet.store.baselines, "put", put)
    fleet.run()
    (rows,) = fleet.results().values()
    assert rows["largest"].measurements == REPEATS
    fleet.step()
    assert not agent.outbox


def test_exported_data_has_baselines(tmp_path: Path, file: Baseline) -> None:
    fleet = Fleet(plan(file, ENDS[0]))
    fleet.add("pi4", seed=1, accepts_models=True)
    fleet.begin()
    fleet.run()
    path = tmp_path / "measurements.csv"
    count = write_rows(exported_rows(fleet.store, [fleet.run_id]), FIELDS, path, "csv")
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == count
    found = [row for row in rows if row["purpose"] == "baseline"]
    assert [(row["baseline"], row["fingerprint"]) for row in found] == [
        *[("largest", LARGEST.fingerprint)] * REPEATS,
        *[("mine.onnx", "")] * REPEATS,
    ]
    assert {float(row["median_ms"]) for row in found if row["baseline"] == "mine.onnx"} == {10.0}
    assert all(row["baseline"] == "" for row in rows if row["purpose"] != "baseline")


def test_records_survive_the_store(store_url: str) -> None:
    store = MeasurementStore.open(store_url)
    fleet = Fleet(plan(ENDS[0], targets=NONE), store=store)
    fleet.add("pi4", seed=1)
    fleet.begin()
    fleet.run()
    before = store.baselines.of_run(fleet.run_id)
    store.close()
    again = MeasurementStore.open(store_url)
    try:
        assert again.baselines.of_run(fleet.run_id) == before
        assert before[0].done
    finally:
        again.close()


# -- comparing --------------------------------------------------------------------------------------------------


def device(winner: Any, **target: Any) -> DeviceOutcome:
    row = TakenMeasurement("t.1", 1, "verification", SMALLEST, winner, target_ms=20.0)
    sha256, median_ms = "d" * 64, winner.median_ms
    row = replace(row, measurement=winner.model_copy(update={"model_sha256": sha256}))
    outcome = TargetOutcome(20.0, SMALLEST, verified_ms=median_ms, sha256=sha256, **target)
    return DeviceOutcome("pi4", RuntimeSetting(), SettingStatus.FINISHED, rows=(row,), targets=(outcome,))


def baseline(measured: Any, **fields: Any) -> BaselineRecord:
    return BaselineRecord("run", "pi4", "onnxruntime", "largest", (measured,), done=True, **fields)


def test_a_slowed_measurement_is_compared_at_undisturbed_speed() -> None:
    calm = device(measurement(10.0))
    slowed = baseline(measurement(40.0, quality="slowed", undisturbed_ms=20.0))
    (found,) = comparisons(calm, slowed)
    assert (found.speedup, found.speed_basis) == (2.0, "undisturbed")
    unknown = baseline(measurement(40.0, quality="slowed", undisturbed_ms=None))
    (found,) = comparisons(calm, unknown)
    assert (found.speedup, found.speed_basis) == (4.0, "slowed")
    (found,) = comparisons(calm, baseline(measurement(40.0, undisturbed_ms=20.0)))
    assert (found.speedup, found.speed_basis) == (4.0, "as-ran")


@pytest.mark.parametrize(
    ("winner_percent", "baseline_percent", "words"),
    [
        (2.0, 2.0, "4.0x faster"),
        (2.0, 50.0, "at least 1.9x faster"),
        (90.0, 2.0, "at least 2.0x faster"),
        (2.0, 177.0, "not clearly faster or slower"),
        (150.0, 80.0, "not clearly faster or slower"),
    ],
)
@pytest.mark.parametrize("quality", ["ok", "noisy", "slowed"])
def test_a_speed_up_is_told_no_more_precisely_than_both_were_measured(
    winner_percent: float, baseline_percent: float, words: str, quality: Any
) -> None:
    def measured(ms: float, percent: float) -> Any:
        widths = {"half_width_percent": percent, "undisturbed_half_width_percent": percent}
        return measurement(ms, undisturbed_ms=ms).model_copy(update={"quality": quality, **widths})

    (found,) = comparisons(device(measured(10.0, winner_percent)), baseline(measured(40.0, baseline_percent)))
    assert comparison_words(found) == words + (" (undisturbed)" if quality == "slowed" else "")
    (found,) = comparisons(device(measured(16.0, baseline_percent)), baseline(measured(4.0, winner_percent)))
    assert comparison_words(found).startswith(words if "clearly" in words else words.replace("faster", "slower"))


def test_a_winner_that_is_the_baseline_is_called_the_same_network() -> None:
    noisy = measurement(40.0, "d" * 64, quality="noisy")
    (found,) = comparisons(device(measurement(10.0), accuracy=0.8), baseline(noisy, accuracy=0.8, accuracy_images=10))
    assert (found.speedup, found.speed_basis, found.accuracy_points) == (1.0, "same-file", 0.0)
    assert comparison_words(found) == "the same network"


def test_a_slowed_measurement_counts_only_where_all_are() -> None:
    slow = [measurement(ms, quality="slowed", undisturbed_ms=10.0) for ms in (30.0, 40.0, 50.0)]
    always = BaselineRecord("run", "pi4", "onnxruntime", "largest", tuple(slow), done=True)
    assert always.measurement == slow[1]
    once = BaselineRecord("run", "pi4", "onnxruntime", "largest", (*slow[:2], measurement(11.0)), done=True)
    assert once.measurement is not None
    assert once.measurement.median_ms == 11.0


@pytest.mark.parametrize(
    ("target", "known", "points", "basis"),
    [
        ({"accuracy": 0.8}, {"accuracy": 0.75, "accuracy_images": 10}, 5.0, "evaluated"),
        ({"predicted_accuracy": 0.8}, {"predicted_accuracy": 0.81}, -1.0, "predicted"),
        # An evaluated accuracy is never compared with a predicted one.
        ({"accuracy": 0.9, "predicted_accuracy": 0.8}, {"predicted_accuracy": 0.81}, -1.0, "predicted"),
        ({"predicted_accuracy": 0.8}, {"accuracy": 0.75, "accuracy_images": 10}, None, None),
        ({"accuracy": 0.9, "predicted_accuracy": 0.8}, {"accuracy": 0.85}, 5.0, "given"),
        ({"predicted_accuracy": 0.8}, {"accuracy": 0.85}, -5.0, "given"),
        ({}, {"accuracy": 0.85}, None, None),
    ],
)
def test_accuracies_of_one_kind_are_compared(
    target: dict[str, float], known: dict[str, Any], points: float | None, basis: str | None
) -> None:
    (found,) = comparisons(device(measurement(10.0), **target), baseline(measurement(20.0), **known))
    assert found.accuracy_points == (None if points is None else pytest.approx(points))
    assert found.accuracy_basis == basis


@pytest.mark.parametrize(
    ("speedup", "speed", "points", "basis", "words"),
    [
        (2.14, "as-ran", -0.3, "evaluated", "2.1x faster at -0.3 points"),
        (0.5, "as-ran", 1.25, "predicted", "2.0x slower at +1.2 points (predicted)"),
        (1.01, "undisturbed", None, None, "as fast (undisturbed)"),
        (1.05, "as-ran", None, None, "1.05x faster"),
        (14.6, "slowed", -2.0, "given", "15x faster (the device was slowed) at -2.0 points (given)"),
    ],
)
def test_words(speedup: float, speed: Any, points: float | None, basis: Any, words: str) -> None:
    assert comparison_words(Comparison(20.0, "", speedup, speed, points, basis)) == words


# -- the command line's baselines -------------------------------------------------------------------------------


def parse(text: str) -> Architecture:
    if text not in ("largest", "smallest"):
        raise UsageError(f"architecture {text} cannot be read")
    return LARGEST if text == "largest" else SMALLEST


def test_baselines_are_read_by_their_kind(tmp_path: Path) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(onnx_model(open_sides=True))
    shapes = {"": (1, 3, 8, 8)}
    found = choose_baselines(["largest", str(path), "smallest"], shapes, {"": 0.761}, parse)
    assert [each.name for each in found] == ["largest", "mine.onnx", "smallest"]
    assert found[0].architecture == LARGEST
    assert found[1].file is not None
    assert found[1].file.reference.input_shapes == {"input": (1, 3, 8, 8)}
    assert found[1].accuracy == 0.761


@pytest.mark.parametrize(
    ("texts", "accuracies", "message"),
    [
        (["largest", "x.onnx"], {}, "cannot be read"),
        (["largest"], {"": 0.5}, "there are 0"),
        (["a/mine.onnx", "b/mine.onnx"], {}, "two baselines are called mine.onnx"),
        (["a/mine.onnx"], {"other.onnx": 0.5}, "names other.onnx, which is no model file"),
        (["weights.pt"], {}, "neither a model file"),
        (["a/open.onnx"], {}, "--input-shape input=1x3x224x224"),
    ],
)
def test_bad_baselines_are_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], accuracies: dict[str, float], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "mine.onnx").write_bytes(onnx_model())
    Path("a/open.onnx").write_bytes(onnx_model(open_sides=True))
    Path("weights.pt").write_bytes(b"PK")
    with pytest.raises(UsageError) as caught:
        choose_baselines(texts, {}, accuracies, parse)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dry_run_counts_baselines() -> None:
    store = MeasurementStore.open("sqlite://")
    found = [expected_counts(made, SearchHistory.of(store, made, ())) for made in (plan(), plan(*ENDS))]
    assert found[1].verification == found[0].verification + 2 * REPEATS
    assert found[1].first == found[0].first
