"""`--timeout`: a search that ends early keeps what it verified, says so, and goes on where it was."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rigs.command_line import fleetnas
from rigs.simulated_fleet import Simulation

from fleetnas.coordinator.app.driver import RunningSearch
from fleetnas.coordinator.records.events import CampaignFinished
from fleetnas.coordinator.records.outcome import CampaignOutcome
from fleetnas.coordinator.records.plan import CampaignPlan, settings_of
from fleetnas.coordinator.records.statuses import RunStatus, SettingStatus
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.report.conversion import run_status
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.view.lines import LinesView, event_line
from fleetnas.coordinator.view.summary import print_summary


def test_a_duration_that_cannot_be_used_is_refused_before_anything_is_opened(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = tmp_path / "runs.sqlite"
    line = ("search", "--local", "--supernet", "/nowhere.supernet", "--targets", "5", "--store", str(store))
    code, output, errors = fleetnas(capsys, *line, "--timeout", "2 days")
    assert (code, output) == (2, "")
    assert "--timeout '2 days' is no time; give such as 90s, 500ms, 2h or 1h30m" in errors
    assert not store.exists()


def fleet_of(run_id: str) -> Simulation:
    plan = CampaignPlan(targets=TargetRequest.parse("auto:3"), budget=16, prior="default", wait_for=2)
    fleet = Simulation(plan, run_id=run_id)
    for seed, name in enumerate(("pi4", "pi5")):
        fleet.add(name, seed=seed)
    return fleet


class ConnectedTransport:
    """The simulation's transport, as the driver wants it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def wait_connected(self, timeout_s: float) -> None:
        pass


class NoArtifacts:
    card_remark = ""

    def update(self, targets_stored: int) -> None:
        pass

    def write(self) -> None:
        return None

    def close(self) -> None:
        pass


def test_the_driver_ends_the_run_once_its_time_is_over() -> None:
    fleet = fleet_of("run-1")
    fleet.begin()
    settings = settings_of(fleet.store.run("run-1"))
    lines = io.StringIO()
    running = RunningSearch(
        settings,
        fleet.campaign,
        fleet.store,
        ConnectedTransport(fleet.transport),
        fleet.executor,  # type: ignore[arg-type]
        LinesView(lines),
        NoArtifacts(),  # type: ignore[arg-type]
        timeout_s=0.0,
    )
    assert running.run() is RunStatus.FAILED
    assert running.timed_out
    assert fleet.store.run("run-1").status is RunStatus.INTERRUPTED
    assert "run run-1 timed out after" in "".join(event_line(event) or "" for event in fleet.events)


def some_verified(fleet: Simulation) -> bool:
    statuses = [state.status for run in fleet.campaign.setting_runs.values() for state in run.search.targets]
    return TargetStatus.MET in statuses and TargetStatus.OPEN in statuses


def all_say_not_finished(outcome: CampaignOutcome) -> bool:
    """Whether the summary and the results of an interrupted run tell of nothing that runs."""
    console = Console(file=io.StringIO(), width=120)
    print_summary(console, outcome)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 device settings: 2 not finished" in text
    assert text.count(": not finished (timed out after 0:20), ") == 2
    status = run_status(outcome)
    assert status is RunStatus.INTERRUPTED
    return "running" not in text


def test_a_run_at_work_says_running() -> None:
    fleet = fleet_of("run-1")
    fleet.begin()
    fleet.run(until=lambda: some_verified(fleet))
    outcome = outcome_of(fleet.store, "run-1")
    console = Console(file=io.StringIO(), width=120)
    print_summary(console, outcome)
    assert "2 device settings: 2 running" in console.file.getvalue()  # type: ignore[attr-defined]
    assert run_status(outcome) is RunStatus.RUNNING


def test_what_is_verified_stands_and_the_rest_says_timed_out() -> None:
    fleet = fleet_of("run-1")
    fleet.begin()
    fleet.run(until=lambda: some_verified(fleet))
    verified = [
        (run.device, state.target_ms)
        for run in fleet.campaign.setting_runs.values()
        for state in run.search.targets
        if state.status is TargetStatus.MET
    ]
    fleet.campaign.finish(timed_out="timed out after 0:20")
    assert not any(agent.queue for agent in fleet.agents if agent.step() is None)  # their tasks are cancelled
    outcome = outcome_of(fleet.store, "run-1")
    assert fleet.store.run("run-1").status is RunStatus.INTERRUPTED
    met = [(device.device, target.target_ms) for device in outcome.devices for target in device.targets if target.met]
    assert sorted(met) == sorted(verified)
    for device in outcome.devices:
        assert device.status is SettingStatus.RUNNING
        for target in device.targets:
            if not target.met:
                assert target.reason == "timed out after 0:20"
    assert all_say_not_finished(outcome)
    end = fleet.events[-1]
    assert isinstance(end, CampaignFinished)
    assert (end.timed_out, end.status) == (True, RunStatus.PARTIAL)
    assert " timed out after " in (event_line(end) or "")
    shown = [
        target.reason
        for device in fleet.campaign.snapshot(fleet.clock.unix()).devices
        for target in device.targets
        if target.met is None
    ]
    assert shown
    assert set(shown) == {"timed out after 0:20"}


def test_a_resumed_run_ends_as_one_that_was_never_timed_out() -> None:
    whole = fleet_of("run-1")
    whole.begin()
    whole.run()
    whole.campaign.finish()
    early = fleet_of("run-1")
    early.begin()
    early.run(until=lambda: some_verified(early))
    early.campaign.finish(timed_out="timed out after 0:20")
    early.vanish()
    early.begin(resume=True)
    early.run()
    early.campaign.finish()

    def winners(fleet: Simulation) -> list[tuple[object, ...]]:
        return [
            (device.device, device.status, device.reason, target.target_ms, target.architecture, target.met)
            for device in outcome_of(fleet.store, "run-1").devices
            for target in device.targets
        ]

    assert winners(early) == winners(whole)
    assert early.store.run("run-1").status is RunStatus.COMPLETE
