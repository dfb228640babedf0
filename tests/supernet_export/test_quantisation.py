"""Int8 models against their float32 originals, in both runtimes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rigs.random_graphs import CHANNELS, GraphBuilder, run_onnx, run_tflite

from fleetnas.fleet_protocol.errors import CorruptBundleError, UsageError
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.calibration.activation_ranges import observe_ranges
from fleetnas.supernet_export.calibration.blob import Calibration, load_calibration, save_calibration
from fleetnas.supernet_export.calibration.estimate import estimate_statistics
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.emitters.onnx_int8 import emit_int8_onnx
from fleetnas.supernet_export.emitters.tflite import emit_tflite
from fleetnas.supernet_export.export import DIGITS_CHECKPOINT, export_digits
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
from fleetnas.supernet_export.quantisation import (
    HIGHEST,
    LOWEST,
    Ranges,
    activation_scale,
    nominal_ranges,
    quantise_parameters,
)
from fleetnas.supernet_export.slicing.subnet import slice_subnet

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert.interpreter")
tflite = pytest.importorskip("tflite")

IMAGES = 64
#: How the logits of an int8 model may differ from the float ones: root mean square over their deviation.
TOLERANCE = 0.02


def int8_logits(graph: Graph, ranges: Ranges, images: Array) -> dict[str, Array]:
    """Logits of the int8 model in each runtime."""
    return {
        "onnxruntime": run_onnx(emit_int8_onnx(graph, ranges, batch=len(images)), images),
        "litert": run_tflite(emit_tflite(graph, batch=len(images), ranges=ranges), images),
    }


def float_logits(graph: Graph, images: Array) -> Array:
    return run_onnx(emit_onnx(graph, batch=len(images)), images)


def error(found: Array, wanted: Array) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std())


def assert_close_to_float(graph: Graph, images: Array) -> None:
    wanted = float_logits(graph, images)
    for runtime, found in int8_logits(graph, observe_ranges(graph, [images]), images).items():
        assert error(found, wanted) < TOLERANCE, runtime


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def images(rng: np.random.Generator) -> Array:
    return rng.standard_normal((IMAGES, CHANNELS, 9, 9), np.float32)


def squeeze_and_excite(build: GraphBuilder, source: str) -> str:
    pooled = build.append(GlobalAveragePool(f"{source}.pool", source))
    inner = build.conv(pooled, outputs=4, activation="relu", norm=False)
    gate = build.conv(inner, inputs=4, activation="h_sigmoid", norm=False)
    return build.append(Scale(f"{source}.excite", source, gate))


# -- numbers ---------------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6, width=32), st.floats(0, 1e6, width=32), st.floats(0, 1))
def test_every_value_in_range_survives_to_half_a_step(low: float, span: float, place: float) -> None:
    high = low + span
    affine = activation_scale({"x": (low, high)}, "x")
    assert LOWEST <= affine.zero_point <= HIGHEST, "zero itself must be a stored value: padding is zero"
    value = low + place * span
    stored = np.clip(np.rint(value / affine.scale) + affine.zero_point, LOWEST, HIGHEST)
    # Half a step for the value, half for the zero point, both rounded.
    assert abs((stored - affine.zero_point) * affine.scale - value) <= 1.001 * affine.scale


@pytest.mark.parametrize("ends", [(0.0, 0.0), (2.0, 2.0), (-3.0, -3.0), (1e-30, 2e-30), (-1e-45, 0.0)])
def test_scale_of_a_constant_tensor_is_a_normal_number(ends: tuple[float, float]) -> None:
    affine = activation_scale({"x": ends}, "x")
    assert np.finfo(np.float32).tiny < affine.scale < 1
    for end in ends:
        stored = np.clip(np.rint(end / affine.scale) + affine.zero_point, LOWEST, HIGHEST)
        assert abs((stored - affine.zero_point) * affine.scale - end) <= affine.scale


def test_scale_of_an_all_zero_tensor_is_ordinary() -> None:
    """A dead branch is still added to a live one, and XNNPACK adds no tensors whose scales are 1024 times apart."""
    assert 1e-3 < activation_scale({"x": (0.0, 0.0)}, "x").scale < 1


def test_ranges_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="finite"):
        activation_scale({"x": (float("nan"), 1.0)}, "x")


def test_weights_are_rounded_per_channel(rng: np.random.Generator) -> None:
    weight = (rng.standard_normal((6, 4, 3, 3)) * np.logspace(-3, 3, 6)[:, None, None, None]).astype(np.float32)
    found = quantise_parameters(weight, np.zeros(6, np.float32), np.float32(0.02))
    steps = np.abs(found.weight * found.scales[:, None, None, None] - weight) / found.scales[:, None, None, None]
    assert steps.max() <= 0.5001
    assert (np.abs(found.weight).reshape(6, -1).max(axis=1) == HIGHEST).all()


def test_bias_of_a_silenced_channel_survives() -> None:
    """Batch norm with a tiny gamma leaves weights of 1e-12 and a bias that then is 1e15 steps."""
    weight = np.full((3, 2, 1, 1), 1e-12, np.float32)
    weight[1] = 0
    bias = np.array([0.7, -1.3, 0], np.float32)
    found = quantise_parameters(weight, bias, np.float32(0.01))
    np.testing.assert_allclose(found.bias * found.bias_scales.astype(np.float64), bias, rtol=1e-6)


# -- models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "h_swish", "h_sigmoid"])
@pytest.mark.parametrize("depthwise", [False, True])
def test_convolutions(activation: Activation, depthwise: bool, images: Array, rng: np.random.Generator) -> None:
    build = GraphBuilder((9, 9), rng)
    name = build.conv(INPUT, 3, 2, depthwise=depthwise, activation=activation)
    assert_close_to_float(build.classified(build.conv(name, 5, 2, depthwise=depthwise)), images)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "h_swish"])
def test_residual_sums(activation: Activation, images: Array, rng: np.random.Generator) -> None:
    build = GraphBuilder((9, 9), rng)
    left, right = build.conv(INPUT), build.conv(INPUT, 3, activation="relu")
    assert_close_to_float(build.classified(build.append(Add("sum", left, right, activation))), images)


def test_squeeze_and_excite(images: Array, rng: np.random.Generator) -> None:
    build = GraphBuilder((9, 9), rng)
    assert_close_to_float(build.classified(squeeze_and_excite(build, build.conv(INPUT, activation="h_swish"))), images)


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_pools(activation: Activation, images: Array, rng: np.random.Generator) -> None:
    build = GraphBuilder((9, 9), rng)
    source = build.conv(INPUT, activation=activation)
    build.append(MaxPool("max", source, kernel=3, stride=2, padding=1))
    build.append(AveragePool("average", "max", kernel=2, stride=2, ceil=True))
    assert_close_to_float(build.classified(build.conv("average", 3)), images)


def deep(rng: np.random.Generator) -> Graph:
    """A little of everything."""
    build = GraphBuilder((9, 9), rng)
    name = build.conv(INPUT, 3, 2, activation="h_swish")
    shortcut = name
    name = build.conv(name, 5, depthwise=True, activation="h_swish")
    name = build.conv(squeeze_and_excite(build, name))
    name = build.append(Add("sum", name, shortcut))
    return build.classified(build.conv(name, activation="relu6"))


def silenced(graph: Graph, change: Callable[[Conv], Conv]) -> Graph:
    """The graph with its first two convolutions changed."""
    names = [layer.name for layer in graph.convolutions()][:2]
    layers = [change(layer) if isinstance(layer, Conv) and layer.name in names else layer for layer in graph.layers]
    return replace(graph, layers=tuple(layers))


def without_channel(layer: Conv) -> Conv:
    assert layer.norm is not None
    gamma = layer.norm.gamma.copy()
    gamma[:2] = 0, 1e-20
    return replace(layer, norm=replace(layer.norm, gamma=gamma))


def test_dead_channels_do_no_harm(images: Array, rng: np.random.Generator) -> None:
    assert_close_to_float(silenced(deep(rng), without_channel), images)


def test_constant_tensors_do_no_harm(images: Array, rng: np.random.Generator) -> None:
    graph = silenced(deep(rng), lambda layer: replace(layer, weight=np.zeros_like(layer.weight)))
    wanted = float_logits(graph, images)
    for found in int8_logits(graph, observe_ranges(graph, [images]), images).values():
        np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())


def test_models_compute_in_integers(tmp_path: Path, rng: np.random.Generator, images: Array) -> None:
    """From the quantised input to the classifier onnxruntime finds an integer kernel for every operator."""
    graph = deep(rng)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(emit_int8_onnx(graph, observe_ranges(graph, [images])), options)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] == sum(1 for _ in graph.convolutions())
    assert kinds["QuantizeLinear"] == 1
    assert not kinds.keys() & {"Conv", "Add", "Mul", "Gemm", "GlobalAveragePool", "DequantizeLinear"}

    root = tflite.Model.GetRootAs(emit_tflite(graph, ranges=observe_ranges(graph, [images]))).Subgraphs(0)
    types = Counter(root.Tensors(i).Type() for i in range(root.TensorsLength()))
    assert types[tflite.TensorType.FLOAT32] == 2, "only input and logits"


def test_int8_takes_about_a_quarter(rng: np.random.Generator, images: Array) -> None:
    build = GraphBuilder((9, 9), rng)
    name = build.conv(INPUT, 3, outputs=128)
    graph = build.classified(build.conv(name, 3, inputs=128, outputs=128), 128)
    ranges = observe_ranges(graph, [images])
    assert len(emit_int8_onnx(graph, ranges)) < 0.28 * len(emit_onnx(graph))
    assert len(emit_tflite(graph, ranges=ranges)) < 0.28 * len(emit_tflite(graph))


def test_equal_subnets_and_ranges_give_equal_bytes(rng: np.random.Generator, images: Array) -> None:
    graph = deep(rng)
    ranges = observe_ranges(graph, [images])
    sent = load_calibration(save_calibration(Calibration(ranges=ranges))).ranges
    assert sent is not None
    reordered = dict(reversed(sent.items()))
    assert emit_int8_onnx(graph, ranges) == emit_int8_onnx(graph, reordered)
    assert emit_tflite(graph, ranges=ranges) == emit_tflite(graph, ranges=reordered)


def test_ranges_of_another_subnet_are_refused(rng: np.random.Generator, images: Array) -> None:
    graph = deep(rng)
    ranges = {name: pair for name, pair in observe_ranges(graph, [images]).items() if name != "sum"}
    with pytest.raises(UsageError, match="'sum'"):
        emit_int8_onnx(graph, ranges)
    with pytest.raises(UsageError, match="'sum'"):
        emit_tflite(graph, ranges=ranges)


def test_nominal_ranges_are_near_enough_to_run(rng: np.random.Generator, images: Array) -> None:
    """Without an image the logits are coarse, but they are the network's."""
    graph = deep(rng)
    wanted = float_logits(graph, images)
    for found in int8_logits(graph, nominal_ranges(graph), images).values():
        assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.9


