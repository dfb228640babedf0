"""Checkpoint files: the formats that exist are read, and nothing in a file ever runs."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from supernets import random_state_dict

torch = pytest.importorskip("torch")

from fleet_protocol.errors import CheckpointError  # noqa: E402
from supernet_export.accuracy import AccuracyPredictor  # noqa: E402
from supernet_export.bundle import SupernetBundle  # noqa: E402
from supernet_export.checkpoints import read_checkpoint  # noqa: E402
from supernet_export.export import export_checkpoint, file_sha256  # noqa: E402
from supernet_export.spaces.compofa import CompOfaSpace  # noqa: E402
from supernet_export.spaces.ofa_mbv3 import OfaMbv3Space  # noqa: E402
from supernet_export.spaces.ofa_proxyless import OfaProxylessSpace  # noqa: E402

WEIGHTS = {"first.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "first.bias": np.ones(3, np.float32)}


def tensors() -> dict[str, object]:
    return {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}


def reason(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", ["bare", "state_dict", "parallel", "half"])
@pytest.mark.parametrize("with_torch", [True, False])
def test_every_layout_of_a_state_dict_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrap: str, zipped: bool, with_torch: bool
) -> None:
    state = tensors()
    if wrap == "parallel":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    if wrap == "half":
        state = {name: tensor.half() for name, tensor in state.items()}  # type: ignore[attr-defined]
    content = {"epoch": 3, "state_dict": state} if wrap == "state_dict" else state
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    if not with_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    found = read_checkpoint(tmp_path / "x.pth")
    assert set(found) == set(WEIGHTS)
    for name, array in WEIGHTS.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array)


def test_safetensors_are_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(WEIGHTS, tmp_path / "x.safetensors")
    found = read_checkpoint(tmp_path / "x.safetensors")
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in WEIGHTS.items()}
    (tmp_path / "y.safetensors").write_bytes(b"no such thing")
    assert "safetensors" in reason(tmp_path / "y.safetensors")


class Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("layout", ["zip", "stream", "pickle"])
@pytest.mark.parametrize("with_torch", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, with_torch: bool
) -> None:
    sprung = tmp_path / "sprung"
    content = {"state_dict": tensors(), "hook": Trap(sprung)}
    if layout == "pickle":
        (tmp_path / "x.pth").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=layout == "zip")
    if not with_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    reason(tmp_path / "x.pth")
    assert not sprung.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    assert "would run code" in reason(tmp_path / "x.pth")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 0.999), zipped=st.booleans())
def test_any_truncation_is_refused_in_one_line(tmp_path: Path, cut: float, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": tensors()}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    reason(path)


def read_with_a_flipped_bit(path: Path, place: float, bit: int, *, zipped: bool, with_torch: bool) -> dict[str, Any]:
    """What is read of `WEIGHTS` after a bit was flipped; nothing where the file is refused."""
    torch.save({"state_dict": tensors()}, path, _use_new_zipfile_serialization=zipped)
    whole = bytearray(path.read_bytes())
    whole[int(place * len(whole))] ^= 1 << bit
    path.write_bytes(whole)
    with pytest.MonkeyPatch.context() as patch:
        if not with_torch:
            patch.setitem(sys.modules, "torch", None)
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            message = str(error)
    assert "\n" not in message
    return {}


flips = given(place=st.floats(0, 0.9999), bit=st.integers(0, 7), with_torch=st.booleans())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@flips
def test_no_flipped_bit_changes_what_is_read(tmp_path: Path, place: float, bit: int, with_torch: bool) -> None:
    """Either the file is refused, or the bit meant nothing, such as one of a time stamp."""
    found = read_with_a_flipped_bit(tmp_path / "x.pth", place, bit, zipped=True, with_torch=with_torch)
    assert not found or found.keys() == WEIGHTS.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, WEIGHTS[name])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@flips
def test_a_flipped_bit_in_the_older_layout_makes_nothing_but_tensors(
    tmp_path: Path, place: float, bit: int, with_torch: bool
) -> None:
    """It has no checksums, so a weight may change unnoticed."""
    found = read_with_a_flipped_bit(tmp_path / "x.pth", place, bit, zipped=False, with_torch=with_torch)
    assert all(array.dtype == np.float32 for array in found.values())


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "there is no checkpoint" in reason(tmp_path / "absent.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "no state dict but a list" in reason(tmp_path / "list.pth")
    torch.save({"a": "text"}, tmp_path / "text.pth")
    assert "'a' is a str" in reason(tmp_path / "text.pth")


def test_a_checkpoint_of_another_family_is_refused(tmp_path: Path) -> None:
    mobilenet = OfaMbv3Space()
    state = {name: torch.from_numpy(array) for name, array in random_state_dict(mobilenet).items()}
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    for space in (OfaMbv3Space(width=1.2), OfaProxylessSpace()):
        with pytest.raises(CheckpointError, match=f"not of {space.name}"):
            export_checkpoint(tmp_path / "x.pth", space, tmp_path / "x.supernet")
    assert not (tmp_path / "x.supernet").exists()


def test_compofa_checkpoints_have_no_kernel_transforms(tmp_path: Path) -> None:
    """CompOFA trains with the centres of its 7x7 kernels; some transforms without the others are no checkpoint."""
    space = CompOfaSpace()
    state = random_state_dict(space)
    matrices = [name for name in state if name.endswith("_matrix")]
    fixed = {name: torch.from_numpy(array) for name, array in state.items() if name not in matrices}
    torch.save(fixed, tmp_path / "x.pth")
    export_checkpoint(tmp_path / "x.pth", space, tmp_path / "x.supernet")
    kernel = "blocks.1.mobile_inverted_conv.depth_conv.conv.weight"
    bundle = SupernetBundle.open(tmp_path / "x.supernet")
    np.testing.assert_array_equal(bundle.tensor(f"{kernel}.k3"), state[kernel][:, :, 2:5, 2:5])
    torch.save(fixed | {matrices[0]: torch.from_numpy(state[matrices[0]])}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="tensors are missing"):
        export_checkpoint(tmp_path / "x.pth", space, tmp_path / "x.supernet")


def test_a_bundle_carries_provenance_and_its_accuracy_predictor(tmp_path: Path, public_data: Path) -> None:
    space = OfaMbv3Space()
    state = {name: torch.from_numpy(array) for name, array in random_state_dict(space).items()}
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    predictor = AccuracyPredictor.from_pth(public_data / "ofa_mbv3" / "acc_predictor.pth")
    out = tmp_path / "x.supernet"
    sha256 = export_checkpoint(tmp_path / "x.pth", space, out, accuracy=predictor, accuracy_source="acc_predictor.pth")
    bundle = SupernetBundle.open(out, expected_sha256=sha256)
    assert bundle.manifest.provenance.source == "x.pth"
    assert bundle.manifest.provenance.sha256 == file_sha256(tmp_path / "x.pth")
    assert bundle.manifest.classes == 1000
    carried = bundle.accuracy_predictor()
    assert carried is not None
    genomes = space.one_hot(space.sample(10, np.random.default_rng(0)))
    np.testing.assert_array_equal(carried.predict(genomes), predictor.predict(genomes))
