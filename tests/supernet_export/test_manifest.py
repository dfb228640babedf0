"""Manifests of both format versions: what is written, what is read, and what is refused."""

from __future__ import annotations

import hashlib
import json
import struct
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rigs.supernets import named_bundle, random_manifest, random_state_dict
from rigs.untrained_supernet import write_untrained

from fleetnas.fleet_protocol.errors import CorruptBundleError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle, write_bundle
from fleetnas.supernet_export.export import export_state_dict
from fleetnas.supernet_export.manifest import (
    MAX_NAME_CHARACTERS,
    MAX_NAMES_BYTES,
    Manifest,
    Preprocessing,
    Provenance,
    checked_class_names,
    read_manifest,
)
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.preprocessing import DIGITS
from fleetnas.supernet_export.spaces.registry import make_space

SPACE = make_space("digits")
NAMES = tuple(f"class {i}" for i in range(10))
#: The manifest that fleetnas 0.1.0 wrote for `write_untrained`, that bundle's hash, and the hashes of its smallest
#: subnet's files.
TEXT_OF_VERSION_1 = (
    '{"format_version":1,"space":"digits","options":{"resolutions":[8,12,16,24,32]},"classes":10,"dataset":"digits",'
    '"preprocessing":{"channels":1,"mean":[0.5],"std":[0.25],"interpolation":"bilinear","crop_fraction":1.0},'
    '"provenance":{"source":"random weights","sha256":null},"accuracy_predictor":{"source":"random","held_out":null}}'
)
BUNDLE_OF_VERSION_1 = "cd7bc16e65d4e4a369ae2a77b15104d66fae968bda5b0fba2fe0f7311807a99f"
FILES_OF_VERSION_1 = {
    ("onnxruntime", "fp32"): "1bd37edf5545ef5507aa9d85a99a9cdb2ffff9291143e096fcffc3dd76c5d844",
    ("onnxruntime", "int8"): "6e964ee590e87f8b47a7bf3a8013b7c930ab61060d5c5ddb08f7fe701ccd7a64",
    ("litert", "fp32"): "b13a289ddfe62d1a3d571a6ea6734492c41335b330770bbfcfcea33fa413775e",
    ("litert", "int8"): "b812997b304d6edc3ef93262d5ace398f67a1f6cff6b5173ba4fd303e04d571e",
}


def fields(**changes: Any) -> dict[str, Any]:
    """Fields of a manifest of version 2, changed."""
    manifest = random_manifest(SPACE, 10, 1, class_names=NAMES, fit="squash")
    return json.loads(manifest.text()) | changes


def refusal(**changes: Any) -> str:
    with pytest.raises(CorruptBundleError) as caught:
        read_manifest(json.dumps(fields(**changes)))
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 600
    return message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, True), ({"dataset": "own"}, False), ({"class_names": tuple("0123456789")}, False), ({"classes": 11}, False)],
)
def test_scikit_learns_digits_are_those_without_class_names(changes: dict[str, Any], expected: bool) -> None:
    """A folder of the user's own may be called `digits` too; its images must be given."""
    fields = {"space": "digits", "classes": 10, "dataset": "digits", "preprocessing": DIGITS}
    manifest = Manifest(**{**fields, "provenance": Provenance(source="x"), **changes})
    assert manifest.is_digits is expected


def test_a_manifest_without_news_has_the_text_of_version_1() -> None:
    manifest = read_manifest(TEXT_OF_VERSION_1)
    assert manifest.format_version == 1
    assert (manifest.class_names, manifest.preprocessing.fit) == (None, "crop")
    assert manifest.text() == TEXT_OF_VERSION_1
    assert manifest.model_metadata() is None


def test_bundle_and_files_without_names_have_the_bytes_of_version_1(tmp_path: Path) -> None:
    bundle = SupernetBundle.open(write_untrained(tmp_path / "s.supernet"))
    assert bundle.sha256 == BUNDLE_OF_VERSION_1
    (architecture,) = SPACE.decode(SPACE.smallest())
    for (runtime, precision), expected in FILES_OF_VERSION_1.items():
        if runtime == "litert":
            pytest.importorskip("tflite")
        setting = RuntimeSetting.model_validate({"runtime": runtime, "precision": precision})
        model = build_model(bundle, architecture, None, setting)
        assert hashlib.sha256(model).hexdigest() == expected, (runtime, precision)


@pytest.mark.parametrize(("names", "fit"), [(NAMES, "crop"), (None, "letterbox"), (NAMES, "squash")])
def test_news_make_version_2_and_survive_a_bundle(tmp_path: Path, names: tuple[str, ...] | None, fit: Any) -> None:
    manifest = named_bundle(tmp_path / "s.supernet", SPACE, names, fit).manifest
    assert (manifest.format_version, manifest.class_names, manifest.preprocessing.fit) == (2, names, fit)
    assert read_manifest(manifest.text()) == manifest


