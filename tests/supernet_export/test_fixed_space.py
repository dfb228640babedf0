"""The space of one network, and its bundle: the same contract as every space, and the same bytes as the supernet's."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rigs.supernets import random_bundle
from rigs.untrained_supernet import write_untrained

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError, CorruptBundleError, UsageError
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.cutting import cut_bundle, write_network
from fleetnas.supernet_export.graph import Graph, Statistics
from fleetnas.supernet_export.graph_tensors import graph_tensors
from fleetnas.supernet_export.model_file import emit
from fleetnas.supernet_export.quantisation import nominal_ranges
from fleetnas.supernet_export.slicing.fixed import FixedSlicer
from fleetnas.supernet_export.slicing.layers import TensorSource
from fleetnas.supernet_export.slicing.mbconv import MBConvSlicer
from fleetnas.supernet_export.slicing.subnet import slice_subnet
from fleetnas.supernet_export.spaces.base import COST_NAMES, DesignSpace
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from fleetnas.supernet_export.spaces.fixed import FixedSpace
from fleetnas.supernet_export.spaces.registry import built_in_space_names, make_space

NAMES = built_in_space_names()


def _some(space: DesignSpace, seed: int = 0) -> Architecture:
    """The smallest of a few subnets: absent blocks, narrow channels, small kernels."""
    genomes = space.sample(20, np.random.default_rng(seed))
    return space.decode(genomes[space.macs(genomes).argsort()[2]][None])[0]


@pytest.fixture(scope="module", params=NAMES)
def supernet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    return random_bundle(tmp_path_factory.mktemp("supernet") / "all.supernet", make_space(request.param))


@pytest.mark.parametrize("name", NAMES)
def test_one_network_keeps_the_contract_of_a_space(name: str) -> None:
    parent = make_space(name)
    architecture = _some(parent)
    space = make_space(
        "subnet", {"space": name, "options": dict(parent.options), "architecture": architecture.model_dump()}
    )
    again = make_space(space.name, dict(space.options))
    rng = np.random.default_rng(0)
    genome, of_parent = space.encode([architecture]), parent.encode([architecture])
    assert again.options == space.options
    assert space.size == 1
    assert len(space.enumerate()) == 1
    everything = [
        space.smallest(), space.largest(), space.sample(3, rng), space.mutate(genome, 1.0, rng),
        space.crossover(genome, genome, rng), space.canonical(genome), space.enumerate(),
    ]  # fmt: skip
    for genomes in everything:
        assert genomes.dtype == np.int16
        assert set(space.decode(genomes)) == {architecture}
        assert (space.encode(space.decode(genomes)) == genomes).all()
        assert space.slots(genomes).shape == (len(genomes), len(space.slot_costs))
        assert space.one_hot(genomes).shape == (len(genomes), 1)
        assert space.active(genomes).shape == genomes.shape
    assert space.resolutions == (architecture.r,)
    assert space.slot_names == parent.slot_names
    assert all(table.shape == (1, len(COST_NAMES)) for table in space.slot_costs)
    assert np.array_equal(space.costs(genome), parent.costs(of_parent))
    for figure in ("macs", "parameters", "peak_activation_bytes"):
        assert getattr(space, figure)(genome) == getattr(parent, figure)(of_parent)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mbconv", {"classes": 8, "aspect": [3, 4], "kernels": [3, 5], "expands": [2, 4], "depths": [1, 3]}),
        ("ofa-mbv3", {"classes": 5, "width": 0.5, "image_channels": 1, "resolutions": [64, 96]}),
        ("resnet", {"classes": 3, "aspect": [2, 1]}),
    ],
)
def test_a_network_of_any_options_is_cut_to_the_bit(name: str, options: dict[str, object], tmp_path: Path) -> None:
    parent = make_space(name, options)
    supernet = random_bundle(tmp_path / "all.supernet", parent)
    architecture = _some(parent)
    cut_bundle(supernet, architecture, tmp_path / "one.supernet")
    cut = SupernetBundle.open(tmp_path / "one.supernet")
    size = parent.input_size(architecture.r)
    assert cut.space.input_size(architecture.r) == size
    assert cut.space.aspect == parent.aspect
    assert (cut.space.classes, cut.space.image_channels) == (parent.classes, parent.image_channels)
    ours, theirs = slice_subnet(cut, architecture), slice_subnet(supernet, architecture)
    assert ours.input_shape == (parent.image_channels, *size)
    assert emit(replace(ours, metadata=None), "onnxruntime") == emit(replace(theirs, metadata=None), "onnxruntime")


def test_inactive_entries_of_an_architecture_do_not_matter() -> None:
    parent = make_space("digits")
    (smallest,) = parent.decode(parent.smallest())
    absent = smallest.model_copy(update={"ks": tuple(kernel or 7 for kernel in smallest.ks)})
    assert absent != smallest
    assert FixedSpace(parent, absent).architecture == smallest
    assert FixedSpace(parent, smallest).encode([absent]).tolist() == [[0, 0]]


def test_every_other_network_is_refused() -> None:
    parent = make_space("digits")
    smallest, largest = parent.decode(np.concatenate([parent.smallest(), parent.largest()]))
    space = FixedSpace(parent, smallest)
    with pytest.raises(ArchitectureError, match=f"one network, {smallest.fingerprint}.*{largest.fingerprint}"):
        space.encode([smallest, largest])
    with pytest.raises(ArchitectureError, match="resolution"):
        space.encode([smallest.model_copy(update={"r": 17})])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"space": "digits"},
        {"space": "digits", "options": {}, "architecture": {"r": 16}},
        {"space": "digits", "options": {}, "architecture": 3},
        {"space": "digits", "options": {}, "architecture": {"r": "much"}},
        {"space": "digits", "options": 7, "architecture": {"r": 16}},
        {"space": "nothing", "options": {}, "architecture": {"r": 16}},
        {"space": "subnet", "options": {}, "architecture": {"r": 16}},
        {"space": "digits", "options": {}, "architecture": {"r": 16}, "more": 1},
    ],
)
def test_impossible_options_are_refused_in_one_line(options: dict[str, object]) -> None:
    with pytest.raises(UsageError) as refused:
        make_space("subnet", options)
    assert "\n" not in str(refused.value)
    assert "_fixed_space" not in str(refused.value)


def _files(graph: Graph) -> list[str]:
    graph = replace(graph, metadata=None)  # the provenance, in which they differ
    made = [
        emit(graph, runtime, ranges)
        for runtime in ("onnxruntime", "litert")
        for ranges in (None, nominal_ranges(graph))
    ]
    return [hashlib.sha256(model).hexdigest() for model in made]


def test_a_cut_subnet_is_the_supernets_to_the_bit(supernet: SupernetBundle, tmp_path: Path) -> None:
    architecture = _some(supernet.space)
    sha256 = cut_bundle(supernet, architecture, tmp_path / "one.supernet")
    cut = SupernetBundle.open(tmp_path / "one.supernet", expected_sha256=sha256)
    assert cut.sha256 == sha256
    ours, theirs = slice_subnet(cut, architecture), slice_subnet(supernet, architecture)
    assert ours.input_shape == theirs.input_shape
    assert ours.classes == theirs.classes
    weights, of_supernet = graph_tensors(ours), graph_tensors(theirs)
    assert weights.keys() == of_supernet.keys()
    assert all(np.array_equal(weights[name], of_supernet[name]) for name in weights)
    assert _files(ours) == _files(theirs)
    assert cut.size < supernet.size
    assert cut.size < 4 * sum(array.size for array in weights.values()) + 64 * 1024
    assert cut.manifest.provenance.sha256 == supernet.sha256
    assert cut.manifest.preprocessing == supernet.manifest.preprocessing
    assert cut_bundle(supernet, architecture, tmp_path / "again.supernet") == sha256


def test_calibrated_statistics_reach_the_subnet_in_either_way(supernet: SupernetBundle, tmp_path: Path) -> None:
    architecture = _some(supernet.space, 1)
    rng = np.random.default_rng(0)
    statistics = {
        conv.name: (
            rng.standard_normal(len(conv.weight)).astype(np.float32),
            rng.uniform(0.5, 2, len(conv.weight)).astype(np.float32),
        )
        for conv in slice_subnet(supernet, architecture).convolutions()
        if conv.norm is not None
    }
    cut_bundle(supernet, architecture, tmp_path / "running.supernet")
    cut_bundle(supernet, architecture, tmp_path / "calibrated.supernet", statistics)
    expected = _files(slice_subnet(supernet, architecture, statistics))
    running = SupernetBundle.open(tmp_path / "running.supernet")
    assert _files(slice_subnet(running, architecture, statistics)) == expected
    assert _files(slice_subnet(running, architecture)) != expected
    assert _files(slice_subnet(SupernetBundle.open(tmp_path / "calibrated.supernet"), architecture)) == expected


def test_a_bundle_of_one_network_can_be_cut_again(supernet: SupernetBundle, tmp_path: Path) -> None:
    architecture = _some(supernet.space, 2)
    cut_bundle(supernet, architecture, tmp_path / "one.supernet")
    cut = SupernetBundle.open(tmp_path / "one.supernet")
    cut_bundle(cut, architecture, tmp_path / "two.supernet")
    again = SupernetBundle.open(tmp_path / "two.supernet")
    assert again.space.options == cut.space.options
    assert again.manifest.provenance.sha256 == cut.sha256
    assert _files(slice_subnet(again, architecture)) == _files(slice_subnet(supernet, architecture))


def test_a_slicer_that_computes_with_its_tensors_serves_as_well(tmp_path: Path) -> None:
    """The weights are kept by layer, so a third party's slicer may do with its tensors what it likes."""

    class Halving(MBConvSlicer):
        def slice(self, tensor: TensorSource, architecture: Architecture, statistics: Statistics | None) -> Graph:
            return super().slice(lambda name: tensor(name) * np.float32(0.5), architecture, statistics)

    parent = DigitsSpace()
    supernet = random_bundle(tmp_path / "all.supernet", parent)
    architecture = _some(parent)
    halving = Halving(parent)
    expected = halving.slice(supernet.tensor, architecture, None)
    slicer = FixedSlicer(FixedSpace(parent, architecture), halving)
    weights = graph_tensors(expected)
    assert slicer.bundle_shapes() == {name: array.shape for name, array in weights.items()}
    assert _files(slicer.slice(weights.__getitem__, architecture, None)) == _files(expected)


