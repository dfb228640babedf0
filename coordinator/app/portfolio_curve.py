"""The curve of a stored run's portfolios, from the store's location and the run's id alone."""

from __future__ import annotations

from collections.abc import Sequence

from fleetnas.coordinator.app.portfolio import open_portfolio
from fleetnas.coordinator.records.plan import settings_of
from fleetnas.coordinator.search.portfolio import Portfolio
from fleetnas.coordinator.search.problem import PredictedAccuracy
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.bundle import SupernetBundle


def stored_curve(location: str, run_id: str) -> tuple[Sequence[Portfolio], int]:
    """Return the portfolios of 1, 2, ... models of a stored search, and the number of its targets.

    Raises:
        UsageError: there is no such search, it has no targets yet, or its bundle has no accuracy predictor.
        BundleError: the bundle that it searched is no longer there.
    """
    store = MeasurementStore.open(location, to_read=True)
    try:
        bundle = SupernetBundle.open(settings_of(store.run(run_id)).supernet_path)
        predictor = bundle.accuracy_predictor()
        if predictor is None:
            raise UsageError(f"{bundle.path} holds no accuracy predictor, so no subnet is known to be better")
        problem = open_portfolio(store, run_id, PredictedAccuracy(bundle.space, predictor))
        return problem.curve(), len(problem.demands)
    finally:
        store.close()
