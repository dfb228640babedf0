"""A fleet search from Python, as an iterator of events, on a real agent and a real broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fleetnas
from fleetnas.coordinator.app import demo
from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
from fleetnas.coordinator.records.events import CampaignFinished, CampaignStarted, MeasurementTaken, WinnerVerified
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import BrokerUnreachableError, UsageError
from fleetnas.fleet_protocol.messages import MeasurementProtocol

pytestmark = pytest.mark.xdist_group("endtoend")

PLAN = fleetnas.CampaignPlan(
    targets="1000",
    budget=3,
    wait_for=1,
    protocol=MeasurementProtocol(warmup_s=0.01, min_s=0.02, min_runs=3, max_s=1.0),
)


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("FLEETNAS_HOST_LOCK", str(tmp_path / "lock"))
    fleetnas.export_digits(tmp_path / "digits.supernet")
    with EmbeddedBroker(port=0) as running, demo.agents(running.address, tmp_path, [("alone", ("--threads", "1"))]):
        yield str(running.address)


def test_a_fleet_search_yields_typed_events_to_its_end(broker: str, tmp_path: Path) -> None:
    search = fleetnas.search_fleet(
        tmp_path / "digits.supernet", broker, PLAN, store=str(tmp_path / "runs.sqlite"), out=tmp_path / "out"
    )
    events = list(search)
    for kind in (CampaignStarted, MeasurementTaken):
        assert any(isinstance(event, kind) for event in events)
    (winner,) = (event for event in events if isinstance(event, WinnerVerified))
    assert winner.verified_ms <= 1000
    assert isinstance(events[-1], CampaignFinished)
    assert fleetnas.read_results(tmp_path / "out").fleet[0].targets[0].sha256 == winner.sha256


def test_a_closed_iterator_leaves_a_run_to_be_resumed(broker: str, tmp_path: Path) -> None:
    search = fleetnas.search_fleet(tmp_path / "digits.supernet", broker, PLAN, store=str(tmp_path / "runs.sqlite"))
    for event in search:
        if isinstance(event, MeasurementTaken):
            break
    search.close()
    store = MeasurementStore.open(str(tmp_path / "runs.sqlite"))
    try:
        assert [run.status for run in store.runs()] == ["interrupted"]
    finally:
        store.close()


def test_errors_of_a_fleet_search_reach_its_caller(tmp_path: Path) -> None:
    fleetnas.export_digits(tmp_path / "digits.supernet")
    with pytest.raises(BrokerUnreachableError):
        next(fleetnas.search_fleet(tmp_path / "digits.supernet", "localhost:1", PLAN, store=":memory:"))
    with pytest.raises(UsageError):
        next(fleetnas.search_fleet(tmp_path / "digits.supernet", "user@host", PLAN, store=":memory:"))
