"""Checkpoints that the peer writes: our subnets of them equal the peer's own, in both formats and for every space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rigs.logit_parity import (  # noqa: E402
    KINDS,
    TOLERANCE,
    assert_equal_logits,
    disagreement,
    layers_of,
    perturbed,
    photo_like,
)
from rigs.peer import import_peer  # noqa: E402
from rigs.peer_supernets import (  # noqa: E402
    COMPOFA,
    FAMILIES,
    Compared,
    compared,
    kernels_of,
    peer_subnet,
    peer_supernet,
    save_checkpoint,
)
from rigs.random_graphs import run_onnx, run_tflite  # noqa: E402

from fleetnas.fleet_protocol.architecture import Architecture  # noqa: E402
from fleetnas.supernet_export.bundle import SupernetBundle  # noqa: E402
from fleetnas.supernet_export.calibration.estimate import estimate_statistics  # noqa: E402
from fleetnas.supernet_export.emitters.onnx import emit_onnx  # noqa: E402
from fleetnas.supernet_export.emitters.tflite import emit_tflite  # noqa: E402
from fleetnas.supernet_export.export import export_checkpoint  # noqa: E402
from fleetnas.supernet_export.graph import Array, Graph  # noqa: E402
from fleetnas.supernet_export.slicing.subnet import slice_subnet  # noqa: E402
from fleetnas.supernet_export.spaces.registry import make_space, space_names  # noqa: E402

RANDOM_SUBNETS = 2
#: Small ones, for speed; at 144 feature maps have odd sides.
RESOLUTIONS = [128, 144, 160]

Run = Callable[[Graph, Array], Array]
FORMATS: Mapping[str, Run] = {
    "onnx": lambda graph, images: run_onnx(emit_onnx(graph, batch=len(images)), images),
    "tflite": lambda graph, images: run_tflite(emit_tflite(graph, batch=len(images)), images),
}


@dataclass
class Pair:
    """The peer's supernet and our bundle of it."""

    net: Any
    bundle: SupernetBundle

    @cached_property
    def architectures(self) -> list[Architecture]:
        """The smallest, the largest and random ones."""
        space, rng = self.bundle.space, np.random.default_rng(0)
        return space.decode(np.concatenate([space.smallest(), space.largest(), space.sample(RANDOM_SUBNETS, rng)]))

    @cached_property
    def subnets(self) -> list[Compared]:
        """Those of `architectures`."""
        rng = np.random.default_rng(0)
        return [compared(self.net, self.bundle, architecture, rng) for architecture in self.architectures]


# A family's supernet is made once, by the worker that has all of its tests.
@pytest.fixture(
    scope="module",
    params=[pytest.param(family, marks=pytest.mark.xdist_group(f"peer-{family}")) for family in FAMILIES],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    family = request.param
    with kernels_of(family):
        net = peer_supernet(family)
        _, _, space, options = FAMILIES[family]
        transforms = any(name.endswith("_matrix") for name in net.state_dict())
        assert transforms == (family not in (*COMPOFA, "ofa-resnet50"))
        folder = tmp_path_factory.mktemp("peer")
        checkpoint = save_checkpoint(net, folder / "checkpoint.pth", older_names=family in COMPOFA)
        export_checkpoint(
            checkpoint, make_space(space, options | {"resolutions": RESOLUTIONS}), folder / "peer.supernet"
        )
        checkpoint.unlink()
        yield Pair(net, SupernetBundle.open(folder / "peer.supernet"))


def test_every_space_of_the_peers_is_compared() -> None:
    assert {family[2] for family in FAMILIES.values()} == set(space_names()) - {"digits", "mbconv", "resnet"}


@pytest.mark.parametrize("name", list(FORMATS))
def test_subnets_equal_the_peers(pair: Pair, name: str) -> None:
    for subnet in pair.subnets:
        assert_equal_logits(FORMATS[name](subnet.graph, subnet.images), subnet.expected)


@pytest.mark.parametrize("name", list(FORMATS))
def test_one_layer_that_is_three_percent_off_is_found(pair: Pair, name: str) -> None:
    """The comparison above fails for it, whatever its kind; of each kind the first layer, which has the farthest way
    to the logits."""
    rng = np.random.default_rng(3)
    smallest = pair.subnets[0]
    tried = set()
    for kind in KINDS:
        for layer in layers_of(smallest.graph, kind)[:1]:
            tried.add(kind)
            found = FORMATS[name](perturbed(smallest.graph, layer, rng), smallest.images)
            assert disagreement(found, smallest.expected) > 10 * TOLERANCE, layer
    assert tried >= {"stem", "expansion", "depthwise kernel", "projection", "shortcut", "classifier"}


def test_the_supernets_own_batch_norms_are_sliced_as_the_peers_are(pair: Pair) -> None:
    """What a subnet has before it is calibrated."""
    for architecture in pair.architectures:
        ours = [conv.norm for conv in slice_subnet(pair.bundle, architecture).convolutions() if conv.norm is not None]
        subnet = peer_subnet(pair.net, architecture)
        theirs = [module for module in subnet.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm, expected in zip(ours, theirs, strict=True):
            for found, tensor in (
                (norm.gamma, expected.weight),
                (norm.beta, expected.bias),
                (norm.mean, expected.running_mean),
                (norm.variance, expected.running_var),
            ):
                np.testing.assert_array_equal(found, tensor.detach().numpy())
            assert norm.epsilon == expected.eps


def test_statistics_equal_the_peers(pair: Pair) -> None:
    """`set_running_statistics` over batches of unlike sizes; every mean and variance, in order."""
    net, bundle = pair.net, pair.bundle
    set_running_statistics = import_peer("ofa.imagenet_classification.elastic_nn.utils").set_running_statistics
    rng = np.random.default_rng(1)
    (architecture,) = bundle.space.decode(bundle.space.sample(1, rng))
    graph = slice_subnet(bundle, architecture)
    batches = [photo_like(n, graph.input_shape, rng) for n in (4, 2)]
    subnet = peer_subnet(net, architecture)
    set_running_statistics(subnet, [(torch.from_numpy(batch), None) for batch in batches])
    theirs = [module for module in subnet.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for (mean, variance), norm in zip(estimate_statistics(graph, batches).values(), theirs, strict=True):
        deviation = float(norm.running_var.sqrt().max())
        np.testing.assert_allclose(mean, norm.running_mean.numpy(), rtol=0, atol=1e-4 * deviation)
        np.testing.assert_allclose(variance, norm.running_var.numpy(), rtol=1e-4, atol=1e-4 * deviation**2)
