"""Calibrate one subnet: batch-norm statistics of its own, and for int8 the ranges of its activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Precision
from fleetnas.supernet_export.calibration.activation_ranges import observe_ranges
from fleetnas.supernet_export.calibration.blob import Calibration
from fleetnas.supernet_export.calibration.estimate import estimate_statistics
from fleetnas.supernet_export.graph import Array, Graph, Statistics

#: The graph of an architecture, with its own batch-norm statistics where they are given.
SliceSubnet: TypeAlias = Callable[[Architecture, Statistics | None], Graph]
#: The same images calibrate a subnet everywhere, so that one subnet has one file.
CALIBRATION_SEED = 0


def calibrate_subnet(
    slice_subnet: SliceSubnet,
    architecture: Architecture,
    batches: Callable[[], Iterable[Array]],
    precision: Precision = "fp32",
) -> Calibration:
    """Return what the images tell about a subnet; `batches` gives them anew, each (n, channels, height, width).

    `UsageError` where there are no images.
    """
    statistics = estimate_statistics(slice_subnet(architecture, None), batches())
    if precision == "fp32":
        return Calibration(statistics)
    return Calibration(statistics, observe_ranges(slice_subnet(architecture, statistics), batches()))
