"""TFLite models against onnxruntime on the ONNX model of the same graph."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from rigs.logit_parity import (
    KINDS,
    TOLERANCE,
    assert_equal_logits,
    disagreement,
    layers_of,
    perturbed,
    photo_like,
)
from rigs.random_graphs import GraphBuilder, run_onnx, run_tflite
from rigs.supernets import random_state_dict

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.calibration.estimate import estimate_statistics
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.emitters.tflite import emit_tflite
from fleetnas.supernet_export.export import export_state_dict
from fleetnas.supernet_export.graph import (
    INPUT,
    Activation,
    Add,
    Array,
    AveragePool,
    Conv,
    GlobalAveragePool,
    Graph,
    MaxPool,
    Scale,
)
from fleetnas.supernet_export.slicing.families import slicer_for
from fleetnas.supernet_export.spaces.registry import make_space, space_names

pytest.importorskip("tflite")
pytest.importorskip("ai_edge_litert.interpreter")


def relative_difference(graph: Graph, rng: np.random.Generator, batch: int = 2) -> float:
    """How far the two runtimes' logits are apart, on noise."""
    images = rng.standard_normal((batch, *graph.input_shape)).astype(np.float32)
    wanted = run_onnx(emit_onnx(graph, batch=batch), images)
    assert wanted.shape == (batch, graph.classes)
    return disagreement(run_tflite(emit_tflite(graph, batch=batch), images), wanted)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_convolution_pads_as_pytorch_does(kernel: int, stride: int, depthwise: bool, rng: np.random.Generator) -> None:
    for side in [(8, 8), (9, 9), (11, 14), (7, 7)]:
        # No pooling before the classifier: a shift by one pixel must show.
        build = GraphBuilder(side, rng)
        name = build.conv(INPUT, kernel, stride, depthwise=depthwise)
        pixels = -(-side[0] // stride) * -(-side[1] // stride)
        build.conv(name, outputs=1)
        graph = build.flat(build.layers[-1].name, pixels)
        assert relative_difference(graph, rng) <= 1e-4, side


@pytest.mark.parametrize(("kernel", "padding"), [(3, 0), (5, 1), (3, 2), (1, 1)])
def test_padding_other_than_half_the_kernel(kernel: int, padding: int, rng: np.random.Generator) -> None:
    for stride in (1, 2):
        for side in (9, 10):
            build = GraphBuilder((side, side), rng)
            graph = build.classified(build.conv(INPUT, kernel, stride, padding=padding, activation="relu"))
            assert relative_difference(graph, rng) <= 1e-4, (stride, side)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "h_swish", "h_sigmoid"])
def test_activation(activation: Activation, rng: np.random.Generator) -> None:
    build = GraphBuilder((6, 6), rng)
    wide = build.conv(INPUT, 3, activation=activation, norm=False)
    graph = build.classified(build.conv(wide, activation=activation))
    # Values far beyond where the activations bend.
    layers = [replace(layer, weight=5 * layer.weight) if isinstance(layer, Conv) else layer for layer in graph.layers]
    assert relative_difference(replace(graph, layers=tuple(layers)), rng) <= 1e-4


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "h_swish"])
def test_residual_sum(activation: Activation, rng: np.random.Generator) -> None:
    build = GraphBuilder((5, 6), rng)
    left, right = build.conv(INPUT), build.conv(INPUT, 3)
    graph = build.classified(build.append(Add("sum", left, right, activation)))
    assert relative_difference(graph, rng) <= 1e-4


def test_squeeze_and_excite(rng: np.random.Generator) -> None:
    build = GraphBuilder((7, 5), rng)
    source = build.conv(INPUT, 3, depthwise=True, activation="h_swish")
    pooled = build.append(GlobalAveragePool("squeeze", source))
    inner = build.conv(pooled, outputs=4, activation="relu", norm=False)
    gate = build.conv(inner, inputs=4, activation="h_sigmoid", norm=False)
    graph = build.classified(build.append(Scale("excite", source, gate)))
    assert relative_difference(graph, rng, batch=3) <= 1e-4


