"""What model files say about themselves, read back by the tools that read such files."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rigs.flatbuffer_reader import Record
from rigs.supernets import named_bundle

from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.evaluation.classifier import open_classifier
from fleetnas.supernet_export.interpreters.onnxruntime import open_session
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.spaces.registry import make_space

SPACE = make_space("digits")
NAMES = ("null", "Käse", "木", 'a "b"', "comma, here", "v1.2", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    return named_bundle(tmp_path_factory.mktemp("named") / "digits.supernet", SPACE, NAMES, "letterbox")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    """The same weights in a bundle of version 1."""
    return named_bundle(tmp_path_factory.mktemp("plain") / "digits.supernet", SPACE, None)


def build(bundle: SupernetBundle, runtime: str, precision: str = "fp32") -> bytes:
    if runtime == "litert":
        pytest.importorskip("tflite")
    setting = RuntimeSetting.model_validate({"runtime": runtime, "precision": precision})
    return build_model(bundle, SPACE.decode(SPACE.smallest())[0], None, setting)


def metadata(model: bytes) -> Record:
    """The metadata flatbuffer inside a TFLite model."""
    from tflite.Model import Model

    root = Model.GetRootAs(model)
    (entry,) = (root.Metadata(index) for index in range(root.MetadataLength()))
    assert entry.Name() == b"TFLITE_METADATA"
    content = root.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
    assert content[4:8] == b"M001"
    return Record.root(content)


def expected(bundle: SupernetBundle) -> dict[str, Any]:
    return {
        "dataset": "random",
        "class_names": list(NAMES),
        "preprocessing": bundle.manifest.preprocessing.model_dump(mode="json"),
        "provenance": {"source": "random weights", "sha256": None},
    }


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_onnx_properties(bundle: SupernetBundle, precision: str) -> None:
    model = build(bundle, "onnxruntime", precision)
    parsed = onnx.load_from_string(model)
    onnx.checker.check_model(parsed)
    found = {entry.key: entry.value for entry in parsed.metadata_props}
    assert found == open_session(model).get_modelmeta().custom_metadata_map
    assert {key: value if key == "dataset" else json.loads(value) for key, value in found.items()} == expected(bundle)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_tflite_metadata(bundle: SupernetBundle, precision: str) -> None:
    """By the positions of metadata_schema.fbs: an RGB or grey image, its normalisation, and labels of the logits."""
    model = metadata(build(bundle, "litert", precision))
    assert model.text(0) == "subnet for random"
    assert model.text(7) == "1.0.0"
    (subgraph,) = model.records(3)
    (image,), (logits,) = subgraph.records(2), subgraph.records(3)
    assert (image.text(0), logits.text(0)) == ("input", "logits")
    content = image.record(3)
    assert content.number(0, "<B") == 2  # ImageProperties
    assert content.record(1).number(0, "<b") == 2  # GRAYSCALE
    size = content.record(1).record(1)
    side = SPACE.resolutions[0]
    assert (size.number(0, "<I"), size.number(1, "<I")) == (side, side)
    (unit,) = image.records(4)
    assert unit.number(0, "<B") == 1  # NormalizationOptions
    assert (unit.record(1).floats(0), unit.record(1).floats(1)) == ([127.5], [63.75])
    (labels,) = logits.records(6)
    assert (labels.text(0), labels.number(2, "<b")) == ("labels.txt", 2)  # TENSOR_AXIS_LABELS
    (description,) = model.records(6)
    assert (description.text(0), description.number(2, "<b")) == ("fleetnas.json", 1)  # DESCRIPTIONS


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_tflite_files_are_read_by_zip_readers(bundle: SupernetBundle, tmp_path: Path, precision: str) -> None:
    model = build(bundle, "litert", precision)
    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["labels.txt", "fleetnas.json"]
        assert archive.read("labels.txt").decode().splitlines() == list(NAMES)
        assert json.loads(archive.read("fleetnas.json")) == expected(bundle)
        for entry in archive.infolist():  # readers in C take the offsets as they are, from the file's beginning
            assert model[entry.header_offset : entry.header_offset + 4] == b"PK\3\4"
    if unzip := shutil.which("unzip"):
        (tmp_path / "model.tflite").write_bytes(model)
        found = subprocess.run(
            [unzip, "-t", str(tmp_path / "model.tflite")], capture_output=True, text=True, timeout=60
        )
        assert (found.returncode, "warning" in found.stdout + found.stderr) == (0, False), found.stdout + found.stderr


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_runtimes_answer_as_without_metadata(
    bundle: SupernetBundle, plain: SupernetBundle, runtime: str, precision: str
) -> None:
    if runtime == "litert":
        pytest.importorskip("ai_edge_litert.interpreter")
    with_metadata, without = build(bundle, runtime, precision), build(plain, runtime, precision)
    assert len(with_metadata) > len(without)
    side = SPACE.resolutions[0]
    image = np.random.default_rng(0).standard_normal((1, side, side)).astype(np.float32)
    np.testing.assert_array_equal(open_classifier(with_metadata)(image), open_classifier(without)(image))


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_a_bundle_of_version_1_says_nothing(plain: SupernetBundle, runtime: str) -> None:
    assert plain.manifest.format_version == 1
    model = build(plain, runtime)
    if runtime == "onnxruntime":
        assert not onnx.load_from_string(model).metadata_props
    else:
        assert not zipfile.is_zipfile(io.BytesIO(model))


def test_a_bundle_without_names_tells_its_preprocessing(tmp_path: Path) -> None:
    squashed = named_bundle(tmp_path / "s.supernet", SPACE, None, "squash")
    with zipfile.ZipFile(io.BytesIO(build(squashed, "litert"))) as archive:
        assert archive.namelist() == ["fleetnas.json"]
        assert json.loads(archive.read("fleetnas.json"))["preprocessing"]["fit"] == "squash"
    (subgraph,) = metadata(build(squashed, "litert")).records(3)
    assert not subgraph.records(3)[0].has(6)
    properties = {entry.key for entry in onnx.load_from_string(build(squashed, "onnxruntime")).metadata_props}
    assert properties == {"dataset", "preprocessing", "provenance"}


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_the_same_bundle_gives_the_same_bytes(bundle: SupernetBundle, tmp_path: Path, runtime: str) -> None:
    copy = tmp_path / "copy.supernet"
    copy.write_bytes(bundle.path.read_bytes())
    again = SupernetBundle.open(copy, expected_sha256=bundle.sha256)
    assert build(bundle, runtime) == build(again, runtime)


def test_colour_images_are_said_to_be_rgb_and_not_square(tmp_path: Path) -> None:
    pytest.importorskip("tflite")
    space = make_space("mbconv", {"aspect": [3, 4], "classes": 3})
    wide = named_bundle(tmp_path / "s.supernet", space, ("a", "b", "c"), "squash")
    (architecture,) = space.decode(space.smallest())
    model = build_model(wide, architecture, None, RuntimeSetting(runtime="litert"))
    (subgraph,) = metadata(model).records(3)
    properties = subgraph.records(2)[0].record(3).record(1)
    assert properties.number(0, "<b") == 1  # RGB
    height, width = space.input_size(architecture.r)
    size = properties.record(1)
    assert (size.number(0, "<I"), size.number(1, "<I")) == (width, height)
    assert subgraph.records(2)[0].records(4)[0].record(1).floats(0) == [127.5] * 3
