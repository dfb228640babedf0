"""Search a design space without any device, by a latency model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fleetnas.api.predictor import LatencyPredictor
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.search import engine
from fleetnas.coordinator.search.block_table import read_block_table
from fleetnas.coordinator.search.guided import GuidedSettings
from fleetnas.coordinator.search.latency import LatencyModel
from fleetnas.coordinator.search.offline import load_accuracy, read_latency
from fleetnas.coordinator.search.predictor_file import predictor_file_of
from fleetnas.coordinator.search.problem import AccuracyModel, Problem
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.registry import make_space

__all__ = ["design_space", "search"]


def design_space(name: str, **options: object) -> DesignSpace:
    """Make a registered design space, without weights.

    Args:
        name: such as `ofa-mbv3`, `ofa-proxyless`, `ofa-resnet50`, `compofa` or `digits`.
        options: of the space, such as `width=1.2` and `resolutions=[160, 192, 224]` (pixels).

    Raises:
        UsageError: there is no such space, or it does not take an option.
    """
    return make_space(name, options)


def search(
    space: DesignSpace | SupernetBundle,
    latency: LatencyPredictor | LatencyModel | Path | str,
    targets_ms: Sequence[float],
    *,
    accuracy: Path | str | None = None,
    strategy: Strategy | str = Strategy.JOINT,
    bounds: Bounds | None = None,
    islands: int = 1,
    seed: int = 0,
) -> engine.SearchResult:
    """Find the most accurate subnet that is predicted to be within each latency target.

    Nothing is measured: the result holds predictions, and `search_fleet` verifies its winners on devices.

    Args:
        space: a design space, or a bundle of it.
        latency: a fitted predictor, any latency model, or a path: what `fleetnas export-latency` wrote, or a block
            latency table (a folder of `<resolution>_lookup_table.yaml`, or one YAML file).
        targets_ms: one or more targets, ms, in any order.
        accuracy: a file with an accuracy predictor (`.pth`, `.supernet`, `.safetensors`) or with evaluated subnets
            (`.csv`, `.jsonl`), of which the best win. Without it the bundle's own predictor is taken.
        strategy: `joint`, `bottom-up`, `top-down`, `independent`, or `exhaustive` for small spaces.
        bounds: the most that a subnet may cost beside its latency.
        islands: separate searches that are merged pair by pair. Twice the islands take twice the time, and find better
            subnets.
        seed: of all random choices; the same seed gives the same result.

    Returns:
        One winner per target, in the order given, and the Pareto front: `front_top1` and `front_latency_ms` of shape
        (m,), fastest first.

    Raises:
        InfeasibleTargetError: no subnet meets the smallest target or keeps the bounds; names the fastest one.
        UsageError: there is no such strategy or no accuracy predictor, a target is not above 0, or the latency table is
            of another space.
    """
    searched = space.space if isinstance(space, SupernetBundle) else space
    return engine.search(
        Problem(searched, _accuracy_model(space, accuracy), _latency_model(searched, latency), bounds),
        targets_ms,
        rng=np.random.default_rng(seed),
        strategy=_strategy(strategy),
        engine=GuidedSettings(islands=islands),
    )


def _strategy(name: Strategy | str) -> Strategy:
    try:
        return Strategy(name)
    except ValueError:
        raise UsageError(f"no search strategy is called {name!r}; there are {', '.join(Strategy)}") from None


def _accuracy_model(
    space: DesignSpace | SupernetBundle, accuracy: Path | str | None
) -> AccuracyModel | AccuracyPredictor:
    if accuracy is not None:
        return load_accuracy(Path(accuracy), space.space if isinstance(space, SupernetBundle) else space)
    predictor = space.accuracy_predictor() if isinstance(space, SupernetBundle) else None
    if predictor is None:
        raise UsageError(
            "no subnet is known to be better than another without an accuracy predictor: name a file of one, or put "
            "one into the bundle (`fleetnas accuracy fit --help`)"
        )
    return predictor


def _latency_model(space: DesignSpace, latency: LatencyPredictor | LatencyModel | Path | str) -> LatencyModel:
    if isinstance(latency, LatencyPredictor):
        return latency.latency_model()
    if not isinstance(latency, (Path, str)):
        return latency
    if predictor_file_of(Path(latency)) is not None:
        return read_latency(Path(latency), space)
    if not isinstance(space, MBConvSpace):
        raise UsageError(
            f"there is no block latency table for {space.name}: fit a LatencyPredictor, or search on devices"
        )
    return read_block_table(latency, space)