@pytest.mark.parametrize("side", [(8, 8), (9, 9), (10, 7)])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_padding_never_wins_a_maximum(activation: Activation, side: tuple[int, int], rng: np.random.Generator) -> None:
    build = GraphBuilder(side, rng)
    source = build.conv(INPUT, activation=activation, norm=False)
    layer = build.layers[-1]
    assert isinstance(layer, Conv)
    assert layer.bias is not None
    if activation == "none":
        layer.bias[:] = -50  # all values negative: zero padding would win everywhere along the border
    build.append(MaxPool("max", source, kernel=3, stride=2, padding=1))
    build.conv("max", outputs=1)
    graph = build.flat(build.layers[-1].name, -(-side[0] // 2) * -(-side[1] // 2))
    assert relative_difference(graph, rng) <= 1e-4


@pytest.mark.parametrize("ceil", [True, False])
@pytest.mark.parametrize("side", [(8, 8), (9, 9), (8, 7)])
def test_average_pool_counts_only_what_is_inside(side: tuple[int, int], ceil: bool, rng: np.random.Generator) -> None:
    build = GraphBuilder(side, rng)
    build.append(AveragePool("average", INPUT, kernel=2, stride=2, ceil=ceil))
    build.conv("average", outputs=1)
    pixels = int(np.prod([-(-s // 2) if ceil else s // 2 for s in side]))
    assert relative_difference(build.flat(build.layers[-1].name, pixels), rng) <= 1e-4


def test_average_pool_that_tflite_cannot_do_is_refused(rng: np.random.Generator) -> None:
    build = GraphBuilder((7, 7), rng)
    graph = build.classified(build.append(AveragePool("average", INPUT, kernel=3, stride=3, ceil=True)))
    with pytest.raises(UsageError, match="average"):
        emit_tflite(graph)


def random_subnets(space_name: str, count: int, rng: np.random.Generator) -> Iterator[tuple[Graph, Array]]:
    """Subnets of a supernet with random weights, smallest and largest first, at small resolutions; images for each.

    Calibrated, so that their activations stay in the range that trained networks have: without it the deepest ones
    blow rounding up until not even one runtime agrees with itself.
    """
    space = make_space(space_name)
    tensors = export_state_dict(random_state_dict(space), space)
    slicer = slicer_for(space)
    for architecture in space.decode(np.concatenate([space.smallest(), space.largest(), space.sample(count, rng)])):
        raw = slicer.slice(tensors.__getitem__, architecture, None)
        side = int(rng.choice(space.resolutions[:3]))
        shape = (raw.input_shape[0], side, side)
        images = photo_like(9, shape, rng)
        statistics = estimate_statistics(replace(raw, input_shape=shape), [images[3:]])
        yield replace(slicer.slice(tensors.__getitem__, architecture, statistics), input_shape=shape), images[:3]


@pytest.mark.parametrize("space_name", space_names())
def test_random_subnets_of_every_design_space(space_name: str, rng: np.random.Generator) -> None:
    for graph, images in random_subnets(space_name, 2, rng):
        wanted = run_onnx(emit_onnx(graph, batch=3), images)
        assert_equal_logits(run_tflite(emit_tflite(graph, batch=3), images), wanted)


@pytest.mark.parametrize("space_name", space_names())
def test_one_layer_that_is_three_percent_off_is_found(space_name: str, rng: np.random.Generator) -> None:
    """The comparison above fails for it, whatever its kind."""
    graph, images = next(random_subnets(space_name, 0, rng))
    wanted = run_onnx(emit_onnx(graph, batch=3), images)
    layers = [name for kind in KINDS for name in layers_of(graph, kind)[:1]]
    assert len(layers) > 5
    for name in layers:
        found = run_tflite(emit_tflite(perturbed(graph, name, rng), batch=3), images)
        assert disagreement(found, wanted) > 10 * TOLERANCE, name


@pytest.fixture
def subnet(rng: np.random.Generator) -> Graph:
    """A graph of a few hundred kilobytes with every kind of constant."""
    build = GraphBuilder((8, 8), rng)
    name = build.conv(INPUT, 3, 2, outputs=64, activation="h_swish")
    name = build.conv(name, 3, 2, inputs=64, outputs=64, depthwise=True, activation="relu")
    name = build.conv(name, 1, inputs=64, outputs=512, activation="h_sigmoid")
    name = build.conv(name, 1, inputs=512, outputs=512, norm=False)
    return build.classified(name, 512, 100)


def test_equal_graphs_give_equal_bytes(subnet: Graph) -> None:
    assert emit_tflite(subnet) == emit_tflite(Graph(subnet.layers, subnet.input_shape, subnet.classes))


def test_constants_are_aligned_and_written_once(subnet: Graph) -> None:
    import tflite

    model = emit_tflite(subnet)
    assert len(model) < subnet.weight_bytes + 16_384
    root = tflite.Model.GetRootAs(model)
    begin = np.frombuffer(model, np.uint8).ctypes.data
    constants = [root.Buffers(i).DataAsNumpy() for i in range(1, root.BuffersLength())]
    starts = [constant.ctypes.data - begin for constant in constants]
    assert starts
    assert all(start % 16 == 0 for start in starts)


def test_memory_is_the_models_own_size(subnet: Graph) -> None:
    emit_tflite(subnet)  # imports do not count
    tracemalloc.start()
    try:
        model = emit_tflite(subnet)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * len(model)
