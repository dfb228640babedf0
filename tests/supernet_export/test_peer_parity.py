"""Checkpoints that the peer writes: our subnets of them equal the peer's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from peer import import_peer  # noqa: E402
from peer_supernets import FAMILIES, peer_logits, peer_subnet, peer_supernet, save_checkpoint  # noqa: E402

from supernet_export.bundle import SupernetBundle  # noqa: E402
from supernet_export.calibration import estimate_statistics  # noqa: E402
from supernet_export.export import export_checkpoint  # noqa: E402
from supernet_export.graph import INPUT, OUTPUT  # noqa: E402
from supernet_export.onnx_emitter import emit_onnx  # noqa: E402
from supernet_export.session import open_session  # noqa: E402
from supernet_export.spaces.registry import make_space  # noqa: E402
from supernet_export.subnet import slice_subnet  # noqa: E402

RANDOM_SUBNETS = 3
#: Small ones, for speed; at 144 feature maps have odd sides.
RESOLUTIONS = [128, 144, 160]


@pytest.fixture(scope="module", params=list(FAMILIES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, SupernetBundle]:
    """The peer's supernet and our bundle of it."""
    net = peer_supernet(request.param)
    _, _, space, options = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("peer")
    checkpoint = save_checkpoint(net, folder / "checkpoint.pth")
    export_checkpoint(checkpoint, make_space(space, options | {"resolutions": RESOLUTIONS}), folder / "peer.supernet")
    checkpoint.unlink()
    return net, SupernetBundle.open(folder / "peer.supernet")


def test_subnets_equal_the_peers(pair: tuple[Any, SupernetBundle]) -> None:
    net, bundle = pair
    rng = np.random.default_rng(0)
    space = bundle.space
    genomes = np.concatenate([space.smallest(), space.largest(), space.sample(RANDOM_SUBNETS, rng)])
    for architecture in space.decode(genomes):
        graph = slice_subnet(bundle, architecture)
        image = rng.standard_normal((1, *graph.input_shape), dtype=np.float32)
        expected = peer_logits(peer_subnet(net, architecture), image)
        (found,) = open_session(emit_onnx(graph)).run([OUTPUT], {INPUT: image})
        assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


def test_compofa_subnets_equal_the_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CompOFA trains the same network without kernel transforms, and publishes it under the older names."""
    dynamic_op = import_peer("ofa.imagenet_classification.elastic_nn.modules.dynamic_op")
    monkeypatch.setattr(dynamic_op.DynamicSeparableConv2d, "KERNEL_TRANSFORM_MODE", None)
    net = peer_supernet("ofa-mbv3-w1.0")
    state = net.state_dict()
    assert not any(name.endswith("_matrix") for name in state)
    older = {re.sub(r"^(blocks\.\d+)\.conv\.", r"\1.mobile_inverted_conv.", name): x for name, x in state.items()}
    assert older.keys() != state.keys()
    torch.save({"state_dict": older}, tmp_path / "compofa.pth")
    rng = np.random.default_rng(2)
    for name in ("compofa", "compofa-elastic"):
        space = make_space(name, {"resolutions": RESOLUTIONS})
        export_checkpoint(tmp_path / "compofa.pth", space, tmp_path / "compofa.supernet")
        bundle = SupernetBundle.open(tmp_path / "compofa.supernet")
        for architecture in space.decode(np.concatenate([space.smallest(), space.largest(), space.sample(2, rng)])):
            graph = slice_subnet(bundle, architecture)
            image = rng.standard_normal((1, *graph.input_shape), dtype=np.float32)
            expected = peer_logits(peer_subnet(net, architecture), image)
            (found,) = open_session(emit_onnx(graph)).run([OUTPUT], {INPUT: image})
            assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


def test_statistics_equal_the_peers(pair: tuple[Any, SupernetBundle]) -> None:
    """`set_running_statistics` over batches of unlike sizes; every mean and variance, in order."""
    net, bundle = pair
    set_running_statistics = import_peer("ofa.imagenet_classification.elastic_nn.utils").set_running_statistics
    rng = np.random.default_rng(1)
    (architecture,) = bundle.space.decode(bundle.space.sample(1, rng))
    graph = slice_subnet(bundle, architecture)
    batches = [rng.standard_normal((n, *graph.input_shape), dtype=np.float32) for n in (4, 2)]
    subnet = peer_subnet(net, architecture)
    set_running_statistics(subnet, [(torch.from_numpy(batch), None) for batch in batches])
    theirs = [module for module in subnet.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for (mean, variance), norm in zip(estimate_statistics(graph, batches).values(), theirs, strict=True):
        deviation = float(norm.running_var.sqrt().max())
        np.testing.assert_allclose(mean, norm.running_mean.numpy(), rtol=0, atol=1e-4 * deviation)
        np.testing.assert_allclose(variance, norm.running_var.numpy(), rtol=1e-4, atol=1e-4 * deviation**2)
