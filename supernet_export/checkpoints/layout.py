"""Find the weights in a checkpoint: trainers store them under different names, with different prefixes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fleetnas.fleet_protocol.errors import CheckpointError
from fleetnas.supernet_export.checkpoints.torch_file import REMEDY

#: Names under which trainers keep a state dict, the first that is there counts: plain weights before averaged ones.
_DICT_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "supernet", "weights"),
    *("params", "generator", "student", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),
    *("params_ema", "averaged_model", "teacher"),
)
#: How deep roots may lie in each other, such as `{"ema": {"module": {...}}}`.
_DEEPEST = 3
#: Prefixes of every name where a network is an attribute of something that was saved.
_PREFIXES = ("module.", "model.", "net.", "network.", "supernet.", "backbone.", "student.", "ema.", "ema_model.")
#: Those of wrappers that add a few tensors of their own beside the network.
_WRAPPERS = ("module.", "model.")
#: What torch.compile, FSDP and activation checkpointing put into names, wherever a module was wrapped.
_INSERTED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_MOST_NAMED = 6


@dataclass(frozen=True)
class StateDict:
    """Named tensors, and where they were, for people."""

    tensors: dict[str, Any]
    where: str


def find_state_dict(content: Any, is_tensor: Callable[[Any], bool]) -> StateDict:
    """Return the state dict in a checkpoint's content; its names are without the prefixes of wrappers.

    Raises `CheckpointError` with the content that there is instead.
    """
    path = _path_to_tensors(content, is_tensor)
    if path is None:
        raise CheckpointError(f"holds no state dict but {_described(content)}. {REMEDY}")
    found = content
    for name in path:
        found = found[name]
    tensors = {name: value for name, value in found.items() if isinstance(name, str) and is_tensor(value)}
    others = [name for name in found if name not in tensors]
    tensors, prefix, foreign = _without_prefixes(tensors)
    others += foreign
    where = f"{len(tensors)} tensors"
    if path:
        where += " under " + ".".join(map(repr, path))
    if prefix:
        where += f", without the prefix {prefix!r}"
    if others:
        where += f"; not read: {_listed(others)}"
    if path:
        more = [
            name
            for name in _DICT_KEYS
            if name != path[0] and _path_to_tensors(content.get(name), is_tensor) is not None
        ]
        where += f"; there are other weights under {_listed(more)}" if more else ""
    return StateDict(tensors, where)


def _path_to_tensors(content: Any, is_tensor: Callable[[Any], bool], depth: int = 0) -> tuple[Any, ...] | None:
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return None
    for root in _DICT_KEYS:
        rest = _path_to_tensors(content.get(root), is_tensor, depth + 1)
        if rest is not None:
            return (root, *rest)
    if _is_state_dict(content, is_tensor):
        return ()
    unusual = [name for name, inner in content.items() if _is_state_dict(inner, is_tensor)]
    return (unusual[0],) if len(unusual) == 1 else None


def _is_state_dict(content: Any, is_tensor: Callable[[Any], bool]) -> bool:
    return isinstance(content, Mapping) and any(
        isinstance(name, str) and is_tensor(value) for name, value in content.items()
    )


def _without_prefixes(tensors: dict[str, Any]) -> tuple[dict[str, Any], str, list[str]]:
    """Return the tensors under their own names, the removed prefix, and the names of tensors outside the network."""
    names = {name: _INSERTED.sub("", name) for name in tensors}
    prefix = ""
    while (common := _shared_prefix(list(names.values()))) is not None:
        prefix += common
        names = {name: short.removeprefix(common) for name, short in names.items() if short.startswith(common)}
    if len(set(names.values())) < len(names):
        raise CheckpointError(f"holds two tensors of one name once the names of wrappers are cut off. {REMEDY}")
    foreign = [name for name in tensors if name not in names]
    return {short: tensors[name] for name, short in names.items()}, prefix, foreign


def _shared_prefix(names: list[str]) -> str | None:
    counts = {prefix: sum(name.startswith(prefix) for name in names) for prefix in _PREFIXES}
    for prefix, count in counts.items():
        if count == len(names) or (prefix in _WRAPPERS and 2 * count >= len(names)):
            return prefix
    return None


def _described(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not content:
        return "an empty dictionary"
    named = [f"{str(name)[:50]!r} is a {type(value).__name__}" for name, value in list(content.items())[:_MOST_NAMED]]
    return ", ".join(named) + (f" and {len(content) - _MOST_NAMED} more" if len(content) > _MOST_NAMED else "")


def _listed(names: list[Any]) -> str:
    shown = ", ".join(repr(str(name)[:50]) for name in names[:_MOST_NAMED])
    return shown + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
