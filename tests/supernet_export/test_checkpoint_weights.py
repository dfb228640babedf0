"""Weights in checkpoints: every root, prefix and kind of number, plain or averaged, with and without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fleetnas.fleet_protocol.errors import CheckpointError  # noqa: E402
from fleetnas.supernet_export.checkpoints.reader import read_checkpoint  # noqa: E402

ROOTS = (
    "state_dict",
    "state_dict_ema",
    "model",
    "model_ema",
    "module",
    "model_state_dict",
    "ema",
    "net",
    "swa_model",
    "swa",
)
AVERAGED = ("state_dict_ema", "model_ema", "ema", "swa_model", "swa")
PREFIXES = ("", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.")
PLAIN = {"first.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "first.bias": np.ones(3, np.float32)}
MEAN = {name: array + 1 for name, array in PLAIN.items()}
READERS = (True, False)


def tensors(arrays: dict[str, Any], prefix: str = "", dtype: Any = None) -> dict[str, Any]:
    found = {f"{prefix}{name}": torch.from_numpy(array) for name, array in arrays.items()}
    return found if dtype is None else {name: tensor.to(dtype) for name, tensor in found.items()}


def assert_read(path: Path, expected: dict[str, Any], *, use_torch: bool, weights: Any = None) -> None:
    found = read_checkpoint(path, use_torch=use_torch, weights=weights).tensors
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in expected.items()
    }


@pytest.mark.parametrize("use_torch", READERS)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("root", [None, *ROOTS])
def test_every_root_prefix_and_kind_of_number_is_read(
    tmp_path: Path, root: str | None, prefix: str, use_torch: bool
) -> None:
    for dtype in (None, torch.bfloat16, torch.float16, torch.float64):
        for counted in (False, True):
            state = tensors(PLAIN, prefix, dtype)
            if counted:  # torch.optim.swa_utils.AveragedModel
                state["n_averaged"] = torch.tensor(7)
            torch.save(state if root is None else {"epoch": 3, root: state}, tmp_path / "x.pth")
            assert_read(tmp_path / "x.pth", PLAIN, use_torch=use_torch)


@pytest.mark.parametrize("use_torch", READERS)
@pytest.mark.parametrize("averaged", AVERAGED)
@pytest.mark.parametrize("plain", [root for root in ROOTS if root not in AVERAGED])
def test_plain_or_averaged_weights_are_chosen(tmp_path: Path, plain: str, averaged: str, use_torch: bool) -> None:
    path = tmp_path / "x.pth"
    for inner in (tensors(MEAN), {"module": tensors(MEAN), "decay": 0.999}, tensors(MEAN, "module.")):
        torch.save({averaged: inner, plain: tensors(PLAIN)}, path)
        assert_read(path, PLAIN, use_torch=use_torch)
        assert_read(path, PLAIN, use_torch=use_torch, weights="raw")
        assert_read(path, MEAN, use_torch=use_torch, weights="ema")
    assert f"--weights ema takes '{averaged}'" in read_checkpoint(path, use_torch=use_torch).where


@pytest.mark.parametrize("use_torch", READERS)
@pytest.mark.parametrize("prefix", ["ema.", "ema_model.", "model_ema.", "ema.module."])
def test_averaged_weights_among_the_plain_ones_are_told_by_their_prefix(
    tmp_path: Path, prefix: str, use_torch: bool
) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {**tensors(PLAIN, "model."), **tensors(MEAN, prefix)}}, path)
    assert_read(path, PLAIN, use_torch=use_torch)
    assert_read(path, MEAN, use_torch=use_torch, weights="ema")


@pytest.mark.parametrize("use_torch", READERS)
def test_weights_that_are_not_there_are_not_replaced_by_others(tmp_path: Path, use_torch: bool) -> None:
    path = tmp_path / "x.pth"
    for content, weights, words in (
        ({"state_dict": tensors(PLAIN)}, "ema", "holds plain weights alone"),
        (tensors(PLAIN), "ema", "holds plain weights alone"),
        ({"model_ema": tensors(MEAN)}, "raw", "holds averaged weights alone"),
        ({"state_dict": {**tensors(MEAN, "module."), "n_averaged": torch.tensor(3)}}, "raw", "averaged weights alone"),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(path, use_torch=use_torch, weights=weights)  # type: ignore[arg-type]


def test_safetensors_have_prefixes_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    for prefix in PREFIXES:
        save_file(tensors(PLAIN, prefix, torch.bfloat16), path)
        assert_read(path, PLAIN, use_torch=False)
    save_file({**tensors(PLAIN, "model."), **tensors(MEAN, "ema_model.")}, path)
    assert_read(path, PLAIN, use_torch=False, weights="raw")
    assert_read(path, MEAN, use_torch=False, weights="ema")
