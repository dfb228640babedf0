"""Whether onnxruntime adds up products of 8-bit integers exactly on this processor.

Its kernels for x86 without VNNI add pairs of products in 16 bits, where large ones saturate. Source: its guide
to quantisation, "When and why do I need to try U8U8?".
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleetnas.supernet_export.interpreters.onnxruntime import import_onnxruntime

_LENGTH, _WIDTH = 64, 16


def _saturates() -> bool:
    weights = numpy_helper.from_array(np.full((_LENGTH, _WIDTH), 127, np.int8), "b")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "products",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [1, _LENGTH])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, _WIDTH])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    session = import_onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"a": np.full((1, _LENGTH), 255, np.uint8)})
    return bool((found != _LENGTH * 255 * 127).any())


exact_int8 = pytest.mark.skipif(
    _saturates(), reason="onnxruntime's 8-bit kernels saturate on this processor (x86 without VNNI)"
)
