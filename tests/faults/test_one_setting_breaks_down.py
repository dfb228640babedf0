"""An exception that is about one device setting gives that one up, with its trace in the log; the others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from rigs.hostile_fleet import ShippedModels
from rigs.simulated_fleet import InlineExecutor, Simulation

from fleetnas.coordinator.app.run_artifacts import write_artifacts
from fleetnas.coordinator.campaign import endings, live_snapshot, winner_record
from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.campaign.winner_builder import CalibratedModel
from fleetnas.coordinator.fleet.registry import FleetRegistry
from fleetnas.coordinator.fleet.task_dispatcher import TaskDispatcher
from fleetnas.coordinator.monitoring.view_group import ViewGroup
from fleetnas.coordinator.records.events import Event, TargetMissed
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.report import conversion, html, stored_outcome
from fleetnas.coordinator.report.artifacts import read_results
from fleetnas.coordinator.report.html import REPORT_FILE
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import AgentInfo, RuntimeSetting

PLAN = CampaignPlan(targets="auto:2", budget=10, initial_design=6, wait_for=2, grace_s=30, join_s=60, deadline_s=60)
BROKEN = "pi0"


class BreakdownError(Exception):
    """None of ours."""


class PickyModels(ShippedModels):
    """Cannot do one thing for settings of two threads, which the broken device has."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what

    def calibrate(self, architecture: Architecture, setting: RuntimeSetting) -> CalibratedModel:
        self._break("calibrate", setting)
        return super().calibrate(architecture, setting)

    def accuracy(self, model: CalibratedModel) -> tuple[float, int] | None:
        self._break("accuracy", model.setting)
        return super().accuracy(model)

    def file(self, model: CalibratedModel) -> bytes:
        self._break("file", model.setting)
        return super().file(model)

    def _break(self, what: str, setting: RuntimeSetting) -> None:
        if what == self._what and setting.threads == 2:
            raise BreakdownError(what)


