"""Find the weights in a checkpoint: trainers store them under different names, with different prefixes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fleetnas.fleet_protocol.errors import CheckpointError
from fleetnas.supernet_export.checkpoints.torch_file import REMEDY
from fleetnas.supernet_export.checkpoints.weights_choice import WeightsChoice

#: Names under which trainers keep a state dict, the first that is there counts: plain weights, then averaged ones.
_RAW_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "supernet", "weights"),
    *("params", "generator", "student"),
)
_AVERAGED_KEYS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema", "averaged_model", "swa_model"),
    *("swa_state_dict", "swa", "teacher"),
)
#: The count of `torch.optim.swa_utils.AveragedModel`, beside averaged weights.
_AVERAGED_COUNT = "n_averaged"
_AVERAGED_PREFIXES = tuple(f"{name}." for name in ("ema", "ema_model", "model_ema", "averaged_model"))
#: How deep roots may lie in each other, such as `{"ema": {"module": {...}}}`.
_DEEPEST = 3
#: Prefixes of every name where a network is an attribute of something that was saved.
_PREFIXES = (
    *("module.", "model.", "net.", "network.", "supernet.", "backbone.", "student."),
    *_AVERAGED_PREFIXES,
)
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


def find_state_dict(content: Any, is_tensor: Callable[[Any], bool], weights: WeightsChoice | None = None) -> StateDict:
    """Return the state dict in a checkpoint's content; its names are without the prefixes of wrappers.

    `weights` chooses where there are several; None takes plain weights before averaged ones, whichever there are.
    Raises `CheckpointError` with the content that there is instead.
    """
    path = _path_to_tensors(content, is_tensor, _keys(weights))
    if path is None:
        raise CheckpointError(f"holds no state dict but {_described(content)}. {REMEDY}")
    found = content
    for name in path:
        found = found[name]
    tensors = {name: value for name, value in found.items() if isinstance(name, str) and is_tensor(value)}
    counted = tensors.pop(_AVERAGED_COUNT, None) is not None
    others = [name for name in found if name not in tensors]
    averaged = counted or any(name in _AVERAGED_KEYS for name in path)
    tensors, left_out, averaged = _chosen(tensors, weights, averaged)
    if weights is not None and averaged != (weights == "ema"):
        raise CheckpointError(
            f"holds {'averaged' if averaged else 'plain'} weights alone, and --weights {weights} wants the others; "
            "leave it out"
        )
    tensors, prefix, foreign = _without_prefixes(tensors)
    others += [*left_out, *foreign]
    where = f"{len(tensors)} tensors"
    if path:
        where += " under " + ".".join(map(repr, path))
    if prefix:
        where += f", without the prefix {prefix!r}"
    if others:
        where += f"; not read: {_listed(others)}"
    return StateDict(tensors, where + _other_weights(content, is_tensor, path))


def _other_weights(content: Any, is_tensor: Callable[[Any], bool], path: tuple[Any, ...]) -> str:
    """Describe the state dicts beside the one at `path`."""
    if not path:
        return ""
    keys = (*_RAW_KEYS, *_AVERAGED_KEYS)
    more = [
        name for name in keys if name != path[0] and _path_to_tensors(content.get(name), is_tensor, keys) is not None
    ]
    if not more:
        return ""
    averaged = path[0] in _AVERAGED_KEYS
    switch = [name for name in more if (name in _AVERAGED_KEYS) != averaged]
    hint = f" (--weights {'raw' if averaged else 'ema'} takes {_listed(switch[:1])})" if switch else ""
    return f"; there are other weights under {_listed(more)}{hint}"


def _keys(weights: WeightsChoice | None) -> tuple[str, ...]:
    return (*_AVERAGED_KEYS, *_RAW_KEYS) if weights == "ema" else (*_RAW_KEYS, *_AVERAGED_KEYS)


def _chosen(
    tensors: dict[str, Any], weights: WeightsChoice | None, averaged: bool
) -> tuple[dict[str, Any], list[str], bool]:
    """Choose among plain and averaged tensors in one state dict, which prefixes tell apart.

    Returns the chosen ones, the names of the others, and whether the chosen ones are averaged.
    """
    bare = {name: _INSERTED.sub("", name) for name in tensors}
    mean = {name for name, short in bare.items() if short.startswith(_AVERAGED_PREFIXES)}
    if not mean:
        return tensors, [], averaged
    plain = {name for name in tensors if name not in mean}
    take = mean if weights == "ema" or not plain else plain
    return (
        {name: value for name, value in tensors.items() if name in take},
        [name for name in tensors if name not in take],
        take is mean,
    )


def _path_to_tensors(
    content: Any, is_tensor: Callable[[Any], bool], keys: tuple[str, ...], depth: int = 0
) -> tuple[Any, ...] | None:
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return None
    for root in keys:
        rest = _path_to_tensors(content.get(root), is_tensor, keys, depth + 1)
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
