"""Stores on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs import postgresql
from rigs.simulated_fleet import Simulation

from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.store.store import MeasurementStore


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.PostgreSQL]:
    """One private cluster for all tests."""
    with postgresql.cluster() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: postgresql.PostgreSQL) -> Iterator[str]:
    """An empty database of it."""
    with postgresql_server.database() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=postgresql.on_postgresql)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store on each database."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgresql_url")
        return url
    return f"sqlite:///{tmp_path / 'runs.sqlite'}"


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of one simulated run with two devices, of which one was lost."""
    path = tmp_path_factory.mktemp("store") / "runs.sqlite"
    simulation = Simulation(
        CampaignPlan(targets="auto:2", budget=10, initial_design=6, wait_for=2, grace_s=5),
        store=MeasurementStore.open(path),
    )
    simulation.add("pi0")
    simulation.add("pi1", seed=1)
    simulation.begin()
    simulation.run(until=lambda: len(simulation.store.outcomes("run-1")) >= 8)
    simulation.agents.pop()
    simulation.broker.cut("pi1")
    simulation.run()
    simulation.campaign.finish()
    simulation.store.close()
    return path