# -- ranges ----------------------------------------------------------------------------------------------------


def test_observed_ranges_are_those_of_the_tensors(rng: np.random.Generator, images: Array) -> None:
    build = GraphBuilder((9, 9), rng)
    first = build.conv(INPUT, 3, activation="h_swish")
    graph = build.classified(first)
    model = onnx.load_from_string(emit_onnx(graph, batch=IMAGES))
    tensors = [node.output[0] for node in model.graph.node if node.op_type in ("Conv", "HardSwish")]
    for name in tensors:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString())
    before, after, logits = session.run([*tensors, "logits"], {INPUT: images})
    ranges = observe_ranges(graph, [images])
    expected = {INPUT: images, f"{first}/pre": before, first: after, "classifier": logits}
    for name, values in expected.items():
        np.testing.assert_allclose(ranges[name], (values.min(), values.max()), rtol=1e-5)


def test_ranges_do_not_depend_on_the_batches(rng: np.random.Generator, images: Array) -> None:
    graph = deep(rng)
    together, apart = observe_ranges(graph, [images]), observe_ranges(graph, [images[:10], images[10:]])
    assert together.keys() == apart.keys()
    np.testing.assert_allclose(list(together.values()), list(apart.values()), rtol=1e-4, atol=1e-5)


def test_ranges_need_images(rng: np.random.Generator) -> None:
    with pytest.raises(UsageError, match="no images"):
        observe_ranges(deep(rng), [])


