"""Open a supernet bundle, and build subnets out of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Precision
from fleetnas.fleet_protocol.orders import ModelFormat
from fleetnas.supernet_export import export
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.calibration.activation_ranges import observe_ranges
from fleetnas.supernet_export.calibration.estimate import estimate_statistics
from fleetnas.supernet_export.evaluation.images import ImageSource, open_images
from fleetnas.supernet_export.graph import Array, Graph
from fleetnas.supernet_export.model_file import emit
from fleetnas.supernet_export.quantisation import nominal_ranges
from fleetnas.supernet_export.slicing import subnet as slicing

__all__ = ["Architecture", "emit_subnet", "export_digits", "open_bundle", "slice_subnet"]

#: The runtime for which each format is written.
_RUNTIMES = {"onnx": "onnxruntime", "tflite": "litert"}
#: Calibration takes the same images every time, so that a subnet has one file.
_CALIBRATION_SEED = 0


def export_digits(path: Path | str) -> SupernetBundle:
    """Write the built-in supernet for scikit-learn's 8x8 digits as a bundle, and open it.

    Args:
        path: the `.supernet` file to write, 3.7 MB. The same bytes are written every time.

    Raises:
        OSError: the file cannot be written.
    """
    export.export_digits(Path(path))
    return open_bundle(path)


def open_bundle(path: Path | str, *, sha256: str | None = None) -> SupernetBundle:
    """Open a `.supernet` file; its weights are mapped, not copied.

    Args:
        path: the file that `fleetnas export` wrote.
        sha256: the hash that the whole file must have, 64 hexadecimal digits. Without it, the content must have the
            digest that the file carries.

    Returns:
        The bundle: `space` is its design space, whose `sample`, `decode` and `encode` make architectures, and
        `accuracy_predictor()` predicts top-1.

    Raises:
        CorruptBundleError: the file is no bundle, or was altered.
        HashMismatchError: the file does not have the given hash.
    """
    return SupernetBundle.open(path, expected_sha256=sha256)


def slice_subnet(
    bundle: SupernetBundle, architecture: Architecture, *, calibration_images: Path | str | None = None
) -> Graph:
    """Cut a subnet with its weights out of the supernet, without torch.

    Args:
        bundle: an open bundle.
        architecture: a point of the bundle's design space.
        calibration_images: a folder with one folder of images per class; batch norm is re-estimated on at most 2,000 of
            them. The digits need no folder. Without images the subnet keeps the supernet's statistics: its latency is
            right, and its accuracy is not.

    Returns:
        The layers in order, with float32 weights and batch norm.

    Raises:
        ArchitectureError: the architecture is not in the design space.
        UsageError: an image cannot be read.
    """
    images = _images(bundle, calibration_images)
    graph = slicing.slice_subnet(bundle, architecture)
    if images is None:
        return graph
    return slicing.slice_subnet(bundle, architecture, estimate_statistics(graph, _batches(images, architecture)))


def emit_subnet(
    bundle: SupernetBundle,
    architecture: Architecture,
    *,
    model_format: ModelFormat = "onnx",
    precision: Precision = "fp32",
    calibration_images: Path | str | None = None,
) -> bytes:
    """Build the model file of a subnet, batch 1. The same inputs give the same bytes on every machine.

    Args:
        bundle: an open bundle.
        architecture: a point of the bundle's design space.
        model_format: `onnx`, or `tflite` for LiteRT.
        precision: `fp32` or `int8`.
        calibration_images: as `slice_subnet` takes them; int8 takes the ranges of activations from them too. Without
            images, int8 takes the ranges that batch norm implies.

    Returns:
        The content of the file.

    Raises:
        ArchitectureError: the architecture is not in the design space.
        RuntimeUnavailableError: the package that writes the format is not installed.
        UsageError: an image cannot be read.
    """
    graph = slice_subnet(bundle, architecture, calibration_images=calibration_images)
    if precision == "fp32":
        return emit(graph, _RUNTIMES[model_format])
    images = _images(bundle, calibration_images)
    ranges = nominal_ranges(graph) if images is None else observe_ranges(graph, _batches(images, architecture))
    return emit(graph, _RUNTIMES[model_format], ranges)


def _images(bundle: SupernetBundle, folder: Path | str | None) -> ImageSource | None:
    if folder is None and not bundle.manifest.is_digits:
        return None
    return open_images(bundle, Path(folder) if folder is not None else None, "calibration")


def _batches(images: ImageSource, architecture: Architecture) -> Iterator[Array]:
    return images.calibration_batches(architecture.r, np.random.default_rng(_CALIBRATION_SEED))
