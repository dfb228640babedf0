"""Search a design space without any device, by a latency model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fleetnas.api.predictor import LatencyPredictor
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.search import engine
from fleetnas.coordinator.search.block_table import read_block_table
from fleetnas.coordinator.search.latency import LatencyModel
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace

__all__ = ["search"]


def search(
    bundle: SupernetBundle,
    latency: LatencyPredictor | LatencyModel | Path | str,
    targets_ms: Sequence[float],
    *,
    strategy: engine.Strategy = "joint",
    margin: float = 0.0,
    bounds: Bounds | None = None,
    seed: int = 0,
) -> engine.SearchResult:
    """Find the most accurate subnet that is predicted to be within each latency target.

    Nothing is measured: the result holds predictions, and `search_fleet` verifies its winners on devices.

    Args:
        bundle: a bundle with an accuracy predictor.
        latency: a fitted predictor, any latency model, or the path of a block latency table (a folder of
            `<resolution>_lookup_table.yaml`, or one YAML file).
        targets_ms: one or more targets, ms, in any order.
        strategy: `joint`, `bottom-up`, `top-down`, `independent`, or `exhaustive` for small spaces.
        margin: standard deviations that are added to a predictor's mean before it is compared with a target.
        bounds: the most that a subnet may cost beside its latency.
        seed: of all random choices; the same seed gives the same result.

    Returns:
        One winner per target in the order given, and the Pareto front of all m evaluated subnets that are on it:
        `front_top1` and `front_latency_ms`, (m,), fastest first.

    Raises:
        InfeasibleTargetError: no subnet meets the smallest target or keeps the bounds; names the fastest one.
        UsageError: the bundle has no accuracy predictor, a target is not above 0, the latency table does not fit.
    """
    accuracy = bundle.accuracy_predictor()
    if accuracy is None:
        raise UsageError(
            f"{bundle.path} holds no accuracy predictor, so no subnet is known to be better than another; export it "
            "with one (`fleetnas export --help`)"
        )
    return engine.search(
        bundle.space,
        accuracy,
        _latency_model(bundle, latency, margin),
        targets_ms,
        rng=np.random.default_rng(seed),
        strategy=strategy,
        bounds=bounds,
    )


def _latency_model(
    bundle: SupernetBundle, latency: LatencyPredictor | LatencyModel | Path | str, margin: float
) -> LatencyModel:
    if isinstance(latency, LatencyPredictor):
        return latency.latency_model(margin=margin)
    if not isinstance(latency, (Path, str)):
        return latency
    if not isinstance(bundle.space, MBConvSpace):
        raise UsageError(
            f"there is no block latency table for {bundle.space.name}: fit a LatencyPredictor, or search on devices"
        )
    return read_block_table(latency, bundle.space)
