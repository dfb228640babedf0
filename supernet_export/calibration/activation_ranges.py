"""Observe the ranges of a subnet's activations in onnxruntime on calibration images."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.emitters.onnx import OPEN_BATCH, OnnxWriter
from fleetnas.supernet_export.graph import (
    INPUT,
    OUTPUT,
    Activation,
    Add,
    Array,
    AveragePool,
    Conv,
    Graph,
    Layer,
    MaxPool,
)
from fleetnas.supernet_export.interpreters.onnxruntime import open_session
from fleetnas.supernet_export.quantisation import PRE


def observe_ranges(graph: Graph, batches: Iterable[Array], *, threads: int = 1) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest values of the graph's activations over preprocessed images.

    A batch has shape (n, channels, height, width). `UsageError` where there is none.
    """
    writer = _RangeWriter(graph)
    for layer in graph.layers:
        writer.add(layer)
    session = open_session(writer.finish(), threads=threads)
    names = [output for _, lowest_highest in writer.observed for output in lowest_highest]
    found = [np.stack(session.run(names, {INPUT: batch})).reshape(-1, 2) for batch in batches if len(batch)]
    if not found:
        raise UsageError("activation ranges cannot be observed on no images; give at least one")
    low = np.min([extremes[:, 0] for extremes in found], axis=0).tolist()
    high = np.max([extremes[:, 1] for extremes in found], axis=0).tolist()
    return dict(zip((name for name, _ in writer.observed), zip(low, high, strict=True), strict=True))


class _RangeWriter(OnnxWriter):
    """Adds outputs with the lowest and highest value of every tensor that is quantised."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph, OPEN_BATCH)
        #: Tensors' names in `Ranges`, each with its two outputs' names.
        self.observed: list[tuple[str, tuple[str, str]]] = []
        self._last = graph.layers[-1]
        self._observe(INPUT, INPUT)

    def add(self, layer: Layer) -> None:
        super().add(layer)
        if _has_own_range(layer):
            self._observe(layer.name, OUTPUT if layer is self._last else layer.name)

    def activation(self, activation: Activation, source: str, output: str) -> None:
        super().activation(activation, source, output)
        if activation == "h_swish":
            self._observe(output + PRE, source)

    def _observe(self, name: str, tensor: str) -> None:
        outputs = f"{name}/lowest", f"{name}/highest"
        for kind, output in zip(("ReduceMin", "ReduceMax"), outputs, strict=True):
            self.node(kind, [tensor], output, keepdims=0)
            self.output(output, [])
        self.observed.append((name, outputs))


def _has_own_range(layer: Layer) -> bool:
    """Whether a layer's range is observed: pools keep their input's scale, and a hard sigmoid's range is known."""
    return not (
        isinstance(layer, MaxPool | AveragePool) or (isinstance(layer, Conv | Add) and layer.activation == "h_sigmoid")
    )
