"""The elastic torch network against the `ofa` package."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rigs.logit_parity import TOLERANCE, assert_equal_logits, disagreement, photo_like  # noqa: E402
from rigs.peer import import_peer  # noqa: E402
from rigs.peer_supernets import peer_subnet  # noqa: E402

from fleetnas.fleet_protocol.errors import ArchitectureError  # noqa: E402
from fleetnas.supernet_export.digits.data import Part  # noqa: E402
from fleetnas.supernet_export.spaces.digits import DigitsSpace  # noqa: E402
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace  # noqa: E402
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork  # noqa: E402
from fleetnas.supernet_export.training import digits as recipe  # noqa: E402
from fleetnas.supernet_export.training.elastic import ElasticMBConvNet  # noqa: E402
from fleetnas.supernet_export.training.schedule import Phase  # noqa: E402

KERNELS, EXPANDS, DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)

MOBILENET_V3 = MBConvNetwork(
    stem_width=16,
    stem_stride=2,
    stem_activation="h_swish",
    first_block_width=16,
    first_block_activation="relu",
    stage_widths=(24, 40, 80, 112, 160),
    stage_blocks=(4, 4, 4, 4, 4),
    stage_strides=(2, 2, 2, 1, 2),
    stage_activations=("relu", "relu", "h_swish", "h_swish", "h_swish"),
    stage_squeeze=(False, True, False, True, True),
    final_expand_width=960,
    feature_width=1280,
    head_activation="h_swish",
    classes=1000,
)
PROXYLESS = MBConvNetwork(
    stem_width=32,
    stem_stride=2,
    stem_activation="relu6",
    first_block_width=16,
    first_block_activation="relu6",
    stage_widths=(24, 40, 80, 96, 192, 320),
    stage_blocks=(4, 4, 4, 4, 4, 1),
    stage_strides=(2, 2, 2, 1, 2, 1),
    stage_activations=("relu6",) * 6,
    stage_squeeze=(False,) * 6,
    final_expand_width=None,
    feature_width=1280,
    head_activation="relu6",
    classes=1000,
    first_block_residual=False,
    batch_norm_epsilon=1e-3,
)


def randomise(net: torch.nn.Module, seed: int) -> None:
    """Random weights and statistics at a scale that keeps activations and logits near one."""
    generator = torch.Generator().manual_seed(seed)
    state = net.state_dict()
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            value = 0.5 + noise.abs()
        elif name.endswith("bn.weight"):
            value = 1 + 0.2 * noise
        elif tensor.dim() >= 2:
            value = noise / tensor[0].numel() ** 0.5
        else:
            value = 0.2 * noise
        tensor.copy_(value)


@pytest.fixture(params=["OFAMobileNetV3", "OFAProxylessNASNets"])
def pair(request):
    """The peer's network, ours, and our space."""
    networks = import_peer()
    peer = getattr(networks, request.param)(
        ks_list=list(KERNELS), expand_ratio_list=list(EXPANDS), depth_list=list(DEPTHS), dropout_rate=0
    )
    network = MOBILENET_V3 if request.param == "OFAMobileNetV3" else PROXYLESS
    ours = ElasticMBConvNet(network, KERNELS, EXPANDS, DEPTHS)
    return peer.eval(), ours.eval(), MBConvSpace(network, resolutions=(64,))


def logits_of(net, images):
    with torch.no_grad():
        return net(torch.from_numpy(images)).numpy()


def calibrated_logits(peer, architecture, images):
    """Of the peer's own subnet with the statistics of these images."""
    subnet = peer_subnet(peer, architecture)
    set_running_statistics = import_peer("ofa.imagenet_classification.elastic_nn.utils").set_running_statistics
    set_running_statistics(subnet, [(torch.from_numpy(images), torch.zeros(len(images)))])
    return logits_of(subnet.eval(), images)


