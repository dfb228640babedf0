"""Checkpoints of networks that ImageNet does not have: our subnets equal the peer's own after calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rigs.logit_parity import disagreement, photo_like  # noqa: E402
from rigs.peer import import_peer  # noqa: E402
from rigs.peer_supernets import (  # noqa: E402
    CONFIGURATIONS,
    compared,
    configured_supernet,
    peer_subnet,
    save_checkpoint,
)
from rigs.random_graphs import run_onnx  # noqa: E402

from fleetnas.supernet_export.bundle import SupernetBundle  # noqa: E402
from fleetnas.supernet_export.calibration.estimate import estimate_statistics  # noqa: E402
from fleetnas.supernet_export.checkpoint_export import CheckpointExport, export_own_checkpoint  # noqa: E402
from fleetnas.supernet_export.emitters.onnx import emit_onnx  # noqa: E402
from fleetnas.supernet_export.inspection import inspect_file  # noqa: E402
from fleetnas.supernet_export.slicing.subnet import slice_subnet  # noqa: E402

#: Greatest difference of a logit over the range of the logits.
TOLERANCE = 1e-4


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_subnets_equal_the_peers_after_calibration(name: str, tmp_path: Path) -> None:
    configuration = CONFIGURATIONS[name]
    net = configured_supernet(configuration)
    checkpoint = save_checkpoint(net, tmp_path / "peer.pth")
    options = {**configuration.options, "resolutions": [64, 96]}
    request = CheckpointExport(
        checkpoint, configuration.space, options, preprocessing={"mean": [0.5], "std": [0.25]}, dataset="peer"
    )
    export_own_checkpoint(request, tmp_path / "peer.supernet")
    bundle = SupernetBundle.open(tmp_path / "peer.supernet")
    recognised = inspect_file(checkpoint)
    assert recognised.space == configuration.space
    shown = {option: options[option] for option in ("width", "classes", "image_channels") if option in options}
    assert {option: recognised.options[option] for option in shown} == shown
    rng = np.random.default_rng(0)
    space = bundle.space
    genomes = np.concatenate([space.smallest(), space.largest(), space.sample(1, rng)])
    for architecture in space.decode(genomes):
        subnet = compared(net, bundle, architecture, rng)
        found = run_onnx(emit_onnx(subnet.graph, batch=len(subnet.images)), subnet.images)
        assert disagreement(found, subnet.expected) < TOLERANCE
    # Our own calibration of the smallest one finds the peer's statistics.
    running_statistics = import_peer("ofa.imagenet_classification.elastic_nn.utils").set_running_statistics
    (smallest,) = space.decode(space.smallest())
    graph = slice_subnet(bundle, smallest)
    images = photo_like(6, graph.input_shape, rng)
    theirs = peer_subnet(net, smallest)
    running_statistics(theirs, [(torch.from_numpy(images), None)])
    norms = [module for module in theirs.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for (mean, variance), norm in zip(estimate_statistics(graph, [images]).values(), norms, strict=True):
        deviation = float(norm.running_var.sqrt().max())
        np.testing.assert_allclose(mean, norm.running_mean.numpy(), rtol=0, atol=1e-4 * deviation)
        np.testing.assert_allclose(variance, norm.running_var.numpy(), rtol=1e-4, atol=1e-4 * deviation**2)
