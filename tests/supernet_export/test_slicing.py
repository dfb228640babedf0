"""Slicing: names, spellings, what is refused, and that weights stay where they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rigs.supernets import random_bundle, random_state_dict

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError, BundleError
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.export import export_state_dict
from fleetnas.supernet_export.graph import INPUT, Conv, Graph
from fleetnas.supernet_export.slicing.subnet import slice_subnet
from fleetnas.supernet_export.spaces.digits import DigitsSpace

SPACE = DigitsSpace()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    return random_bundle(tmp_path_factory.mktemp("bundle") / "random.supernet", SPACE)


def test_both_spellings_of_a_checkpoint_give_one_bundle() -> None:
    """OFA's published files say `mobile_inverted_conv`; its present code says `conv`, and `bn.bn` where elastic."""
    state = random_state_dict(SPACE)
    new = {}
    for name, array in state.items():
        elastic = name.startswith("blocks.") and not name.startswith("blocks.0.") and ".se." not in name
        spelled = name.replace(".mobile_inverted_conv.", ".conv.")
        if elastic:
            spelled = spelled.replace(".bn.", ".bn.bn.")
            spelled = spelled.replace("conv.weight", "conv.conv.weight")
        new[spelled] = array
    assert set(new) != set(state)
    expected, found = export_state_dict(state, SPACE), export_state_dict(new, SPACE)
    assert set(expected) == set(found)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_layers_read_only_what_was_written_before(bundle: SupernetBundle) -> None:
    for architecture in SPACE.decode(SPACE.sample(20, np.random.default_rng(0))):
        known = {INPUT}
        for layer in slice_subnet(bundle, architecture).layers:
            sources = {getattr(layer, field) for field in ("source", "left", "right", "gate") if hasattr(layer, field)}
            assert sources <= known
            assert layer.name not in known
            known.add(layer.name)


def test_weights_are_views_on_the_bundle(bundle: SupernetBundle) -> None:
    (smallest,) = SPACE.decode(SPACE.smallest())
    for conv in slice_subnet(bundle, smallest).convolutions():
        assert conv.weight.base is not None
        assert not conv.weight.flags.writeable


def test_the_parameter_count_is_the_one_the_space_predicts(bundle: SupernetBundle) -> None:
    """The graph and the design space describe the same network."""
    genomes = SPACE.sample(30, np.random.default_rng(1))
    for architecture, parameters in zip(SPACE.decode(genomes), SPACE.parameters(genomes), strict=True):
        graph = slice_subnet(bundle, architecture)
        assert graph.weight_bytes // 4 - _biases_of_zero(graph) == parameters


def _biases_of_zero(graph: Graph) -> int:
    """Biases of zeros that a layer without batch norm or bias gets when it is folded."""
    return sum(len(conv.weight) for conv in graph.convolutions() if conv.norm is None and conv.bias is None)


def test_an_architecture_outside_the_space_is_refused(bundle: SupernetBundle) -> None:
    (largest,) = SPACE.decode(SPACE.largest())
    for change in ({"ks": (9, *largest.ks[1:])}, {"r": 17}, {"d": (5, 4, 4)}, {"e": largest.e[1:]}):
        with pytest.raises(ArchitectureError):
            slice_subnet(bundle, Architecture(**(largest.model_dump() | change)))


def test_statistics_of_another_architecture_are_refused(bundle: SupernetBundle) -> None:
    small, large = SPACE.decode(np.concatenate([SPACE.smallest(), SPACE.largest()]))
    statistics = {
        conv.name: (conv.norm.mean, conv.norm.variance)
        for conv in slice_subnet(bundle, small).convolutions()
        if conv.norm is not None
    }
    slice_subnet(bundle, small, statistics)
    with pytest.raises(BundleError, match="another architecture"):
        slice_subnet(bundle, large, statistics)


def test_folding_is_batch_norm_after_the_convolution(bundle: SupernetBundle) -> None:
    """A 1x1 convolution is a matrix product: folded weights must give what batch norm gives after it."""
    (architecture,) = SPACE.decode(SPACE.sample(1, np.random.default_rng(2)))
    conv = next(conv for conv in slice_subnet(bundle, architecture).convolutions() if conv.name.endswith(".expand"))
    assert isinstance(conv, Conv)
    assert conv.norm is not None
    x = np.random.default_rng(3).standard_normal((conv.weight.shape[1], 50))
    plain = conv.weight[:, :, 0, 0].astype(np.float64) @ x
    norm = conv.norm
    centred = (plain - norm.mean[:, None]) / np.sqrt(norm.variance[:, None] + norm.epsilon)
    expected = centred * norm.gamma[:, None] + norm.beta[:, None]
    weight, bias = conv.folded()
    np.testing.assert_allclose(weight[:, :, 0, 0] @ x + bias[:, None], expected, rtol=1e-5, atol=1e-5)


def test_a_bundle_opened_twice_gives_equal_subnets(bundle: SupernetBundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy.supernet"
    copy.write_bytes(bundle.path.read_bytes())
    again = SupernetBundle.open(copy)
    (architecture,) = SPACE.decode(SPACE.sample(1, np.random.default_rng(4)))
    for ours, theirs in zip(
        slice_subnet(bundle, architecture).convolutions(),
        slice_subnet(again, architecture).convolutions(),
        strict=True,
    ):
        np.testing.assert_array_equal(ours.folded()[0], theirs.folded()[0])


def test_slicing_on_a_device_needs_neither_torch_nor_onnx() -> None:
    """A 32-bit board with LiteRT has neither."""
    script = (
        "import sys, fleetnas.supernet_export.slicing.subnet, fleetnas.supernet_export.calibration.estimate;"
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'sklearn', 'PIL') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert found.stdout.strip() == "[]"