def test_active_subnets_equal_the_peers_on_the_same_weights(pair):
    peer, ours, space = pair
    randomise(ours, seed=0)
    peer.load_state_dict(ours.state_dict())
    rng = np.random.default_rng(2)
    genomes = np.concatenate([space.smallest(), space.largest(), space.sample(3, rng)])
    for architecture in space.decode(genomes):
        images = photo_like(8, (3, 64, 64), rng)
        expected = calibrated_logits(peer, architecture, images)
        ours.set_active(architecture)
        ours.calibrate(torch.from_numpy(images))
        assert_equal_logits(logits_of(ours, images), expected)


#: Of each kind of layer one, by the end of its name in both networks.
LAYERS = (
    "first_conv.conv.weight",
    "blocks.1.mobile_inverted_conv.inverted_bottleneck.conv.conv.weight",
    "blocks.1.mobile_inverted_conv.depth_conv.conv.conv.weight",
    "blocks.1.mobile_inverted_conv.point_linear.conv.conv.weight",
    "depth_conv.se.fc.reduce.weight",
    "depth_conv.se.fc.expand.weight",
    "final_expand_layer.conv.weight",
    "feature_mix_layer.conv.weight",
    "classifier.linear.weight",
)


def test_one_layer_that_is_three_percent_off_is_found(pair):
    """The comparison above fails for it, whatever its kind."""
    peer, ours, space = pair
    randomise(ours, seed=0)
    peer.load_state_dict(ours.state_dict())
    images = photo_like(8, (3, 64, 64), np.random.default_rng(3))
    (largest,) = space.decode(space.largest())
    expected = calibrated_logits(peer, largest, images)
    ours.set_active(largest)
    ours.calibrate(torch.from_numpy(images))
    generator = torch.Generator().manual_seed(4)
    tensors = ours.state_dict()
    tried = 0
    for end in LAYERS:
        for name in [name for name in tensors if name.endswith(end)][:1]:
            before = tensors[name].clone()
            tensors[name] *= 1 + 0.03 * torch.randn(before.shape, generator=generator)
            assert disagreement(logits_of(ours, images), expected) > 10 * TOLERANCE, name
            tensors[name].copy_(before)
            tried += 1
    assert tried >= 6
    assert disagreement(logits_of(ours, images), expected) <= TOLERANCE


def test_calibrated_statistics_equal_the_peers():
    networks = import_peer()
    peer = networks.OFAMobileNetV3(
        ks_list=list(KERNELS), expand_ratio_list=list(EXPANDS), depth_list=list(DEPTHS), dropout_rate=0
    ).eval()
    ours = ElasticMBConvNet(MOBILENET_V3, KERNELS, EXPANDS, DEPTHS).eval()
    randomise(ours, seed=3)
    peer.load_state_dict(ours.state_dict())
    space = MBConvSpace(MOBILENET_V3, resolutions=(64,))
    (architecture,) = space.decode(space.sample(1, np.random.default_rng(4)))
    images = photo_like(8, (3, 64, 64), np.random.default_rng(5))
    ours.set_active(architecture)
    ours.calibrate(torch.from_numpy(images))
    assert_equal_logits(logits_of(ours, images), calibrated_logits(peer, architecture, images))