class OtherThread(ThreadPoolExecutor):
    """Does work on another thread, and waits for it: simulated time must not run on meanwhile."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        wait([future])
        return future


def two_devices(**options: Any) -> Simulation:
    fleet = Simulation(PLAN, **{"models": ShippedModels(), **options})
    fleet.add(BROKEN, seed=0, settings=(RuntimeSetting(threads=2),))
    fleet.add("pi1", seed=1)
    return fleet


@pytest.fixture
def trace(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """The traces that the coordinator logged."""
    with caplog.at_level(logging.ERROR, logger="fleetnas.coordinator"):
        yield lambda: [record.exc_text or str(record.exc_info) for record in caplog.records if record.exc_info]


def track_of(fleet: Simulation, device: str) -> SettingRun:
    return next(setting_run for setting_run in fleet.campaign.setting_runs.values() if setting_run.device == device)


def breaks(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, concerns: Callable[..., bool]) -> None:
    """Have a real function raise where it is asked about the broken device."""
    real = getattr(owner, name)

    def sometimes(*arguments: Any, **named: Any) -> Any:
        if concerns(*arguments, **named):
            raise BreakdownError(name)
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, sometimes)


def broken_search(fleet: Simulation) -> Callable[..., bool]:
    """Whether a search is that of the broken device, once it has measured something."""

    def concerns(search: DeviceTuner, *_: Any) -> bool:
        setting_runs = fleet.campaign.setting_runs.values()
        return (
            any(setting_run.search is search and setting_run.device == BROKEN for setting_run in setting_runs)
            and search.measurements > 3
        )

    return concerns


@pytest.mark.parametrize("what", ["ask", "tell", "held_out_error"])
@pytest.mark.parametrize("threaded", [False, True], ids=["inline", "thread"])
def test_a_search_that_breaks_down(
    monkeypatch: pytest.MonkeyPatch, trace: Callable[[], list[str]], what: str, threaded: bool
) -> None:
    with OtherThread() if threaded else InlineExecutor() as executor:
        fleet = two_devices(executor=executor)
        breaks(monkeypatch, DeviceTuner, what, broken_search(fleet))
        fleet.begin()
        fleet.run()
        check_one_failed(fleet, trace)
        monkeypatch.undo()
        fleet.begin(resume=True)
        fleet.run()
        assert fleet.campaign.finish() == "complete"


def test_targets_of_a_search_that_breaks_down_are_missed_without_asking_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = two_devices()
    fleet.plan = PLAN.model_copy(update={"targets": TargetRequest((1.0, 2.0))})
    breaks(monkeypatch, DeviceTuner, "ask", broken_search(fleet))

    def fastest_ms(search: DeviceTuner) -> None:
        if search.failure_reason:
            raise BreakdownError("fastest_ms")

    monkeypatch.setattr(DeviceTuner, "fastest_ms", property(fastest_ms))
    fleet.begin()
    fleet.run()
    missed = [event for event in fleet.events if isinstance(event, TargetMissed) and event.device == BROKEN]
    assert [(event.target_ms, event.final) for event in missed] == [(1.0, True), (2.0, True)]
    assert not [line for line in fleet.campaign.log if "ms is lost" in line]


def check_one_failed(fleet: Simulation, trace: Callable[[], list[str]]) -> None:
    assert fleet.campaign.finish() == "partial"
    broken, other = track_of(fleet, BROKEN), track_of(fleet, "pi1")
    assert broken.status == "failed"
    assert "BreakdownError" in broken.reason
    assert other.status == "finished"
    assert all(target.status == "met" for target in other.search.targets)
    assert any("BreakdownError" in text for text in trace())


def test_the_winner_of_one_setting_cannot_be_built(trace: Callable[[], list[str]], tmp_path: Path) -> None:
    fleet = two_devices(models=PickyModels("calibrate"))
    fleet.begin()
    fleet.run()
    check_one_failed(fleet, trace)
    assert write_artifacts(fleet.store, "run-1", tmp_path, fleet.models) == []
    kept = {device.device: device for device in read_results(tmp_path).fleet}
    assert kept[BROKEN].status == "failed"
    assert all(target.model for target in kept["pi1"].targets)
    assert (tmp_path / REPORT_FILE).exists()


def test_a_winner_that_cannot_be_evaluated_keeps_its_latency(trace: Callable[[], list[str]]) -> None:
    class Later(PickyModels):
        def evaluates_at_once(self, model: CalibratedModel) -> bool:
            return False

    fleet = two_devices(models=Later("accuracy"))
    fleet.begin()
    fleet.run()
    assert fleet.campaign.finish() == "complete"
    assert any("BreakdownError" in text for text in trace())
    assert [line for line in fleet.campaign.log if "no accuracy for winner" in line]


def test_a_search_that_cannot_be_made(trace: Callable[[], list[str]]) -> None:
    fleet = two_devices()
    real = fleet.make_search

    def make(info: AgentInfo, setting: RuntimeSetting) -> DeviceTuner:
        if setting.threads == 2:
            raise BreakdownError("no prior")
        return real(info, setting)

    fleet.make_search = make  # type: ignore[method-assign]
    fleet.begin()
    fleet.run()
    fleet.campaign.finish()
    assert track_of(fleet, "pi1").status == "finished"
    assert [line for line in fleet.campaign.log if line.startswith("pi0/") and "takes no part" in line]
    assert len(trace()) == 1, "said once, however often the agent speaks"


@pytest.mark.parametrize("what", ["winner_record", "subnet_costs"])
def test_a_target_that_cannot_be_recorded(
    monkeypatch: pytest.MonkeyPatch, trace: Callable[[], list[str]], what: str
) -> None:
    fleet = two_devices()
    if what == "winner_record":
        breaks(monkeypatch, endings, what, lambda setting_run, _: setting_run.device == BROKEN)
    else:
        winner_record.winner_costs.cache_clear()
        breaks(monkeypatch, winner_record, what, lambda *_: True)
    fleet.begin()
    fleet.run()
    assert fleet.campaign.finish() == "complete", "what it measured is known; only its record is missing"
    assert trace()


def test_a_setting_that_cannot_be_shown(monkeypatch: pytest.MonkeyPatch, trace: Callable[[], list[str]]) -> None:
    fleet = two_devices()
    fleet.begin()
    breaks(monkeypatch, live_snapshot, "setting_snapshot", lambda setting_run, *_: setting_run.device == BROKEN)
    fleet.run(until=lambda: len(fleet.campaign.setting_runs) == 2)
    for _ in range(3):
        shown = fleet.campaign.snapshot(1.0)
        assert [device.device for device in shown.devices] == [BROKEN, "pi1"]
    assert len(trace()) == 1
    monkeypatch.undo()
    fleet.run()
    assert fleet.campaign.finish() == "complete"


def test_a_message_that_cannot_be_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = two_devices()
    fleet.begin()
    breaks(monkeypatch, FleetRegistry, "on_heartbeat", lambda *_: True)
    breaks(monkeypatch, TaskDispatcher, "reconcile", lambda dispatcher, agent, held: agent == BROKEN)
    fleet.run()
    assert fleet.campaign.finish() == "complete"
    assert [line for line in fleet.refused if "BreakdownError" in line]


@pytest.mark.parametrize("part", ["record", "plots", "page", "file", "stored"])
def test_a_part_of_the_report_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, trace: Callable[[], list[str]], tmp_path: Path, part: str
) -> None:
    fleet = two_devices(models=PickyModels("file" if part == "file" else ""))
    fleet.begin()
    fleet.run()
    if part == "record":
        breaks(monkeypatch, conversion, "_target_result", lambda device, *_: device.device == BROKEN)
    elif part == "plots":
        breaks(monkeypatch, html, "device_plots", lambda device, *_: device.device == BROKEN)
    elif part == "page":
        breaks(monkeypatch, html, "render_report", lambda *_: True)
    elif part == "stored":
        breaks(monkeypatch, stored_outcome, "device_outcome", lambda device, *_: device.device == BROKEN)
    troubles: list[str] = []

    def write() -> str:
        troubles.extend(write_artifacts(fleet.store, "run-1", tmp_path, fleet.models))
        return str(tmp_path)

    assert fleet.campaign.finish(write) == "complete"
    results = read_results(tmp_path)
    kept = {device.device: device for device in results.fleet}
    assert all(target.model for target in kept["pi1"].targets)
    assert set(kept) == {BROKEN, "pi1"}
    assert bool(troubles) == (part in ("page", "file"))
    assert (tmp_path / REPORT_FILE).exists() == (part != "page")
    assert any("BreakdownError" in text for text in trace())


def test_a_view_that_cannot_show_something_costs_that_view_alone(trace: Callable[[], list[str]]) -> None:
    class Picky:
        def update(self, snapshot: Snapshot) -> None:
            raise BreakdownError("update")

        def event(self, event: Event) -> None:
            raise BreakdownError("event")

        def close(self) -> None: ...

    class DoctorContext(Picky):
        def __init__(self) -> None:
            self.events = 0

        def update(self, snapshot: Snapshot) -> None: ...

        def event(self, event: Event) -> None:
            self.events += 1

    context = DoctorContext()
    fleet = two_devices()
    views = ViewGroup([Picky(), context])
    fleet.begin()
    fleet.run()
    for event in fleet.events:
        views.event(event)
    views.update(fleet.campaign.snapshot(1.0))
    assert context.events == len(fleet.events)
    assert len(trace()) == 1
    assert outcome_of(fleet.store, "run-1").devices
