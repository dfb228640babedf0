"""Build a model file from a bundle and an architecture, on the device."""

from __future__ import annotations

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError
from fleetnas.fleet_protocol.installing import install_package
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.calibration.blob import Calibration, load_calibration
from fleetnas.supernet_export.graph import Graph
from fleetnas.supernet_export.quantisation import Ranges, nominal_ranges
from fleetnas.supernet_export.slicing.subnet import slice_subnet

#: Runtimes that take TFLite; the others take ONNX.
_TFLITE_RUNTIMES = frozenset({"litert", "adb"})


def build_model(
    bundle: SupernetBundle, architecture: Architecture, calibration: bytes | None, setting: RuntimeSetting
) -> bytes:
    """Return the model file of a subnet in the format and precision of `setting`.

    `calibration` is what a winner was calibrated with. Without it, int8 takes the ranges that batch norm implies: right
    for latency, not for shipping. The same inputs give the same bytes here and on the coordinator.
    """
    known = load_calibration(calibration) if calibration is not None else Calibration()
    graph = slice_subnet(bundle, architecture, known.statistics)
    if setting.precision == "fp32":
        return emit(graph, setting.runtime)
    return emit(graph, setting.runtime, known.ranges or nominal_ranges(graph))


def emit(graph: Graph, runtime: str, ranges: Ranges | None = None, *, batch: int | None = 1) -> bytes:
    """Return the model file of a graph in the format of `runtime`; int8 if `ranges` of its activations are given.

    A `batch` of None leaves it open, in ONNX only.
    """
    if runtime in _TFLITE_RUNTIMES:
        from fleetnas.supernet_export.emitters.tflite import emit_tflite

        return emit_tflite(graph, ranges=ranges, batch=batch or 1)
    try:
        from fleetnas.supernet_export.emitters.onnx import emit_onnx
        from fleetnas.supernet_export.emitters.onnx_int8 import emit_int8_onnx
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"building ONNX models needs the onnx package ({error}); run: {install_package('onnx')}"
        ) from error
    return emit_onnx(graph, batch=batch) if ranges is None else emit_int8_onnx(graph, ranges, batch=batch)
