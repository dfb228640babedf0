"""Write ONNX models whose batch norms use the statistics of their batch and output them."""

from __future__ import annotations

import numpy as np

from fleetnas.supernet_export.emitters.onnx import OPEN_BATCH, OnnxWriter
from fleetnas.supernet_export.graph import Conv, Graph


def emit_statistics(graph: Graph) -> tuple[bytes, list[str]]:
    """Return a model for any batch size, and the names of its outputs: mean and variance of each batch norm, in order.

    A mean or (biased) variance has shape (1, channels, 1, 1); the logits are one more output.
    """
    writer = _StatisticsWriter(graph)
    for layer in graph.layers:
        writer.add(layer)
    return writer.finish(), writer.statistics


class _StatisticsWriter(OnnxWriter):
    def __init__(self, graph: Graph) -> None:
        super().__init__(graph, OPEN_BATCH)
        self.statistics: list[str] = []

    def conv(self, layer: Conv, output: str) -> None:
        if layer.norm is None:
            super().conv(layer, output)
            return
        name, channels = layer.name, len(layer.weight)
        inputs = [layer.source, f"{name}.weight"]
        self.tensor(f"{name}.weight", layer.weight)
        if layer.bias is not None:
            inputs.append(f"{name}.bias")
            self.tensor(f"{name}.bias", layer.bias)
        self.convolve(layer, inputs, f"{name}/conv")

        self._mean(f"{name}/conv", f"{name}/mean")
        self.node("Sub", [f"{name}/conv", f"{name}/mean"], f"{name}/centred")
        self.node("Mul", [f"{name}/centred", f"{name}/centred"], f"{name}/squared")
        self._mean(f"{name}/squared", f"{name}/variance")
        for statistic in (f"{name}/mean", f"{name}/variance"):
            self.output(statistic, [1, channels, 1, 1])
            self.statistics.append(statistic)

        self.tensor(f"{name}.gamma", layer.norm.gamma.reshape(1, -1, 1, 1))
        self.tensor(f"{name}.beta", layer.norm.beta.reshape(1, -1, 1, 1))
        self.constant(f"epsilon.{layer.norm.epsilon:g}", np.float32(layer.norm.epsilon))
        self.node("Add", [f"{name}/variance", f"epsilon.{layer.norm.epsilon:g}"], f"{name}/shifted")
        self.node("Sqrt", [f"{name}/shifted"], f"{name}/deviation")
        self.node("Div", [f"{name}.gamma", f"{name}/deviation"], f"{name}/scale")
        self.node("Mul", [f"{name}/centred", f"{name}/scale"], f"{name}/scaled")
        normalised = output if layer.activation == "none" else f"{name}/normalised"
        self.node("Add", [f"{name}/scaled", f"{name}.beta"], normalised)
        self.activation(layer.activation, normalised, output)

    def _mean(self, source: str, output: str) -> None:
        self.node("ReduceMean", [source], output, axes=[0, 2, 3], keepdims=1)
