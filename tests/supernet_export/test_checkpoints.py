"""Checkpoint files: the formats that exist are read, and nothing in a file ever runs."""

from __future__ import annotations

import argparse
import collections
import datetime
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rigs.command_line import fleetnas
from rigs.supernets import random_state_dict

torch = pytest.importorskip("torch")

from fleetnas.fleet_protocol.errors import CheckpointError  # noqa: E402
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor  # noqa: E402
from fleetnas.supernet_export.bundle import SupernetBundle  # noqa: E402
from fleetnas.supernet_export.checkpoints.reader import read_checkpoint  # noqa: E402
from fleetnas.supernet_export.export import export_checkpoint, file_sha256  # noqa: E402
from fleetnas.supernet_export.spaces.compofa import CompOfaSpace  # noqa: E402
from fleetnas.supernet_export.spaces.ofa_mbv3 import OfaMbv3Space  # noqa: E402
from fleetnas.supernet_export.spaces.ofa_proxyless import OfaProxylessSpace  # noqa: E402

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
    assert_weights(read_checkpoint(tmp_path / "x.pth").tensors)


def assert_weights(found: dict[str, Any]) -> None:
    assert set(found) == set(WEIGHTS)
    for name, array in WEIGHTS.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array)


def prefixed(prefix: str) -> dict[str, object]:
    return {prefix + name: tensor for name, tensor in tensors().items()}


def numpy_weights() -> dict[str, object]:
    return {"first.weight": np.asfortranarray(WEIGHTS["first.weight"]), "first.bias": WEIGHTS["first.bias"]}


#: What trainers write, by what writes it.
WRITTEN: dict[str, Callable[[], Any]] = {
    "OFA": lambda: {"epoch": 3, "best_acc": np.float64(76.1), "optimizer": OPTIMIZER, "state_dict": tensors()},
    "torch's tutorial": lambda: {"epoch": 3, "model_state_dict": tensors(), "loss": torch.tensor(0.5)},
    "DeiT": lambda: {"model": tensors(), "args": argparse.Namespace(lr=1.0, out=Path("x")), "epoch": 1},
    "timm's averages": lambda: {"arch": "ofa", "state_dict_ema": tensors(), "metric": np.float32(0.5)},
    "CIFAR scripts": lambda: {"net": prefixed("module."), "acc": np.int64(93), "best": np.bool_(True)},
    "averages in DeepSpeed": lambda: {"ema": {"module": tensors()}, "lr": np.linspace(0, 1, 5)},
    "a wrapped dictionary": lambda: {"model": {"state_dict": prefixed("model.")}},
    "an unusual name": lambda: {"ofa_weights": tensors(), "optimizer": OPTIMIZER, "epoch": 3},
    "Lightning": lambda: {"state_dict": {**prefixed("model."), "criterion.weight": torch.ones(3)}, "loops": {}},
    "torch.compile": lambda: prefixed("_orig_mod."),
    "compiled inside": lambda: {"first._orig_mod.weight": tensors()["first.weight"], "first.bias": torch.ones(3)},
    "FSDP": lambda: prefixed("_fsdp_wrapped_module.module."),
    "AveragedModel": lambda: {"n_averaged": torch.tensor(7), **prefixed("module.")},
    "numbers beside tensors": lambda: {**tensors(), "epoch": 3, "classes": ["a", "b"]},
    "numpy": lambda: {"state_dict": numpy_weights(), "rng": np.random.default_rng(0).integers(9, size=3)},
    "bfloat16": lambda: {name: tensor.bfloat16() for name, tensor in tensors().items()},  # type: ignore[attr-defined]
    "parameters": lambda: {name: torch.nn.Parameter(tensor) for name, tensor in tensors().items()},
    "plain data": lambda: {
        "state_dict": tensors(),
        "seen": {1, 2},
        "lists": collections.defaultdict(list),
        "n": collections.Counter("ab"),
        "at": TIME,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "raw": b"\x00\xff",
    },
}
OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
TIME = datetime.datetime(2024, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("layout", ["zip", "stream", "protocol 4"])
@pytest.mark.parametrize("with_torch", [True, False])
def test_what_trainers_write_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, layout: str, with_torch: bool
) -> None:
    path = tmp_path / "x.pth"
    protocol = 4 if layout == "protocol 4" else 2
    torch.save(WRITTEN[written](), path, pickle_protocol=protocol, _use_new_zipfile_serialization=layout != "stream")
    if not with_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    assert_weights(read_checkpoint(path).tensors)


