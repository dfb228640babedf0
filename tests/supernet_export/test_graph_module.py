"""A subnet as a torch module: the emitted file's logits, its own weights, batch norm that learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rigs.logit_parity import assert_equal_logits, photo_like
from rigs.random_graphs import run_onnx
from rigs.supernets import random_bundle

from fleetnas.supernet_export.calibration.estimate import estimate_statistics
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.graph import Graph
from fleetnas.supernet_export.graph_tensors import graph_tensors
from fleetnas.supernet_export.slicing.subnet import slice_subnet
from fleetnas.supernet_export.spaces.registry import built_in_space_names, make_space

torch = pytest.importorskip("torch")
from fleetnas.supernet_export.training.graph_module import GraphModule  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _calibrated(name: str, folder: Path, images: int) -> tuple[Graph, np.ndarray]:
    space = make_space(name)
    bundle = random_bundle(folder / "all.supernet", space)
    genomes = space.sample(20, np.random.default_rng(0))
    (architecture,) = space.decode(genomes[space.macs(genomes).argmin()][None])
    graph = slice_subnet(bundle, architecture)
    inputs = photo_like(images, graph.input_shape, np.random.default_rng(1))
    return slice_subnet(bundle, architecture, estimate_statistics(graph, [inputs])), inputs


@pytest.mark.parametrize("name", built_in_space_names())
def test_logits_are_those_of_the_emitted_file_and_weights_stay(name: str, tmp_path: Path) -> None:
    graph, images = _calibrated(name, tmp_path, 16)
    module = GraphModule(graph).eval()
    with torch.no_grad():
        found = module(torch.from_numpy(images)).numpy()
    assert_equal_logits(found, run_onnx(emit_onnx(graph, batch=len(images)), images))
    weights, ours = graph_tensors(graph), graph_tensors(module.graph())
    assert weights.keys() == ours.keys()
    assert all(np.array_equal(weights[key], ours[key]) for key in weights)
    assert emit_onnx(module.graph()) == emit_onnx(graph)


def test_training_moves_the_weights_and_the_file_follows(tmp_path: Path) -> None:
    graph, images = _calibrated("digits", tmp_path, 64)
    module = GraphModule(graph).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.from_numpy(images)).logsumexp(1).mean().backward()
        optimizer.step()
    module.eval()
    with torch.no_grad():
        found = module(torch.from_numpy(images)).numpy()
    trained = module.graph()
    assert_equal_logits(found, run_onnx(emit_onnx(trained, batch=len(images)), images))
    before, after = graph_tensors(graph), graph_tensors(trained)
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    # A channel that is silent for every image learns nothing.
    assert len(moved) > 0.95 * len(before)
    assert all(name in moved for name in before if name.endswith(("running_mean", "running_var")))


def test_the_module_copies_the_weights_of_a_mapped_bundle(tmp_path: Path) -> None:
    graph, _ = _calibrated("digits", tmp_path, 2)
    before = {name: array.copy() for name, array in graph_tensors(graph).items()}
    module = GraphModule(graph)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    assert all(np.array_equal(before[name], array) for name, array in graph_tensors(graph).items())
