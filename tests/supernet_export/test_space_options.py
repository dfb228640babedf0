"""Options of design spaces: any that are taken give one network in every view of it; others are refused in one line."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rigs.graph_costs import graph_costs
from rigs.logit_parity import photo_like
from rigs.random_graphs import run_onnx, run_tflite
from rigs.search_problems import random_accuracy, random_latency
from rigs.space_options import space_options
from rigs.supernets import random_state_dict

from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.search.engine import search
from fleetnas.coordinator.search.evolution import EvolutionSettings
from fleetnas.coordinator.search.guided import GuidedSettings
from fleetnas.coordinator.search.problem import Problem
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.calibration.activation_ranges import observe_ranges
from fleetnas.supernet_export.calibration.estimate import estimate_statistics
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.emitters.onnx_int8 import emit_int8_onnx
from fleetnas.supernet_export.emitters.tflite import emit_tflite
from fleetnas.supernet_export.export import export_state_dict
from fleetnas.supernet_export.graph import Graph
from fleetnas.supernet_export.slicing.families import slicer_for
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.options import input_size
from fleetnas.supernet_export.spaces.registry import built_in_space_names, make_space

some = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))


def graphs_of(space: DesignSpace, genomes: Any) -> list[Graph]:
    tensors = export_state_dict(random_state_dict(space), space)
    slicer = slicer_for(space)
    return [slicer.slice(tensors.__getitem__, architecture, None) for architecture in space.decode(genomes)]


@some
@given(chosen=space_options(), seed=st.integers(0, 99))
def test_architectures_and_genomes_are_one_to_one(chosen: tuple[str, dict[str, Any]], seed: int) -> None:
    space, rng = make_space(*chosen), np.random.default_rng(seed)
    genomes = np.concatenate([space.smallest(), space.largest(), space.sample(20, rng)])
    assert (space.encode(space.decode(genomes)) == genomes).all()
    for moved in (space.mutate(genomes, 0.3, rng), space.crossover(genomes, genomes[::-1], rng)):
        assert ((moved >= 0) & (moved < space.cardinalities)).all()
        assert (space.encode(space.decode(moved)) == moved).all()
    distinct = len(np.unique(genomes, axis=0))
    assert len(np.unique(space.one_hot(genomes), axis=0)) == distinct
    assert len(np.unique(space.slots(genomes), axis=0)) == distinct
    assert (space.slots(genomes) < [len(costs) for costs in space.slot_costs]).all()


@some
@given(chosen=space_options())
def test_a_space_is_made_again_from_its_own_options(chosen: tuple[str, dict[str, Any]]) -> None:
    space = make_space(*chosen)
    again = make_space(chosen[0], space.options)
    assert again.options == space.options
    assert (again.classes, again.image_channels, again.aspect) == (space.classes, space.image_channels, space.aspect)
    assert all(map(np.array_equal, again.slot_costs, space.slot_costs))


@some
@given(chosen=space_options(), seed=st.integers(0, 99))
def test_costs_are_those_of_the_graph(chosen: tuple[str, dict[str, Any]], seed: int) -> None:
    space = make_space(*chosen)
    genomes = np.concatenate([space.smallest(), space.largest(), space.sample(3, np.random.default_rng(seed))])
    for graph, macs, parameters in zip(
        graphs_of(space, genomes), space.macs(genomes), space.parameters(genomes), strict=True
    ):
        assert graph_costs(graph) == (macs, parameters)


@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(chosen=space_options())
def test_the_smallest_and_the_largest_subnet_run_in_both_formats(chosen: tuple[str, dict[str, Any]]) -> None:
    space = make_space(*chosen)
    for graph in graphs_of(space, np.concatenate([space.smallest(), space.largest()])):
        assert graph.input_shape[1:] == space.input_size(min(graph.input_shape[1:]))
        images = np.random.default_rng(0).standard_normal((1, *graph.input_shape)).astype(np.float32)
        logits = run_onnx(emit_onnx(graph), images)
        assert logits.shape == (1, space.classes)
        scale = max(1.0, float(np.abs(logits).max()))
        np.testing.assert_allclose(run_tflite(emit_tflite(graph), images) / scale, logits / scale, atol=2e-4)


@settings(deadline=None, max_examples=6, suppress_health_check=list(HealthCheck))
@given(chosen=space_options())
def test_the_largest_subnet_runs_calibrated_and_in_int8(chosen: tuple[str, dict[str, Any]]) -> None:
    space = make_space(*chosen)
    tensors = export_state_dict(random_state_dict(space), space)
    (largest,) = space.decode(space.largest())
    slicer = slicer_for(space)
    graph = slicer.slice(tensors.__getitem__, largest, None)
    images = photo_like(4, graph.input_shape, np.random.default_rng(0))
    graph = slicer.slice(tensors.__getitem__, largest, estimate_statistics(graph, [images]))
    ranges = observe_ranges(graph, [images])
    for logits in (
        run_onnx(emit_int8_onnx(graph, ranges, batch=len(images)), images),
        run_tflite(emit_tflite(graph, batch=len(images), ranges=ranges), images),
    ):
        assert logits.shape == (len(images), space.classes)
        assert np.isfinite(logits).all()


@some
@given(chosen=space_options())
def test_a_small_space_is_enumerated_to_its_size(chosen: tuple[str, dict[str, Any]]) -> None:
    space = make_space(*chosen)
    if np.prod(space.cardinalities.astype(float)) > 10_000:
        return
    genomes = space.enumerate()
    assert len(genomes) == space.size == len({architecture.fingerprint for architecture in space.decode(genomes)})


@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(chosen=space_options(), seed=st.integers(0, 99))
def test_both_engines_search_it(chosen: tuple[str, dict[str, Any]], seed: int) -> None:
    space = make_space(*chosen)
    accuracy, latency = random_accuracy(space, seed), random_latency(space, seed)
    fastest, slowest = Problem(space, accuracy, latency).fastest()[1], float(latency.predict(space.largest())[0])
    target = 0.5 * (fastest + max(fastest, slowest)) + 1e-6
    for engine in (GuidedSettings(rounds=2), EvolutionSettings(population=10, generations=3, further_generations=2)):
        result = search(
            Problem(space, accuracy, latency),
            [target],
            rng=np.random.default_rng(seed),
            strategy=Strategy.BOTTOM_UP,
            engine=engine,
        )
        (winner,) = result.winners
        assert winner.latency_ms <= target
        assert (space.encode(space.decode(winner.genome[None])) == winner.genome).all()
    features = FeatureMap(space).features(space.sample(5, np.random.default_rng(seed)))
    assert np.isfinite(features).all()


NUMBERS = st.sampled_from([0, -1, 1, 3, 1.0, 10**9, 10**400, 1e300, float("nan"), float("inf"), True, False])
NONSENSE = st.recursive(
    st.none() | NUMBERS | st.sampled_from(["1.0", "", "x" * 10**5, "\n", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["width", "", "blocks"]), inner),
    max_leaves=6,
)
OPTIONS = (
    *("classes", "image_channels", "width", "widths", "kernels", "expands", "depths", "resolutions", "aspect"),
    *(
        "stem",
        "first_block",
        "stages",
        "head",
        "tied",
        "stage_kernels",
        "batch_norm_epsilon",
        "surprise",
        "self",
        "",
        "a\nb",
        "\ud800",
    ),
)


@settings(deadline=None, max_examples=200)
@given(
    name=st.sampled_from(built_in_space_names()),
    options=st.dictionaries(st.sampled_from(OPTIONS), NONSENSE | st.just(list(range(10**5))), min_size=1, max_size=3),
)
def test_nonsense_is_refused_in_one_short_line(name: str, options: dict[str, Any]) -> None:
    try:
        make_space(name, options)
    except UsageError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 800


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ofa-mbv3", {"width": "1.0"}, "width: it must be a number, found '1.0'"),
        ("ofa-mbv3", {"classes": 1_000_001}, "classes: it must be at most 1000000"),
        ("ofa-mbv3", {"resolutions": [10**9]}, "multiples of 4 from 8 to 1024"),
        ("ofa-mbv3", {"kernels": [4]}, "must be odd"),
        ("ofa-mbv3", {"kernels": [3, 3]}, "differ"),
        ("ofa-mbv3", {"aspect": [1, 9]}, "8 times"),
        ("ofa-mbv3", {"width": float("inf")}, "finite"),
        ("ofa-resnet50", {"width": 1.0}, "no such option; did you mean widths? there are classes"),
        ("compofa", {"depths": [2, 3]}, "2 depths and 3 expand ratios are not as many"),
        ("compofa", {"stage_kernels": [3, 3]}, "5 stages and stage_kernels has 2"),
        ("compofa", {"kernels": [5, 7]}, "stage_kernels holds 3"),
        ("mbconv", {"stages": [{"width": 8, "blocks": 16}] * 5}, "80 blocks in all"),
        ("ofa-mbv3", {"depths": [16]}, "80 blocks in all"),
        ("ofa-proxyless", {"depths": [2, 13]}, "66 blocks in all"),
        ("compofa", {"depths": [2, 3, 13]}, "65 blocks in all"),
        ("mbconv", {"stages": [{"width": 0}]}, "stages.0.width"),
        ("mbconv", {"stem": {"activation": "gelu"}}, "stem.activation"),
        ("resnet", {"stages": [{"width": 64, "blocks": 16}] * 5}, "blocks in all"),
    ],
)
def test_what_is_wrong_is_named(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_space(name, options)
    assert words in str(caught.value)


def test_a_million_classes_are_a_space() -> None:
    space = make_space("ofa-mbv3", {"classes": 1_000_000})
    assert space.parameters(space.smallest())[0] > 1e9


@pytest.mark.parametrize(
    ("resolution", "aspect", "size"),
    [
        (96, (1, 1), (96, 96)),
        (97, (1, 1), (97, 97)),
        (96, (3, 4), (96, 128)),
        (96, (4, 3), (128, 96)),
        (128, (3, 4), (128, 172)),
        (100, (50, 51), (100, 104)),
        (100, (99, 100), (100, 100)),
        (8, (1, 8), (8, 64)),
    ],
)
def test_the_short_side_is_the_resolution_and_the_long_one_a_multiple_of_4(
    resolution: int, aspect: tuple[int, int], size: tuple[int, int]
) -> None:
    assert input_size(resolution, aspect) == size


def test_default_options_are_stored_as_ever() -> None:
    """Bundles of earlier versions keep their bytes."""
    sides = list(range(128, 225, 16))
    assert list(make_space("ofa-mbv3").options.items()) == [("width", 1.0), ("resolutions", sides)]
    assert list(make_space("compofa").options.items()) == [("width", 1.0), ("resolutions", sides)]
    assert list(make_space("digits").options.items()) == [("resolutions", [8, 12, 16, 24, 32])]
    assert list(make_space("ofa-resnet50").options) == ["resolutions"]


def test_resolutions_less_than_16_apart_have_columns_of_their_own() -> None:
    close = make_space("ofa-mbv3", {"resolutions": [128, 132, 136, 140]})
    assert len(np.unique(close.one_hot(close.largest()), axis=0)) == 1
    genomes = np.repeat(close.largest(), 4, axis=0)
    genomes[:, 0] = range(4)
    assert len(np.unique(close.one_hot(genomes), axis=0)) == 4
    published = make_space("ofa-mbv3", {"resolutions": [144, 224]})
    assert published.one_hot(published.largest()).shape[1] == 128
    assert published.one_hot(published.largest())[0, -8:].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]


def test_tied_choices_and_fixed_kernels_leave_the_genes_that_remain() -> None:
    layout = {"kernels": [3, 5], "expands": [2, 4], "depths": [1, 3]}
    for tied, fixed in itertools.product((False, True), repeat=2):
        options = layout | {"tied": tied} | ({"stage_kernels": [3, 5, 3]} if fixed else {})
        space = make_space("mbconv", options)
        blocks = 9
        assert space.gene_count == 1 + 3 + blocks * ((not tied) + (not fixed))
        for architecture in space.decode(space.sample(20, np.random.default_rng(0))):
            for stage, depth in enumerate(architecture.d):
                there = slice(3 * stage, 3 * stage + depth)
                if tied:
                    assert set(architecture.e[there]) == {{1: 2.0, 3: 4.0}[depth]}
                if fixed:
                    assert set(architecture.ks[there]) == {(3, 5, 3)[stage]}
