"""A model file whose answer is known: the class of an image's brightness."""

from __future__ import annotations

import numpy as np

from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.graph import INPUT, GlobalAveragePool, Graph, Linear
from fleetnas.supernet_export.manifest import Preprocessing


def brightness_model(classes: int, side: int, preprocessing: Preprocessing, step: float = 10 / 255) -> bytes:
    """An ONNX file that answers with class `i` for images of brightness `step * i`."""
    levels = (step * np.arange(classes) - preprocessing.mean[0]) / preprocessing.std[0]
    # The nearest level: the largest of 2 * x * level - level ** 2.
    weight = np.zeros((classes, preprocessing.channels), np.float32)
    weight[:, 0] = 2 * levels
    head = Linear("classifier", "pool", weight, (-(levels**2)).astype(np.float32))
    return emit_onnx(Graph((GlobalAveragePool("pool", INPUT), head), (preprocessing.channels, side, side), classes))