def space_importances_out(net, seed):
    """Scale input channels of the convolutions that importance is read from to norms a tenth apart, in random order:
    the peer adds 200,000 to float32 importances, which makes ties of closer ones."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if name.endswith(("point_linear.conv.conv.weight", "se.fc.expand.weight")):
            norms = 0.1 * (1 + torch.randperm(tensor.shape[1], generator=generator))
            tensor *= (norms / tensor.abs().sum(dim=(0, 2, 3)))[None, :, None, None]


@pytest.mark.parametrize("within", [(6,), (6, 4)])
def test_channels_are_sorted_as_the_peer_sorts_them(pair, within):
    """Every tensor of the network, in the first expand phase and in the one that follows."""
    peer, ours, _ = pair
    randomise(ours, seed=6)
    space_importances_out(ours, seed=9)
    peer.load_state_dict(ours.state_dict())
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    peer.re_organize_middle_weights(expand_ratio_stage=len(within) - 1)
    ours.sort_channels(within)
    expected, found = peer.state_dict(), ours.state_dict()
    assert found.keys() == before.keys()
    for name, tensor in found.items():
        theirs = expected[name.replace(".mobile_inverted_conv.", ".conv.")]
        torch.testing.assert_close(tensor, theirs, rtol=0, atol=0, msg=name)
    changed = {name.split(".")[0] for name, tensor in found.items() if not torch.equal(tensor, before[name])}
    assert changed == {"blocks"}


def test_sorting_keeps_what_the_trained_expand_ratios_compute():
    ours = ElasticMBConvNet(PROXYLESS, KERNELS, EXPANDS, DEPTHS).eval()
    randomise(ours, seed=7)
    space = MBConvSpace(PROXYLESS, resolutions=(64,))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    (largest,) = space.decode(space.largest())

    @torch.no_grad()
    def logits():
        found = {}
        for expand in EXPANDS:
            ours.set_active(largest.model_copy(update={"e": (expand,) * space.block_count}))
            found[expand] = ours(images)
        return found

    before = logits()
    ours.sort_channels((6, 4))
    after = logits()
    for expand in (6, 4):
        torch.testing.assert_close(after[expand], before[expand], rtol=1e-4, atol=1e-4)
    assert (after[3] - before[3]).abs().max() > 1e-2


def test_what_the_network_does_not_hold_is_refused():
    space = DigitsSpace()
    net = ElasticMBConvNet(space.network, space.kernels, space.expands, space.depths)
    (largest,) = space.decode(space.largest())
    with pytest.raises(ArchitectureError, match="kernel 9"):
        net.set_active(largest.model_copy(update={"ks": (9,) * space.block_count}))
    with pytest.raises(ArchitectureError, match="entries in 'ks'"):
        net.set_active(largest.model_copy(update={"ks": (7,)}))


def test_phases_draw_only_from_their_choices():
    network = DigitsSpace().network
    phase = Phase("p", 1, kernels=(5, 7), expands=(3, 6), depths=(2, 4), learning_rate=0.1, random_subnets=1)
    rng = np.random.default_rng(0)
    drawn = [phase.sample(network, 8, rng) for _ in range(50)]
    assert {k for a in drawn for k in a.ks} == {5, 7}
    assert {e for a in drawn for e in a.e} == {3, 6}
    assert {d for a in drawn for d in a.d} == {2, 4}
    assert any(len(set(a.e[:4])) > 1 for a in drawn)


def test_a_compound_phase_ties_width_to_depth():
    network = DigitsSpace().network
    phase = Phase("p", 1, (3, 5, 7), (3, 4, 6), (2, 3, 4), learning_rate=0.1, random_subnets=1, compound=True)
    rng = np.random.default_rng(0)
    for architecture in [phase.sample(network, 8, rng) for _ in range(20)]:
        for stage, depth in enumerate(architecture.d):
            assert set(architecture.e[4 * stage : 4 * stage + 4]) == {{2: 3, 3: 4, 4: 6}[depth]}
            assert len(set(architecture.ks[4 * stage : 4 * stage + 4])) == 1


def test_training_twice_gives_the_same_weights_and_learns(monkeypatch):
    data = recipe.load_digits()
    few = dataclasses.replace(data, train=Part(data.train.images[:64], data.train.labels[:64]))
    monkeypatch.setattr(recipe, "load_digits", lambda: few)
    phases = [dataclasses.replace(recipe.SCHEDULE[-1], epochs=2, kernels=(3, 5), depths=(2,), sort_within=(6,))]
    smallest = dataclasses.replace(recipe.RECIPE, resolutions=(8,))

    def trained():
        losses = []
        net = recipe.train_digits(phases, lambda progress: losses.append(progress.loss), recipe=smallest)
        return recipe.state_arrays(net), losses

    (first, losses), (second, _) = trained(), trained()
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    assert losses[1] < losses[0]