# -- the blob --------------------------------------------------------------------------------------------------


def test_calibration_survives_the_wire(rng: np.random.Generator, images: Array) -> None:
    graph = deep(rng)
    sent = Calibration(estimate_statistics(graph, [images]), observe_ranges(graph, [images]))
    found = load_calibration(save_calibration(sent))
    assert found.ranges == sent.ranges
    assert sent.statistics is not None
    assert found.statistics is not None
    assert found.statistics.keys() == sent.statistics.keys()
    for name, pair in sent.statistics.items():
        np.testing.assert_array_equal(found.statistics[name], pair)
    assert save_calibration(found) == save_calibration(sent)


@pytest.mark.parametrize(
    "tensors",
    [
        {"range:x": np.array([2, 1], np.float32)},
        {"range:x": np.array([0, np.inf], np.float32)},
        {"range:x": np.array([0, 1], np.float64)},
        {"range:x": np.zeros((2, 2), np.float32)},
        {"statistics:x": np.array([[0], [-1]], np.float32)},
        {"other": np.zeros(2, np.float32)},
    ],
)
def test_what_is_no_calibration_is_refused(tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    from safetensors.numpy import save

    with pytest.raises(CorruptBundleError, match="calibrate"):
        load_calibration(save(tensors))


def test_bytes_that_are_no_calibration_are_refused() -> None:
    with pytest.raises(CorruptBundleError, match="calibrate"):
        load_calibration(b"\x80\x04cos\nsystem\n.")


# -- trained networks ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not DIGITS_CHECKPOINT.exists(), reason="the built-in supernet's weights are not there")
def test_digits_are_recognised_as_well_in_int8(tmp_path: Path) -> None:
    from fleetnas.supernet_export.digits.data import load_digits, preprocess

    export_digits(tmp_path / "digits.supernet")
    bundle = SupernetBundle.open(tmp_path / "digits.supernet")
    digits = load_digits()
    rng = np.random.default_rng(0)
    for architecture in bundle.space.decode(np.concatenate([bundle.space.smallest(), bundle.space.sample(2, rng)])):
        calibration = preprocess(digits.calibration.images, architecture.r)
        test = preprocess(digits.test.images[:300], architecture.r)
        statistics = estimate_statistics(slice_subnet(bundle, architecture), [calibration])
        graph = slice_subnet(bundle, architecture, statistics)
        wanted = float_logits(graph, test).argmax(axis=1)
        for found in int8_logits(graph, observe_ranges(graph, [calibration]), test).values():
            assert np.mean(found.argmax(axis=1) == wanted) >= 0.97


@pytest.mark.skipif(not DIGITS_CHECKPOINT.exists(), reason="the built-in supernet's weights are not there")
def test_digits_are_recognised_as_well_as_by_onnxruntimes_own_quantiser(tmp_path: Path) -> None:
    """The same float model, calibrated on the same images, through `onnxruntime.quantization.quantize_static`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    from fleetnas.supernet_export.digits.data import load_digits, preprocess

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self, batches: list[Array]) -> None:
            self._batches = iter(batches)

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    export_digits(tmp_path / "digits.supernet")
    bundle = SupernetBundle.open(tmp_path / "digits.supernet")
    digits = load_digits()
    (architecture,) = bundle.space.decode(bundle.space.smallest())
    calibration = preprocess(digits.calibration.images, architecture.r)
    test, labels = preprocess(digits.test.images, architecture.r), digits.test.labels
    statistics = estimate_statistics(slice_subnet(bundle, architecture), [calibration])
    graph = slice_subnet(bundle, architecture, statistics)
    size = len(calibration)
    (tmp_path / "float.onnx").write_bytes(emit_onnx(graph, batch=size))
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "theirs.onnx",
        Reader([calibration]),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )

    def accuracy(model: bytes) -> float:
        answers = [run_onnx(model, batch).argmax(axis=1) for batch in np.split(test, len(test) // size)]
        return float((np.concatenate(answers) == labels).mean())

    exact = accuracy(emit_onnx(graph, batch=size))
    ours = accuracy(emit_int8_onnx(graph, observe_ranges(graph, [calibration]), batch=size))
    theirs = accuracy((tmp_path / "theirs.onnx").read_bytes())
    assert abs(ours - exact) <= 0.015
    assert ours >= theirs - 0.01


def test_as_close_as_onnxruntimes_own_quantiser(rng: np.random.Generator, images: Array) -> None:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    graph = deep(rng)
    model = onnx.load_from_string(emit_onnx(graph, batch=IMAGES))
    exposed = onnx.load_from_string(emit_onnx(graph, batch=IMAGES))
    names = [node.output[0] for node in exposed.graph.node if node.output[0] != "logits"]
    for name in names:
        exposed.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    values = ort.InferenceSession(exposed.SerializeToString()).run([*names, "logits"], {INPUT: images})
    seen = dict(zip([*names, "logits", INPUT], [*values, images], strict=True))
    theirs = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, {k: (v.min(), v.max()) for k, v in seen.items()}),
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({node.op_type for node in model.graph.node}),
        extra_options={},
    )
    theirs.quantize_model()
    wanted = float_logits(graph, images)
    peer = error(run_onnx(theirs.model.model.SerializeToString(), images), wanted)
    for found in int8_logits(graph, observe_ranges(graph, [images]), images).values():
        assert error(found, wanted) < 1.25 * peer
