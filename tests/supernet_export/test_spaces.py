"""Design spaces: the two views of a genome agree, and with the peer's own networks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs import peer

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError, UsageError
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.registry import make_space, space_names

NAMES = space_names()


def _random(space: DesignSpace, count: int, seed: int = 0) -> tuple[np.ndarray, list[Architecture]]:
    genomes = space.sample(count, np.random.default_rng(seed))
    return genomes, space.decode(genomes)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_architectures_and_genomes_are_one_to_one(name: str, seed: int) -> None:
    space = make_space(name)
    genomes, architectures = _random(space, 20, seed)
    assert (space.encode(architectures) == genomes).all()
    rng = np.random.default_rng(seed)
    for moved in (space.mutate(genomes, 0.3, rng), space.crossover(genomes, genomes[::-1], rng)):
        assert ((moved >= 0) & (moved < space.cardinalities)).all()
        assert (space.encode(space.decode(moved)) == moved).all()


@pytest.mark.parametrize("name", NAMES)
def test_one_hot_and_slots_tell_networks_apart_exactly_as_genomes_do(name: str) -> None:
    space = make_space(name)
    base = space.sample(1, np.random.default_rng(1))
    genomes = np.unique(space.mutate(np.repeat(base, 400, axis=0), 0.05, np.random.default_rng(2)), axis=0)
    assert len(np.unique(space.one_hot(genomes), axis=0)) == len(genomes)
    assert len(np.unique(space.slots(genomes), axis=0)) == len(genomes)
    sizes = [len(costs) for costs in space.slot_costs]
    assert (space.slots(genomes) < sizes).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_space_can_be_made_again_from_its_own_options(name: str) -> None:
    space = make_space(name)
    again = make_space(name, dict(space.options))
    genomes, architectures = _random(space, 10)
    assert again.decode(genomes) == architectures
    assert np.array_equal(again.macs(genomes), space.macs(genomes))


def test_compofa_holds_its_243_networks_at_each_resolution() -> None:
    space = make_space("compofa")
    genomes = space.enumerate()
    assert len(genomes) == space.size == 243 * len(space.resolutions)
    for architecture in space.decode(genomes[::50]):
        blocks = np.array(architecture.e).reshape(5, 4)
        for depth, ratios in zip(architecture.d, blocks, strict=True):
            assert ratios.tolist() == [{2: 3, 3: 4, 4: 6}[depth]] * depth + [0] * (4 - depth)


def test_every_compofa_network_is_one_of_ofa_mbv3_with_the_same_costs() -> None:
    wide = make_space("ofa-mbv3")
    for name in ("compofa", "compofa-elastic"):
        space = make_space(name)
        genomes, architectures = _random(space, 50)
        same = wide.encode(architectures)
        assert wide.decode(same) == architectures
        assert np.allclose(wide.macs(same), space.macs(genomes))
        assert np.array_equal(wide.one_hot(same), space.one_hot(genomes))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ofa-mbv3", {"r": 225}, r"r \(resolution\) is 225; it must be one of 128"),
        ("ofa-mbv3", {"d": (2, 2, 5, 2, 2)}, r"d\[2\] \(depth\) is 5"),
        ("ofa-mbv3", {"ks": (9,) + (3,) * 19}, r"ks\[0\] \(kernel\) is 9"),
        ("ofa-mbv3", {"ks": (3,) * 19}, "takes 20 entries in 'ks'"),
        ("compofa", {"e": (4.0,) * 20}, r"e\[0\] \(expand ratio\) is 4; in compofa a stage of depth 2 has 3"),
        ("compofa", {"ks": (7,) * 20}, r"ks\[0\] \(kernel\) is 7"),
        ("ofa-resnet50", {"w": (3, 0, 0, 0, 0, 0)}, r"w\[0\] \(width index\) is 3"),
        ("ofa-resnet50", {"d": (1, 0, 0, 0, 0)}, r"d\[0\] \(stem depth\) is 1"),
    ],
)
def test_what_is_not_in_the_space_is_refused_by_name(name: str, change: dict[str, object], message: str) -> None:
    space = make_space(name)
    (smallest,) = space.decode(space.smallest())
    with pytest.raises(ArchitectureError, match=message):
        space.encode([smallest.model_copy(update=change)])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ofa-mbv3", {"width": "1.0"}),
        ("ofa-mbv3", {"width": float("nan")}),
        ("ofa-mbv3", {"width": 0}),
        ("ofa-mbv3", {"resolutions": [160, 161]}),
        ("ofa-mbv3", {"resolutions": []}),
        ("ofa-proxyless", {"width": 20.0}),
        ("ofa-resnet50", {"resolutions": [208]}),
        ("ofa-mbv3", {"colour": "red"}),
        ("ofa-mbv3", {"width": "wide"}),
        ("ofa-mbv3", {"resolutions": [160.0]}),
        ("ofa-resnet50", {"resolutions": [10**9]}),
        ("digits", {"resolutions": [10**9]}),
        ("digits", {"resolutions": 8}),
        ("ofa-mbv4", {}),
    ],
)
def test_options_that_no_supernet_has_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        make_space(name, options)


def test_one_hot_is_the_input_of_the_published_mobilenet_predictor() -> None:
    predictor = peer.import_peer("ofa.tutorial.accuracy_predictor").AccuracyPredictor
    space = make_space("ofa-mbv3")
    genomes, architectures = _random(space, 50)
    wanted = [
        predictor.spec2feats(list(a.ks), [int(ratio) for ratio in a.e], list(a.d), a.r).numpy() for a in architectures
    ]
    assert np.array_equal(space.one_hot(genomes), np.stack(wanted))


def test_one_hot_and_macs_are_those_of_the_peers_resnet() -> None:
    networks = peer.import_peer("ofa.imagenet_classification.elastic_nn.networks")
    encoder = peer.import_peer("ofa.nas.accuracy_predictor").ResNetArchEncoder
    efficiency = peer.import_peer("ofa.nas.efficiency_predictor")
    space = make_space("ofa-resnet50")
    genomes, architectures = _random(space, 20)
    net = networks.OFAResNets(
        depth_list=[0, 1, 2], expand_ratio_list=[0.2, 0.25, 0.35], width_mult_list=[0.65, 0.8, 1.0]
    )
    specs = [
        {"d": list(a.d), "e": [ratio or 0.2 for ratio in a.e], "w": list(a.w), "image_size": a.r} for a in architectures
    ]
    encode = encoder(image_size_list=list(space.resolutions)).arch2feature
    assert np.array_equal(space.one_hot(genomes), np.stack([encode(spec) for spec in specs]))
    macs = [1e6 * efficiency.ResNet50FLOPsModel(net).get_efficiency(spec) for spec in specs]
    assert np.allclose(space.macs(genomes), macs, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "width", "network", "model"),
    [
        ("ofa-mbv3", 1.0, "OFAMobileNetV3", "Mbv3FLOPsModel"),
        ("ofa-mbv3", 1.2, "OFAMobileNetV3", "Mbv3FLOPsModel"),
        ("ofa-proxyless", 1.3, "OFAProxylessNASNets", "ProxylessNASFLOPsModel"),
    ],
)
def test_macs_are_those_of_the_peers_networks(name: str, width: float, network: str, model: str) -> None:
    networks = peer.import_peer("ofa.imagenet_classification.elastic_nn.networks")
    efficiency = peer.import_peer("ofa.nas.efficiency_predictor")
    space = make_space(name, {"width": width})
    genomes, architectures = _random(space, 20)
    net = getattr(networks, network)(
        width_mult=width, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4]
    )
    count = getattr(efficiency, model)(net).get_efficiency
    wanted = [
        1e6 * count({"ks": [k or 3 for k in a.ks], "e": [int(x) or 3 for x in a.e], "d": list(a.d), "image_size": a.r})
        for a in architectures
    ]
    assert np.allclose(space.macs(genomes), wanted, rtol=1e-9)
