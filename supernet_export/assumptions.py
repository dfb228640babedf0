"""List what an export assumes: what neither the shapes of a checkpoint's tensors show nor the user said."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fleetnas.supernet_export.spaces.base import DesignSpace

TRANSFORM_SUFFIX = "_matrix"
#: Spaces whose networks are trained without kernel transforms; with elastic ones, others have them.
WITHOUT_TRANSFORMS = ("compofa", "compofa-elastic")
#: What is said of a choice that the user did not give.
_CHOICES = {
    "kernels": "kernel sizes",
    "expands": "expand ratios",
    "depths": "depths",
    "widths": "width multipliers",
    "resolutions": "resolutions",
}
#: Options of the user's own layouts that no shape shows, and the attributes of the network that hold them.
_LAYOUTS: dict[str, dict[str, str]] = {
    "mbconv": {
        "stem.stride": "stem_stride",
        "stem.activation": "stem_activation",
        "first_block.activation": "first_block_activation",
        "first_block.residual": "first_block_residual",
        "stages.stride": "stage_strides",
        "stages.activation": "stage_activations",
        "head.activation": "head_activation",
    },
    "resnet": {"stem.stride": "stem_stride", "stem.pool": "stem_pool", "stages.stride": "stage_strides"},
}


def has_transforms(tensors: Collection[str]) -> bool:
    """Whether kernel transform matrices are among the names `tensors`."""
    return any(name.endswith(TRANSFORM_SUFFIX) for name in tensors)


def assumed_choices(space: DesignSpace, given: Mapping[str, Any], tensors: Collection[str]) -> tuple[str, ...]:
    """Return sentences about the choices of a space that the user did not give and that `tensors` do not show."""
    lines = []
    shown = {"kernels"} if has_transforms(tensors) else set()
    for option, what in _CHOICES.items():
        values = getattr(space, option, None)
        if values is not None and option not in {*given, *shown} and len(values) > 1:
            lines.append(
                f"{what} {', '.join(f'{value:g}' for value in values)} were all trained; shapes show "
                f"{'none of them' if option == 'resolutions' else 'only the largest'} (--options {option})"
            )
    if "aspect" not in given and "resolutions" not in given:
        lines.append("images are square (--options aspect)")
    if space.name in WITHOUT_TRANSFORMS:
        other = next(name for name in WITHOUT_TRANSFORMS if name != space.name)
        lines.append(f"it is of {space.name}; {other} has the same shapes (--space)")
    depths, expands = (getattr(space, option, ()) for option in ("depths", "expands"))
    if space.name == "mbconv" and "tied" not in given and 1 < len(depths) == len(expands):
        lines.append("expand ratios do not depend on depths; where they do, shapes are the same (--options tied)")
    return (*lines, *_assumed_layout(space, given))


def assumed_class_order(space: DesignSpace) -> str:
    """Return the sentence about a supernet without class names."""
    return (
        f"the {space.classes:,} classes are in the order of the names of their folders, since they have no names "
        "(--classes-from, --classes-file)"
    )


def _assumed_layout(space: DesignSpace, given: Mapping[str, Any]) -> list[str]:
    """Return a sentence about strides, activations and the like of a layout of the user's own."""
    network = getattr(space, "network", None)
    unsaid = {
        option: _shown(getattr(network, attribute))
        for option, attribute in _LAYOUTS.get(space.name, {}).items()
        if not _is_given(option, given)
    }
    if not unsaid:
        return []
    values = "; ".join(f"{option} {value}" for option, value in unsaid.items())
    groups = dict.fromkeys(option.partition(".")[0] for option in unsaid)
    return [f"{values}: shapes show none of them (--options {', '.join(groups)})"]


def _is_given(option: str, given: Mapping[str, Any]) -> bool:
    """Whether the user gave an option of a group, in a list of groups for each of them."""
    group, _, name = option.partition(".")
    found = given.get(group) or ()
    return bool(found) and all(name in entry for entry in (found if isinstance(found, (list, tuple)) else [found]))


def _shown(value: Any) -> str:
    return ", ".join(map(_shown, value)) if isinstance(value, tuple) else str(value).lower()
