"""A block latency table of OFA-ResNet50 measured on this machine: no public one exists.

Each distinct block (stem, bottleneck, head) runs alone in onnxruntime on one thread, batch 1, with random weights; the
table holds medians. Blocks of one stage that differ in nothing share a measurement.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fleetnas.coordinator.search.latency import SlotTableLatency
from fleetnas.supernet_export.interpreters.onnxruntime import import_onnxruntime
from fleetnas.supernet_export.spaces.mbconv_network import reduced
from fleetnas.supernet_export.spaces.ofa_resnet50 import EXPANDS, STEM_DEPTHS, WIDTHS, OfaResNet50Space, ResNetBlock


class _Network:
    """A few layers as an ONNX model."""

    def __init__(self, channels: int, side: int) -> None:
        self._rng = np.random.default_rng(0)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._input = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, channels, side, side])
        self._channels = {"input": channels}

    def _node(self, kind: str, inputs: list[str], channels: int, **attributes: Any) -> str:
        name = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        self._channels[name] = channels
        return name

    def _weight(self, *shape: int) -> str:
        name = f"w{len(self._weights)}"
        value = self._rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        self._weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def conv(self, source: str, out: int, kernel: int, stride: int = 1, *, relu: bool = True) -> str:
        weight, bias = self._weight(out, self._channels[source], kernel, kernel), self._weight(out)
        made = self._node(
            "Conv", [source, weight, bias], out, pads=[kernel // 2] * 4, strides=[stride] * 2, kernel_shape=[kernel] * 2
        )
        return self._node("Relu", [made], out) if relu else made

    def add(self, left: str, right: str) -> str:
        total = self._node("Add", [left, right], self._channels[left])
        return self._node("Relu", [total], self._channels[left])

    def pool(self, source: str, kind: str, kernel: int, stride: int, padding: int) -> str:
        return self._node(
            kind, [source], self._channels[source], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4,
            ceil_mode=int(kind == "AveragePool"),
        )  # fmt: skip

    def head(self, source: str, classes: int) -> str:
        pooled = self._node("GlobalAveragePool", [source], self._channels[source])
        flat = self._node("Flatten", [pooled], self._channels[source])
        return self._node(
            "Gemm", [flat, self._weight(classes, self._channels[source]), self._weight(classes)], classes, transB=1
        )

    def latency_ms(self, output: str, runs: int) -> float:
        """Median milliseconds of a run."""
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self._nodes, "block", [self._input], outputs, self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        shape = [part.dim_value for part in self._input.type.tensor_type.shape.dim]
        feed = {"input": self._rng.standard_normal(shape).astype(np.float32)}
        session.run(None, feed)
        taken = []
        for _ in range(runs):
            started = time.perf_counter()
            session.run(None, feed)
            taken.append(time.perf_counter() - started)
        return 1e3 * float(np.median(taken))


def measure(space: OfaResNet50Space, runs: int = 5) -> SlotTableLatency:
    """The table of `space`: hundreds of measurements, about a minute for four resolutions."""
    widths = range(len(WIDTHS))
    stem = [
        _stem_ms(r, depth > 0, space.stem_middle_widths[i], space.stem_widths[j], runs)
        for r in space.resolutions
        for depth in STEM_DEPTHS
        for i in widths
        for j in widths
    ]
    tables: list[NDArray[np.float64]] = [np.array(stem)]
    later: dict[int, NDArray[np.float64]] = {}
    for block in space.block_list:
        if block.position > 1:
            tables.append(later[block.stage])
            continue
        table = _block_table(space, block, runs)
        later[block.stage] = table
        tables.append(table)
    head = [_head_ms(r, width, runs) for r in space.resolutions for width in space.stage_widths[-1]]
    return SlotTableLatency(space, 0.0, [*tables, np.array(head)])


def _block_table(space: OfaResNet50Space, block: ResNetBlock, runs: int) -> NDArray[np.float64]:
    out = space.stage_widths[block.stage]
    entering = space.stem_widths if block.stage == 0 else space.stage_widths[block.stage - 1]
    found = [0.0]
    for r in space.resolutions:
        for before in entering if block.first else (0,):
            for j, width in enumerate(out):
                for expand in EXPANDS:
                    middle = space.middle_width(block.stage, j, expand)
                    found.append(
                        _bottleneck_ms(before or width, middle, width, block, reduced(r, block.reduction), runs)
                    )
    return np.array(found)


def _stem_ms(r: int, middle: bool, inner: int, out: int, runs: int) -> float:
    network = _Network(3, r)
    x = network.conv("input", inner, 3, 2)
    if middle:
        x = network.add(network.conv(x, inner, 3), x)
    x = network.pool(network.conv(x, out, 3), "MaxPool", 3, 2, 1)
    return network.latency_ms(x, runs)


def _bottleneck_ms(in_width: int, middle: int, out: int, block: ResNetBlock, side: int, runs: int) -> float:
    network = _Network(in_width, side)
    x = network.conv(network.conv("input", middle, 1), middle, 3, block.stride)
    x = network.conv(x, out, 1, relu=False)
    shortcut = "input"
    if block.first:
        if block.stride > 1:
            shortcut = network.pool(shortcut, "AveragePool", 2, 2, 0)
        shortcut = network.conv(shortcut, out, 1, relu=False)
    return network.latency_ms(network.add(x, shortcut), runs)


def _head_ms(r: int, width: int, runs: int) -> float:
    network = _Network(width, reduced(r, 32))
    return network.latency_ms(network.head("input", OfaResNet50Space().classes), runs)
