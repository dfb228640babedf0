"""A new search that ends before a device joins leaves no run behind; what a device measured in stays."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rigs.simulated_fleet import Simulation

from fleetnas.coordinator.app.driver import RunningSearch
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.coordinator.report.stored_outcome import settings_of
from fleetnas.coordinator.view.lines import LinesView
from fleetnas.fleet_protocol.errors import CodeReplacedError, UsageError


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


def running(fleet: Simulation, *, is_new: bool) -> RunningSearch:
    return RunningSearch(
        settings_of(fleet.store.run("run-1")),
        fleet.campaign,
        fleet.store,
        ConnectedTransport(fleet.transport),
        fleet.executor,  # type: ignore[arg-type]
        LinesView(io.StringIO()),
        NoArtifacts(),  # type: ignore[arg-type]
        is_new=is_new,
    )


def refused(names: object) -> None:
    raise UsageError("--weights w.json names pi9")


def fleet_of() -> Simulation:
    fleet = Simulation(CampaignPlan(targets="5", budget=12, prior="default"), run_id="run-1")
    fleet.add("pi4")
    return fleet


@pytest.mark.parametrize("is_new", [True, False])
def test_a_new_run_that_is_refused_once_devices_are_there_is_deleted(is_new: bool) -> None:
    fleet = fleet_of()
    fleet.begin()
    fleet.campaign.membership.before_first(refused)
    tick = fleet.campaign.on_tick

    def passing() -> None:
        fleet.agents[0].step()
        fleet.clock.now_s += 1.0
        tick()

    fleet.campaign.on_tick = passing  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="names pi9"):
        running(fleet, is_new=is_new).run()
    # A run that somebody went on with by its name keeps that name.
    assert [run.status for run in fleet.store.runs()] == ([] if is_new else [RunStatus.INTERRUPTED])


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("timeout_s", [None, 0.0])
def test_a_new_run_that_is_stopped_before_a_device_joined_is_deleted(is_new: bool, timeout_s: float | None) -> None:
    fleet = fleet_of()
    fleet.begin()

    def stopped() -> None:
        raise KeyboardInterrupt

    fleet.campaign.on_tick = stopped  # type: ignore[method-assign]
    search = running(fleet, is_new=is_new)
    search.timeout_s = timeout_s
    assert search.run() is (RunStatus.INTERRUPTED if timeout_s is None else RunStatus.FAILED)
    assert search.deleted is is_new
    assert [run.status for run in fleet.store.runs()] == ([] if is_new else [RunStatus.INTERRUPTED])


def test_what_is_open_is_closed_after_what_fails_to_close() -> None:
    """The last turn of an agent in this process may find that its code was replaced."""
    fleet = fleet_of()
    fleet.begin()
    search = running(fleet, is_new=True)
    closed: list[str] = []

    class Broken:
        def close(self) -> None:
            closed.append("transport")
            raise CodeReplacedError("fleetnas was updated")

    class Open:
        def __init__(self, name: str) -> None:
            self._name = name

        def close(self) -> None:
            closed.append(self._name)

        def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
            assert wait
            assert cancel_futures
            closed.append(self._name)

    for name in ("artifacts", "view", "executor", "store"):
        setattr(search, name, Open(name))
    search.transport = Broken()  # type: ignore[assignment]
    with pytest.raises(CodeReplacedError):
        search.close()
    assert closed == ["artifacts", "view", "transport", "executor", "store"]


def test_a_run_that_a_device_joined_can_be_resumed_whatever_ended_it() -> None:
    fleet = fleet_of()
    fleet.begin()
    fleet.run(until=lambda: bool(fleet.agents[0].measured))

    def broken() -> None:
        raise RuntimeError("no more ticks")

    fleet.campaign.on_tick = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no more ticks"):
        running(fleet, is_new=True).run()
    assert fleet.store.run("run-1").status is RunStatus.INTERRUPTED
    assert fleet.store.devices("run-1")
