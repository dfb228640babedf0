"""Re-estimated batch-norm statistics, against torch and as a blob."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rigs.logit_parity import (
    KINDS,
    TOLERANCE,
    assert_equal_logits,
    disagreement,
    layers_of,
    perturbed,
    photo_like,
)
from rigs.random_graphs import run_onnx, run_tflite
from rigs.supernets import random_bundle, random_state_dict

from fleetnas.fleet_protocol.errors import CorruptBundleError, UsageError
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.calibration.blob import Calibration, load_calibration, save_calibration
from fleetnas.supernet_export.calibration.estimate import estimate_statistics
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.emitters.tflite import emit_tflite
from fleetnas.supernet_export.graph import Array, Graph
from fleetnas.supernet_export.slicing.subnet import slice_subnet
from fleetnas.supernet_export.spaces.digits import DIGITS_NETWORK, DigitsSpace

SPACE = DigitsSpace()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    return random_bundle(tmp_path_factory.mktemp("bundle") / "random.supernet", SPACE)


FORMATS: Mapping[str, Callable[[Graph, Array], Array]] = {
    "onnx": lambda graph, images: run_onnx(emit_onnx(graph, batch=len(images)), images),
    "tflite": lambda graph, images: run_tflite(emit_tflite(graph, batch=len(images)), images),
}


@pytest.fixture(scope="module")
def calibrated_pairs(bundle: SupernetBundle) -> list[tuple[Graph, Array, Array]]:
    """Calibrated subnets, the largest first; images for each, and the logits of torch's, calibrated by itself."""
    torch = pytest.importorskip("torch")
    from fleetnas.supernet_export.training.elastic import ElasticMBConvNet

    canonical = random_state_dict(SPACE)
    rng = np.random.default_rng(0)
    found = []
    for architecture in SPACE.decode(np.concatenate([SPACE.largest(), SPACE.smallest(), SPACE.sample(4, rng)])):
        net = ElasticMBConvNet(DIGITS_NETWORK, SPACE.kernels, SPACE.expands, SPACE.depths).eval()
        names = net.state_dict()
        spelled = {name: name.replace(".bn.bn.", ".bn.").replace(".conv.conv.", ".conv.") for name in names}
        net.load_state_dict({name: torch.from_numpy(canonical[spelled[name]]) for name in names})
        net.set_active(architecture)
        graph = slice_subnet(bundle, architecture)
        images = 2 * photo_like(16, graph.input_shape, rng) + 1
        net.calibrate(torch.from_numpy(images))
        calibrated = slice_subnet(bundle, architecture, estimate_statistics(graph, [images]))
        with torch.no_grad():
            found.append((calibrated, images[:3], net(torch.from_numpy(images[:3])).numpy()))
    return found


@pytest.mark.parametrize("name", list(FORMATS))
def test_calibrated_subnets_equal_torchs(calibrated_pairs: list[tuple[Graph, Array, Array]], name: str) -> None:
    for graph, images, expected in calibrated_pairs:
        assert_equal_logits(FORMATS[name](graph, images), expected)


@pytest.mark.parametrize("name", list(FORMATS))
def test_one_layer_that_is_three_percent_off_is_found(
    calibrated_pairs: list[tuple[Graph, Array, Array]], name: str
) -> None:
    """The comparison above fails for it, whatever its kind."""
    graph, images, expected = calibrated_pairs[0]
    rng = np.random.default_rng(1)
    layers = [layer for kind in KINDS for layer in layers_of(graph, kind)[:1]]
    assert len(layers) > 5
    for layer in layers:
        assert disagreement(FORMATS[name](perturbed(graph, layer, rng), images), expected) > 10 * TOLERANCE, layer


def test_batches_weigh_as_much_as_they_hold(bundle: SupernetBundle) -> None:
    """OFA averages over batches, weighted by their sizes."""
    (architecture,) = SPACE.decode(SPACE.smallest())
    graph = slice_subnet(bundle, architecture)
    images = np.random.default_rng(0).standard_normal((8, *graph.input_shape), dtype=np.float32)
    parts = [images[:6], images[6:]]
    both = estimate_statistics(graph, parts)
    one, two = (estimate_statistics(graph, [part]) for part in parts)
    for name, pair in both.items():
        for found, first, second in zip(pair, one[name], two[name], strict=True):
            np.testing.assert_allclose(found, 0.75 * first + 0.25 * second, rtol=1e-4, atol=1e-6)


def test_statistics_survive_as_a_blob(bundle: SupernetBundle) -> None:
    (architecture,) = SPACE.decode(SPACE.smallest())
    graph = slice_subnet(bundle, architecture)
    images = np.random.default_rng(0).standard_normal((2, *graph.input_shape), dtype=np.float32)
    statistics = estimate_statistics(graph, [images])
    blob = save_calibration(Calibration(statistics))
    again = load_calibration(blob)
    assert save_calibration(again) == blob
    assert emit_onnx(slice_subnet(bundle, architecture, again.statistics)) == emit_onnx(
        slice_subnet(bundle, architecture, statistics)
    )


@given(blob=st.binary(max_size=400))
def test_garbage_is_no_statistics(blob: bytes) -> None:
    with pytest.raises(CorruptBundleError):
        load_calibration(blob)


def test_impossible_statistics_are_refused() -> None:
    channel = np.ones(3, np.float32)
    for pair in ((channel, -channel), (np.nan * channel, channel)):
        with pytest.raises(CorruptBundleError, match="no part"):
            load_calibration(save_calibration(Calibration({"stem": pair})))


def test_no_images_are_refused(bundle: SupernetBundle) -> None:
    (architecture,) = SPACE.decode(SPACE.smallest())
    with pytest.raises(UsageError, match="no images"):
        estimate_statistics(slice_subnet(bundle, architecture), [])