def test_a_copy_with_names_is_written_as_version_2(tmp_path: Path) -> None:
    """`model_copy` validates nothing: the version must follow all the same, and a wrong copy must not be written."""
    tensors = export_state_dict(random_state_dict(SPACE), SPACE)
    manifest = random_manifest(SPACE, 10, 1)
    write_bundle(tmp_path / "s.supernet", manifest.model_copy(update={"class_names": NAMES}), tensors)
    found = SupernetBundle.open(tmp_path / "s.supernet").manifest
    assert (found.format_version, found.class_names) == (2, NAMES)
    with pytest.raises(CorruptBundleError, match="10 classes need as many names, and 3 are given"):
        write_bundle(tmp_path / "t.supernet", manifest.model_copy(update={"class_names": NAMES[:3]}), tensors)
    assert not (tmp_path / "t.supernet").exists()


def test_names_are_kept_in_the_composed_form_of_unicode() -> None:
    assert checked_class_names((unicodedata.normalize("NFD", "Käse"), "木")) == ("Käse", "木")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format_version": 3}, "upgrade fleetnas"),
        ({"format_version": 0}, "format_version"),
        ({"format_version": 1}, "version 1, which has neither class_names nor fit"),
        ({"colour": "red"}, "colour"),
        ({"preprocessing": fields()["preprocessing"] | {"colour": "red"}}, "preprocessing.colour"),
        ({"preprocessing": fields()["preprocessing"] | {"fit": "stretch"}}, "preprocessing.fit"),
        ({"preprocessing": fields()["preprocessing"] | {"crop_fraction": 0.875}}, "crop_fraction must be 1"),
        ({"class_names": NAMES[:9]}, "10 classes need as many names, and 9 are given"),
        ({"class_names": [*NAMES, "more"]}, "10 classes need as many names, and 11 are given"),
        ({"class_names": [*NAMES[:9], "class 3"]}, "classes 3 and 9 are both named 'class 3'"),
        ({"class_names": ["K\u00e4se", "Ka\u0308se", *NAMES[:8]]}, "classes 0 and 1 are both named"),
        ({"class_names": ["\x1b[2J", *NAMES[:9]]}, r"class 0 cannot be named '\x1b[2J'"),
        ({"class_names": ["a\nb", *NAMES[:9]]}, r"class 0 cannot be named 'a\nb'"),
        ({"class_names": ["a\u202eb", *NAMES[:9]]}, r"class 0 cannot be named 'a\u202eb'"),
        ({"class_names": ["\ud800", *NAMES[:9]]}, "manifest"),
        ({"class_names": ["", *NAMES[:9]]}, "class 0 cannot be named ''"),
        ({"class_names": [" ", *NAMES[:9]]}, "class 0 cannot be named ' '"),
        ({"class_names": ["x" * (MAX_NAME_CHARACTERS + 1), *NAMES[:9]]}, "1 to 200 characters"),
        ({"class_names": "abcdefghij"}, "class_names"),
        ({"class_names": [1] * 10}, "class_names"),
        ({"classes": 1_000_000, "class_names": ["x" * 40 + str(i) for i in range(50_000)]}, "524,288 bytes together"),
    ],
)
def test_a_hostile_manifest_is_refused(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(**changes)


def test_a_version_1_manifest_cannot_be_made_with_news() -> None:
    with pytest.raises(ValidationError, match="format version 1 knows neither class names nor a fit"):
        Manifest.model_validate(fields() | {"format_version": 1})


def test_squash_and_letterbox_show_whole_images() -> None:
    with pytest.raises(ValidationError, match="crop_fraction must be 1"):
        Preprocessing(channels=1, mean=(0,), std=(1,), interpolation="bilinear", crop_fraction=0.875, fit="letterbox")


def test_a_million_long_names_are_refused_before_a_bundle_is_read(tmp_path: Path) -> None:
    """The header's cap comes first: no more than four megabytes of JSON are ever parsed."""
    text = json.dumps(fields(classes=1_000_000, class_names=["x" * 190 + str(i) for i in range(100_000)]))
    header = json.dumps({"__metadata__": {"fleetnas": text, "content_sha256": "0" * 64}}).encode()
    path = tmp_path / "s.supernet"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CorruptBundleError, match="its header claims too much"):
        SupernetBundle.open(path)


def test_a_file_of_another_kind_is_told_from_a_bundle(tmp_path: Path) -> None:
    path = tmp_path / "20ms.json"
    path.write_text('{"target_ms": 20.0}')
    with pytest.raises(CorruptBundleError, match="it is a file of another kind"):
        SupernetBundle.open(path)


def test_the_costliest_names_that_are_allowed_fit_into_a_header() -> None:
    """Quotes are escaped twice in a header: four bytes each."""
    names = checked_class_names(tuple('"' * 4 + f"{i:05x}" for i in range(MAX_NAMES_BYTES // 9)))
    manifest = random_manifest(SPACE, 10, 1).model_copy(update={"class_names": names})
    assert len(json.dumps(manifest.text())) < 3 * 1024 * 1024
