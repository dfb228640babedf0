"""The times of a winner's layers, as a bar by operator and a table of the slowest layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleetnas.coordinator.report.drawing import SERIES
from fleetnas.fleet_protocol.layer_times import LayerTime

#: Layers that a table lists; the others are summed.
MOST_ROWS = 15
#: Operators that have a part of their own in the bar.
_MOST_OPERATORS = len(SERIES) - 1
_OTHERS = "others"


@dataclass(frozen=True)
class OperatorShare:
    """The part of one kind of layer."""

    op: str
    layers: int
    share: float
    """Of the time of all layers."""
    colour: str
    """Name of the page's variable."""


@dataclass(frozen=True)
class LayerRow:
    """One layer."""

    name: str
    op: str
    mean_us: float
    share: float


@dataclass(frozen=True)
class LayerTable:
    """The profile of one model file."""

    total_ms: float
    layers: int
    operators: tuple[OperatorShare, ...]
    """The slowest kind first."""
    rows: tuple[LayerRow, ...]
    """The slowest first."""
    others_us: float
    """All layers that have no row."""


def layer_table(layers: Sequence[LayerTime]) -> LayerTable | None:
    """Return the table of a profile; None where there is none."""
    total_us = sum(layer.mean_us for layer in layers)
    if not total_us:
        return None
    slowest = sorted(layers, key=lambda layer: -layer.mean_us)
    rows = tuple(LayerRow(each.name, each.op, each.mean_us, each.mean_us / total_us) for each in slowest[:MOST_ROWS])
    others_us = sum(layer.mean_us for layer in slowest[MOST_ROWS:])
    return LayerTable(total_us / 1000, len(layers), _operators(layers, total_us), rows, others_us)


def _operators(layers: Sequence[LayerTime], total_us: float) -> tuple[OperatorShare, ...]:
    times: dict[str, list[float]] = {}
    for layer in layers:
        times.setdefault(layer.op or _OTHERS, []).append(layer.mean_us)
    ordered = sorted(times.items(), key=lambda item: -sum(item[1]))
    if len(ordered) > _MOST_OPERATORS:
        rest = [time for _, found in ordered[_MOST_OPERATORS:] for time in found]
        ordered = [*ordered[:_MOST_OPERATORS], (_OTHERS, rest)]
    return tuple(
        OperatorShare(op, len(found), sum(found) / total_us, SERIES[index]) for index, (op, found) in enumerate(ordered)
    )
