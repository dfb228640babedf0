"""Small model files of a user's own, and hostile ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, CLASSES = 3, 10


def onnx_model(
    side: int = 8,
    *,
    open_sides: bool = False,
    domain: str = "",
    operator: str = "Relu",
    classes: int = CLASSES,
    channels: int = CHANNELS,
) -> bytes:
    """A pooling classifier; its operator `operator` is of `domain`."""
    weights = np.random.default_rng(0).normal(size=(channels, classes)).astype(np.float32)
    sides: list[Any] = ["n", channels, "h", "w"] if open_sides else [1, channels, side, side]
    nodes = [
        helper.make_node(operator, ["input"], ["active"], domain=domain),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mine",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [sides[0], classes])],
        [numpy_helper.from_array(weights, "weights")],
    )
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def changed(content: bytes, change: Any) -> bytes:
    """An ONNX model after `change` was applied to it."""
    model = onnx.load_model_from_string(content)
    change(model)
    return model.SerializeToString()


def keep_weights_elsewhere(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def claim_two_gigabytes(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [1 << 14, 1 << 15]