@pytest.mark.parametrize("with_torch", [True, False])
def test_scalars_of_numpy_1_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_torch: bool) -> None:
    """NumPy 2 calls the module that makes scalars `_core`; checkpoints are older."""
    path = tmp_path / "x.pth"
    torch.save(WRITTEN["OFA"](), path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    if not with_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    assert_weights(read_checkpoint(path).tensors)


@pytest.mark.parametrize("with_torch", [True, False])
def test_it_is_said_where_the_weights_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_torch: bool) -> None:
    averaged = {name: torch.zeros(3, 4) for name in WEIGHTS}
    content = {"state_dict": {**prefixed("module."), "n_averaged": torch.tensor(7)}, "state_dict_ema": averaged}
    torch.save(content, tmp_path / "x.pth")
    if not with_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    found = read_checkpoint(tmp_path / "x.pth")
    assert_weights(found.tensors)
    assert found.where == (
        "2 tensors under 'state_dict', without the prefix 'module.'; not read: 'n_averaged'; there are other weights "
        "under 'state_dict_ema' (--weights ema takes 'state_dict_ema')"
    )


@pytest.mark.parametrize("with_torch", [True, False])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "optimizer": {"state": {}}}, "'epoch' is a int, 'optimizer' is a dict"),
        ({"netG": {"a": 1}, "netD": {"a": 1}}, "'netG' is a dict"),
        ({}, "an empty dictionary"),
        ([1, 2], "a list"),
    ],
)
def test_without_weights_it_is_said_what_there_is_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, said: str, with_torch: bool
) -> None:
    torch.save(content, tmp_path / "x.pth")
    if not with_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    message = reason(tmp_path / "x.pth")
    assert f"no state dict but {said}" in message
    assert "torch.save(model.state_dict(), FILE)" in message


def test_two_state_dicts_under_unusual_names_are_not_chosen_from(tmp_path: Path) -> None:
    torch.save({"netG": tensors(), "netD": tensors()}, tmp_path / "x.pth")
    assert "'netG' is a dict, 'netD' is a dict" in reason(tmp_path / "x.pth")


@pytest.mark.parametrize("with_torch", [True, False])
@pytest.mark.parametrize("where", ["array", "scalar", "namespace"])
def test_code_inside_plain_data_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, with_torch: bool
) -> None:
    trap = Trap(tmp_path / "sprung")
    hidden: dict[str, Any] = {
        "array": np.array([trap], dtype=object),
        "scalar": {np.float64(1.0): trap},
        "namespace": argparse.Namespace(hook=trap),
    }
    torch.save({"state_dict": tensors(), "args": hidden[where]}, tmp_path / "x.pth")
    if not with_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    message = reason(tmp_path / "x.pth")
    assert "asks to call" in message
    assert "torch.save(model.state_dict(), FILE)" in message
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, device="meta"),
    ],
    ids=["complex", "sparse", "meta"],
)
@pytest.mark.parametrize("with_torch", [True, False])
def test_tensors_that_are_no_plain_numbers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor: Any, with_torch: bool
) -> None:
    torch.save({"first.weight": tensor}, tmp_path / "x.pth")
    if not with_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    reason(tmp_path / "x.pth")


def test_bfloat16_in_safetensors_is_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.bfloat16() for name, tensor in tensors().items()}, tmp_path / "x.safetensors")  # type: ignore[attr-defined]
    assert_weights(read_checkpoint(tmp_path / "x.safetensors").tensors)


def test_the_command_line_says_where_the_weights_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"module.{name}": torch.from_numpy(array) for name, array in random_state_dict(OfaMbv3Space()).items()}
    torch.save({"best_acc": np.float64(76.1), "state_dict": state}, tmp_path / "x.pth")
    code, _, said = fleetnas(
        capsys, "export", str(tmp_path / "x.pth"), "--space", "ofa-mbv3", "-o", str(tmp_path / "x.supernet")
    )
    assert code == 0, said
    assert f"{len(state)} tensors under 'state_dict', without the prefix 'module.'" in said
    assert SupernetBundle.open(tmp_path / "x.supernet").manifest.space == "ofa-mbv3"


def test_safetensors_are_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(WEIGHTS, tmp_path / "x.safetensors")
    found = read_checkpoint(tmp_path / "x.safetensors").tensors
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
    message = reason(tmp_path / "x.pth")
    assert "asks to call torch.nn.modules.linear.Linear" in message
    assert "torch.save(model.state_dict(), FILE)" in message


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
            return read_checkpoint(path).tensors
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