def test_a_graph_of_another_architecture_is_not_written(tmp_path: Path) -> None:
    parent = make_space("digits")
    supernet = random_bundle(tmp_path / "all.supernet", parent)
    smallest, largest = parent.decode(np.concatenate([parent.smallest(), parent.largest()]))
    with pytest.raises(CorruptBundleError):
        write_network(supernet, smallest, slice_subnet(supernet, largest), tmp_path / "one.supernet", origin="a test")
    assert [path.name for path in tmp_path.iterdir()] == ["all.supernet"]


def test_a_device_without_torch_opens_the_bundle_and_builds_its_file(tmp_path: Path) -> None:
    parent = make_space("digits")
    supernet = random_bundle(tmp_path / "all.supernet", parent)
    cut_bundle(supernet, _some(parent), tmp_path / "one.supernet")
    script = (
        "import sys;"
        "from fleetnas.supernet_export.bundle import SupernetBundle;"
        "from fleetnas.supernet_export.slicing.subnet import slice_subnet;"
        "bundle = SupernetBundle.open(sys.argv[1]);"
        "slice_subnet(bundle, bundle.space.decode(bundle.space.smallest())[0]);"
        "print([name for name in ('torch', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "one.supernet")],
        check=True, capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert found.stdout.strip() == "[]"


def test_a_cut_subnet_has_the_accuracy_that_the_supernet_predicts(tmp_path: Path) -> None:
    supernet = SupernetBundle.open(write_untrained(tmp_path / "all.supernet"))
    architecture = _some(supernet.space)
    cut_bundle(supernet, architecture, tmp_path / "one.supernet")
    cut = SupernetBundle.open(tmp_path / "one.supernet")
    theirs, ours = supernet.accuracy_predictor(), cut.accuracy_predictor()
    assert theirs is not None
    assert ours is not None
    expected = theirs.predict(supernet.space.one_hot(supernet.space.encode([architecture])))
    assert ours.predict(cut.space.one_hot(cut.space.encode([architecture]))) == pytest.approx(expected)
    assert cut.manifest.accuracy_predictor is not None
    assert cut.manifest.accuracy_predictor.source == "predicted by the supernet's: random"
