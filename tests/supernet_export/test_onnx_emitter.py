"""ONNX: the file equals the torch supernet's active subnet, and is the same bytes every time."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from rigs.logit_parity import TOLERANCE, disagreement, photo_like
from rigs.supernets import random_bundle, random_state_dict

from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.emitters.onnx import emit_onnx, model_sha256
from fleetnas.supernet_export.graph import (
    INPUT,
    OUTPUT,
    Activation,
    Add,
    Array,
    AveragePool,
    Conv,
    GlobalAveragePool,
    Graph,
    Linear,
    MaxPool,
)
from fleetnas.supernet_export.interpreters.onnxruntime import open_session
from fleetnas.supernet_export.slicing.subnet import slice_subnet
from fleetnas.supernet_export.spaces.digits import DIGITS_NETWORK, DigitsSpace
from fleetnas.supernet_export.spaces.ofa_mbv3 import OfaMbv3Space

SPACE = DigitsSpace()

SLICE_AND_EMIT = """
import sys
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.emitters.onnx import emit_onnx, model_sha256
from fleetnas.supernet_export.slicing.subnet import slice_subnet

bundle, architecture = SupernetBundle.open(sys.argv[1]), Architecture.model_validate_json(sys.argv[2])
print(model_sha256(emit_onnx(slice_subnet(bundle, architecture))))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    return random_bundle(tmp_path_factory.mktemp("bundle") / "random.supernet", SPACE)


def run(model: bytes, image: Array) -> Array:
    (logits,) = open_session(model).run([OUTPUT], {INPUT: image})
    return np.asarray(logits)


def test_subnets_equal_the_torch_supernets(bundle: SupernetBundle) -> None:
    torch = pytest.importorskip("torch")
    from fleetnas.supernet_export.training.elastic import ElasticMBConvNet

    net = ElasticMBConvNet(DIGITS_NETWORK, SPACE.kernels, SPACE.expands, SPACE.depths).eval()
    canonical = random_state_dict(SPACE)
    spelled = {name: name.replace(".bn.bn.", ".bn.").replace(".conv.conv.", ".conv.") for name in net.state_dict()}
    net.load_state_dict({name: torch.from_numpy(canonical[spelled[name]]) for name in spelled})
    rng = np.random.default_rng(0)
    genomes = np.concatenate([SPACE.smallest(), SPACE.largest(), SPACE.sample(30, rng)])
    for architecture in SPACE.decode(genomes):
        graph = slice_subnet(bundle, architecture)
        images = photo_like(3, graph.input_shape, rng)
        net.set_active(architecture)
        with torch.no_grad():
            expected = net(torch.from_numpy(images)).numpy()
        assert disagreement(run(emit_onnx(graph, batch=3), images), expected) <= TOLERANCE


def test_models_are_valid_onnx(bundle: SupernetBundle) -> None:
    import onnx

    for architecture in SPACE.decode(np.concatenate([SPACE.smallest(), SPACE.largest()])):
        model = onnx.load_from_string(emit_onnx(slice_subnet(bundle, architecture)))
        onnx.checker.check_model(model, full_check=True)
        (shape,) = [[side.dim_value for side in port.type.tensor_type.shape.dim] for port in model.graph.input]
        assert shape == [1, 1, architecture.r, architecture.r]


def test_a_batch_gives_what_its_images_give(bundle: SupernetBundle) -> None:
    (architecture,) = SPACE.decode(SPACE.sample(1, np.random.default_rng(0)))
    graph = slice_subnet(bundle, architecture)
    images = np.random.default_rng(1).standard_normal((3, *graph.input_shape), dtype=np.float32)
    single = emit_onnx(graph)
    expected = np.concatenate([run(single, image[None]) for image in images])
    np.testing.assert_allclose(run(emit_onnx(graph, batch=3), images), expected, rtol=1e-4, atol=1e-5)


def test_another_process_builds_the_same_bytes(bundle: SupernetBundle) -> None:
    (architecture,) = SPACE.decode(SPACE.sample(1, np.random.default_rng(7)))
    found = subprocess.run(
        [sys.executable, "-c", SLICE_AND_EMIT, str(bundle.path), architecture.model_dump_json()],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONHASHSEED": "1"},
    )
    assert found.stdout.strip() == model_sha256(emit_onnx(slice_subnet(bundle, architecture)))


def test_memory_is_the_models_own_size(tmp_path: Path) -> None:
    """The bundle is mapped and every layer folded where it will lie: no second copy of the weights."""
    space = OfaMbv3Space()
    bundle = random_bundle(tmp_path / "random.supernet", space, classes=1000, channels=3)
    (largest,) = space.decode(space.largest())
    emit_onnx(slice_subnet(bundle, largest))
    tracemalloc.start()
    graph = slice_subnet(bundle, largest)
    model = emit_onnx(graph)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(model) > graph.weight_bytes
    assert peak < 1.1 * graph.weight_bytes


ACTIVATIONS: dict[Activation, object] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "h_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "h_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
}


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_activations(activation: Activation) -> None:
    """Each by its formula, after a convolution and after a sum."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 2, 1, 1)).astype(np.float32)
    classify = np.eye(4, dtype=np.float32)
    for layers in (
        (Conv("x", INPUT, weight, None, None, stride=1, padding=0, groups=1, activation=activation),),
        (
            Conv("conv", INPUT, weight, None, None, stride=1, padding=0, groups=1, activation="none"),
            Add("x", "conv", "conv", activation),
        ),
    ):
        head = Linear("classifier", "x", classify, np.zeros(4, np.float32))
        image = 4 * rng.standard_normal((1, 2, 1, 1)).astype(np.float32)
        linear = weight[:, :, 0, 0] @ image[0, :, 0, 0] * len(layers)
        expected = ACTIVATIONS[activation](linear)  # type: ignore[operator]
        logits = run(emit_onnx(Graph((*layers, head), (2, 1, 1), 4)), image)
        np.testing.assert_allclose(logits[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [7, 8])
def test_pools_equal_torchs(side: int) -> None:
    """On an odd side the last window of an average hangs over the edge."""
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    identity, zeros = np.eye(3, dtype=np.float32), np.zeros(3, np.float32)
    x = torch.from_numpy(image)
    for pool, theirs in (
        (MaxPool("pool", INPUT, 3, 2, 1), torch.nn.MaxPool2d(3, 2, 1)(x)),
        (AveragePool("pool", INPUT, 2, 2, ceil=True), torch.nn.AvgPool2d(2, 2, ceil_mode=True)(x)),
    ):
        layers = (pool, GlobalAveragePool("mean", "pool"), Linear("classifier", "mean", identity, zeros))
        logits = run(emit_onnx(Graph(layers, (3, side, side), 3)), image)
        np.testing.assert_allclose(logits[0], theirs.mean((2, 3)).numpy()[0], rtol=1e-5, atol=1e-6)
