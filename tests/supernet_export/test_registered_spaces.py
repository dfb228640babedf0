"""Spaces of other distributions: found by their entry points, and used as the built-in ones are."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from rigs.random_graphs import run_onnx
from rigs.supernets import random_bundle

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.slicing.subnet import slice_subnet
from fleetnas.supernet_export.spaces.registry import make_space, space_names

DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"


def documented(language: str) -> str:
    """The example of that language in the documentation."""
    section = DOCUMENT.read_text(encoding="utf-8").partition("## Spaces of your own package")[2]
    return section.partition(f"```{language}\n")[2].partition("```")[0]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, entry_points: str, module: str = "") -> None:
    """Put a distribution's module and metadata where Python finds them."""
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)
    if module:
        (folder / f"{name}.py").write_text(module)
    if str(folder) not in sys.path:
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()


def test_the_documented_space_is_found_and_its_subnets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = documented("toml")
    assert toml.splitlines()[0] == '[project.entry-points."fleetnas.spaces"]'
    name, _, value = toml.splitlines()[1].partition(" = ")
    entry_points = f"[fleetnas.spaces]\n{name} = {value.strip().strip(chr(34))}\n"
    install(tmp_path / "site", monkeypatch, "plankton", entry_points, documented("python"))
    assert name in space_names()
    space = make_space(name, {"classes": 4})
    assert (space.name, space.classes) == (name, 4)
    bundle = random_bundle(tmp_path / "x.supernet", space)
    assert bundle.manifest.space == name
    (largest,) = bundle.space.decode(bundle.space.largest())
    graph = slice_subnet(bundle, largest)
    assert run_onnx(emit_onnx(graph), np.zeros((1, *graph.input_shape), np.float32)).shape == (1, 4)


def test_faults_of_other_distributions_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "[fleetnas.spaces]\nbroken = sponge:Broken\nmissing = sponge:Missing\nnowhere = no_such_module:X\n"
    module = "class Broken:\n    def __init__(self, **options):\n        raise KeyError('two\\nlines')\n"
    install(tmp_path, monkeypatch, "sponge", lines, module)
    for name, words in (("broken", "does not take"), ("missing", "imported"), ("nowhere", "imported")):
        with pytest.raises(UsageError, match=words) as caught:
            make_space(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="broken"):
        make_space("unknown")


def test_a_built_in_space_cannot_be_replaced_and_two_of_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "one", "[fleetnas.spaces]\ndigits = one:X\ntwin = one:X\n", "X = None\n")
    install(tmp_path, monkeypatch, "two", "[fleetnas.spaces]\ntwin = two:X\n", "X = None\n")
    assert make_space("digits").name == "digits"
    with pytest.raises(UsageError, match="2 distributions register a design space 'twin'"):
        make_space("twin")
