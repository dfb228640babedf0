"""Bundles: what is written is what is mapped, and no damage gets through."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rigs.supernets import random_bundle, random_manifest, random_state_dict

from fleetnas.fleet_protocol.errors import BundleError, CheckpointError, CorruptBundleError, HashMismatchError
from fleetnas.supernet_export.bundle import SupernetBundle, write_bundle
from fleetnas.supernet_export.export import export_state_dict, file_sha256
from fleetnas.supernet_export.spaces.digits import DigitsSpace

SPACE = DigitsSpace()
PREPROCESSING = {"channels": 1, "mean": [0.5], "std": [0.25], "interpolation": "bilinear"}
HELD_OUT = {"samples": 10, "held_out": 2, "spearman": 0.9, "mae_percent": 1.0, "rmse_percent": 1.5}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    return random_bundle(tmp_path_factory.mktemp("bundle") / "random.supernet", SPACE)


def altered(bundle: SupernetBundle, path: Path, **changes: object) -> Path:
    """The bundle with another manifest."""
    manifest = json.loads(bundle.manifest.text()) | changes
    whole = bundle.path.read_bytes()
    (length,) = struct.unpack_from("<Q", whole)
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"]["fleetnas"] = json.dumps(manifest)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + whole[8 + length :])
    return path


def reason(path: Path, **options: str) -> str:
    with pytest.raises(BundleError) as caught:
        SupernetBundle.open(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_tensor_survives(bundle: SupernetBundle) -> None:
    tensors = export_state_dict(random_state_dict(SPACE), SPACE)
    assert set(bundle.names) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(bundle.tensor(name), array)


def test_tensors_are_views_on_the_file(bundle: SupernetBundle) -> None:
    array = bundle.tensor("first_conv.conv.weight")
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_safetensors_itself_reads_a_bundle(bundle: SupernetBundle) -> None:
    from safetensors import safe_open

    with safe_open(bundle.path, "numpy") as file:
        assert set(file.keys()) == set(bundle.names)
        name = "classifier.linear.weight"
        np.testing.assert_array_equal(file.get_tensor(name), bundle.tensor(name))


def test_the_same_content_gives_the_same_bytes(bundle: SupernetBundle, tmp_path: Path) -> None:
    tensors = export_state_dict(random_state_dict(SPACE), SPACE)
    again = write_bundle(tmp_path / "again.supernet", bundle.manifest, dict(reversed(tensors.items())))
    assert again == bundle.sha256
    assert (tmp_path / "again.supernet").read_bytes() == bundle.path.read_bytes()


def test_a_failed_write_leaves_no_file(bundle: SupernetBundle, tmp_path: Path) -> None:
    with pytest.raises(CorruptBundleError, match="needs a tensor"):
        write_bundle(tmp_path / "x.supernet", bundle.manifest, {})
    assert list(tmp_path.iterdir()) == []


def test_the_announced_hash_is_checked(bundle: SupernetBundle) -> None:
    assert SupernetBundle.open(bundle.path, expected_sha256=bundle.sha256).sha256 == bundle.sha256
    with pytest.raises(HashMismatchError, match="fetch it again"):
        SupernetBundle.open(bundle.path, expected_sha256="0" * 64)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_noticed(bundle: SupernetBundle, tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(bundle.path.read_bytes())
    (length,) = struct.unpack_from("<Q", whole)
    ends = st.one_of(st.integers(0, 8 + length), st.integers(8 + length, len(whole) - 1))
    position = data.draw(ends)
    whole[position] ^= 1 << data.draw(st.integers(0, 7))
    damaged = tmp_path / "damaged.supernet"
    damaged.write_bytes(whole)
    reason(damaged)
    with pytest.raises(HashMismatchError):
        SupernetBundle.open(damaged, expected_sha256=bundle.sha256)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_truncation_is_noticed(bundle: SupernetBundle, tmp_path: Path, data: st.DataObject) -> None:
    whole = bundle.path.read_bytes()
    kept = data.draw(st.one_of(st.integers(0, 4000), st.integers(0, len(whole) - 1)))
    damaged = tmp_path / "truncated.supernet"
    damaged.write_bytes(whole[:kept])
    reason(damaged)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["__metadata__", "fleetnas", "content_sha256", "dtype", "shape", "data_offsets", "first_conv"]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    rest=st.binary(max_size=64),
)
def test_garbage_is_refused_in_one_line(tmp_path: Path, header: bytes, rest: bytes) -> None:
    path = tmp_path / "garbage.supernet"
    path.write_bytes(struct.pack("<Q", len(header)) + header + rest)
    reason(path)
    path.write_bytes(header + rest)
    reason(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in reason(tmp_path / "absent.supernet")
    assert "cannot be read" in reason(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format_version": 3}, "upgrade fleetnas"),
        ({"space": "nowhere"}, "no design space is called 'nowhere'"),
        ({"options": {"colours": 3}}, "does not take these options"),
        ({"options": {"resolutions": "many"}}, "design space cannot be made"),
        ({"space": "ofa-mbv3", "options": {}}, "must have shape"),
        ({"space": "ofa-resnet50", "options": {}}, "needs a tensor"),
        ({"options": {"resolutions": [8, 10**9]}}, "multiples of 4 from 8 to 64"),
        ({"options": {"resolutions": [8, -8]}}, "multiples of 4 from 8 to 64"),
        ({"options": {"resolutions": [8.0, 16]}}, "multiples of 4 from 8 to 64"),
        ({"options": {"resolutions": [True]}}, "multiples of 4 from 8 to 64"),
        ({"options": {"resolutions": list(range(8, 10**5, 4))}}, "multiples of 4 from 8 to 64"),
        ({"options": {"resolutions": []}}, "at least one"),
        ({"options": {"resolutions": [[8]]}}, "design space cannot be made"),
        ({"classes": 0}, "classes"),
        ({"classes": 1_000_000}, "1,000,000 classes"),
        ({"classes": 10**9}, "classes"),
        ({"preprocessing": None}, "preprocessing"),
        ({"preprocessing": {**PREPROCESSING, "channels": 3}}, "as many means"),
        ({"preprocessing": {**PREPROCESSING, "channels": 2, "mean": [0, 0], "std": [1, 1]}}, "2 channels"),
        ({"preprocessing": {**PREPROCESSING, "std": [0.0]}}, "preprocessing.std"),
        ({"preprocessing": {**PREPROCESSING, "mean": [1e300]}}, "preprocessing.mean"),
        ({"preprocessing": {**PREPROCESSING, "crop_fraction": 1e-9}}, "crop_fraction"),
        ({"accuracy_predictor": {"source": "", "held_out": {**HELD_OUT, "mae_percent": 1e300}}}, "held_out"),
        ({"accuracy_predictor": {"source": "", "held_out": {**HELD_OUT, "samples": -1}}}, "held_out"),
        ({"dataset": "x" * 65}, "dataset"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_that_cannot_be_served_is_refused(
    bundle: SupernetBundle, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    path = altered(bundle, tmp_path / "altered.supernet", **changes)
    # The hash that was announced is right, so only the manifest can be what is wrong.
    assert said in reason(path, expected_sha256=file_sha256(path))


def test_a_manifest_cannot_steer_a_terminal(bundle: SupernetBundle, tmp_path: Path) -> None:
    path = altered(bundle, tmp_path / "altered.supernet", dataset="a\x1b[2J", provenance={"source": "b\x07"})
    manifest = SupernetBundle.open(path, expected_sha256=file_sha256(path)).manifest
    assert (manifest.dataset, manifest.provenance.source) == ("a?[2J", "b?")


class Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("layout", ["pickle", "torch", "header", "manifest"])
def test_code_in_a_bundle_is_refused_and_not_run(bundle: SupernetBundle, tmp_path: Path, layout: str) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "x.supernet"
    trap = pickle.dumps({"weights": Trap(sprung)})
    if layout == "pickle":
        path.write_bytes(trap)
    elif layout == "torch":
        pytest.importorskip("torch").save({"state_dict": {"weight": Trap(sprung)}}, path)
    elif layout == "header":
        path.write_bytes(struct.pack("<Q", len(trap)) + trap)
    else:
        altered(bundle, path, options={"resolutions": [trap.decode("latin-1")]})
    reason(path)
    assert not sprung.exists()
    pickle.loads(trap)
    assert sprung.exists(), "the trap works"


@pytest.mark.parametrize("change", ["missing", "shape", "foreign"])
def test_tensors_of_another_network_are_refused(tmp_path: Path, change: str) -> None:
    tensors = export_state_dict(random_state_dict(SPACE), SPACE)
    name = "classifier.linear.bias"
    if change == "missing":
        del tensors[name]
    elif change == "shape":
        tensors[name] = tensors[name][:-1]
    else:
        tensors["classifier.linear.colour"] = tensors[name]
    with pytest.raises(CorruptBundleError, match=r"classifier\.linear\.(bias|colour)"):
        write_bundle(tmp_path / "x.supernet", random_manifest(SPACE, 10, 1), tensors)


@pytest.mark.parametrize("change", ["missing", "shape", "foreign", "nan"])
def test_a_state_dict_of_another_network_is_refused(change: str) -> None:
    state = random_state_dict(SPACE)
    name = "blocks.3.mobile_inverted_conv.depth_conv.conv.weight"
    if change == "missing":
        del state[name]
    elif change == "shape":
        state[name] = state[name][:, :, 1:-1, 1:-1]
    elif change == "nan":
        state[name] = np.full_like(state[name], np.nan)
    else:
        state["blocks.99.conv.weight"] = state[name]
    with pytest.raises(CheckpointError, match=r"blocks\.(3|99)\."):
        export_state_dict(state, SPACE)
