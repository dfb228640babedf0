"""Small graphs with random weights, and both runtimes to run them in."""

from __future__ import annotations

import numpy as np
import pytest

from fleetnas.supernet_export.graph import (
    INPUT,
    OUTPUT,
    Activation,
    Array,
    BatchNorm,
    Conv,
    GlobalAveragePool,
    Graph,
    Layer,
    Linear,
)
from fleetnas.supernet_export.interpreters.onnxruntime import open_session

CHANNELS, CLASSES = 8, 5


class GraphBuilder:
    """Random layers, one after the other."""

    def __init__(self, side: tuple[int, int], rng: np.random.Generator, channels: int = CHANNELS) -> None:
        self.layers: list[Layer] = []
        self.side, self.rng, self.channels = side, rng, channels

    def conv(
        self,
        source: str,
        kernel: int = 1,
        stride: int = 1,
        *,
        inputs: int = CHANNELS,
        outputs: int = CHANNELS,
        depthwise: bool = False,
        padding: int | None = None,
        activation: Activation = "none",
        norm: bool = True,
    ) -> str:
        normal = self.rng.standard_normal
        depth = 1 if depthwise else inputs
        statistics = BatchNorm(
            *(self.rng.uniform(0.5, 1.5, outputs).astype(np.float32) for _ in range(3)),
            self.rng.uniform(0.5, 1.5, outputs).astype(np.float32),
            1e-5,
        )
        self.layers.append(
            Conv(
                name=f"conv{len(self.layers)}",
                source=source,
                weight=(normal((outputs, depth, kernel, kernel)) / kernel / np.sqrt(depth)).astype(np.float32),
                bias=None if norm else normal(outputs).astype(np.float32),
                norm=statistics if norm else None,
                stride=stride,
                padding=kernel // 2 if padding is None else padding,
                groups=outputs if depthwise else 1,
                activation=activation,
            )
        )
        return self.layers[-1].name

    def append(self, layer: Layer) -> str:
        self.layers.append(layer)
        return layer.name

    def classified(self, source: str, features: int = CHANNELS, classes: int = CLASSES) -> Graph:
        """The graph, closed by a global pool and a classifier."""
        self.append(GlobalAveragePool("pool", source))
        return self.flat("pool", features, classes)

    def flat(self, source: str, features: int, classes: int = CLASSES) -> Graph:
        """The graph, closed by a classifier of every value of `source`."""
        weight = self.rng.standard_normal((classes, features)).astype(np.float32)
        self.append(Linear("classifier", source, weight, self.rng.standard_normal(classes).astype(np.float32)))
        return Graph(tuple(self.layers), (self.channels, *self.side), classes)


def run_onnx(model: bytes, images: Array) -> Array:
    """Logits of images (n, channels, height, width)."""
    (logits,) = open_session(model).run([OUTPUT], {INPUT: images})
    return np.asarray(logits)


def run_tflite(model: bytes, images: Array) -> Array:
    """Logits of the same images: the model is fed them channels last."""
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = litert.Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (given["name"], wanted["name"]) == (INPUT, OUTPUT)
    assert (given["dtype"], wanted["dtype"]) == (np.float32, np.float32)
    interpreter.set_tensor(given["index"], images.transpose(0, 2, 3, 1))
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(wanted["index"]))
