"""Export the user's own checkpoint, and say everything that was assumed because its shapes do not show it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleetnas.fleet_protocol.errors import CheckpointError, UsageError
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.assumptions import (
    WITHOUT_TRANSFORMS,
    assumed_choices,
    assumed_class_order,
    has_transforms,
)
from fleetnas.supernet_export.checkpoints.reader import read_checkpoint
from fleetnas.supernet_export.checkpoints.weights_choice import WeightsChoice
from fleetnas.supernet_export.draft import read_draft
from fleetnas.supernet_export.export import export_state_dict, file_sha256, write_with_predictor
from fleetnas.supernet_export.graph import Array
from fleetnas.supernet_export.manifest import Manifest, Provenance
from fleetnas.supernet_export.preprocessing import described_data, is_digits
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.registry import make_space, space_names


@dataclass(frozen=True)
class CheckpointExport:
    """What to export, with everything that the user says about it."""

    checkpoint: Path
    #: Design space; None takes the one in the file's own metadata.
    space: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    class_names: tuple[str, ...] | None = None
    #: Fields of `Preprocessing`.
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    weights: WeightsChoice | None = None
    #: Export in this space although kernel transforms, or their absence, speak against it.
    trust_space: bool = False
    accuracy: AccuracyPredictor | None = None
    accuracy_source: str = ""


def export_own_checkpoint(
    request: CheckpointExport, path: Path, *, tell: Callable[[str], object] = lambda line: None
) -> str:
    """Write the bundle of a checkpoint to `path`; return its SHA-256.

    `tell` is called with the place of the weights in the file, and with each assumption, one line each. Where the
    file's metadata hold a manifest, as training leaves it, that is taken, and what the user says goes before it.
    Raises `UsageError` where the request contradicts itself or the file, `CheckpointError` where the checkpoint cannot
    be read or is of another space.
    """
    draft = read_draft(request.checkpoint)
    space_name = _space_name(request, draft)
    if draft is None:
        make_space(space_name, request.options)  # before minutes of reading
    found = read_checkpoint(request.checkpoint, weights=request.weights)
    tell(found.where)
    options = dict(draft.options if draft is not None else {}) | dict(request.options)
    if draft is None:
        options = _options_from_shapes(found.tensors) | options
    space = _made(space_name, options, request.options)
    if draft is None and not request.trust_space:
        check_kernel_transforms(space, found.tensors)
    if request.accuracy is not None:
        request.accuracy.check_space(space, f"the accuracy predictor {request.accuracy_source}")
    tensors = export_state_dict(found.tensors, space)
    manifest, assumed = _manifest(request, draft, space)
    if draft is None:
        assumed = (*assumed_choices(space, request.options, found.tensors), *assumed)
    for line in assumed:
        tell(f"assumed: {line}")
    return write_with_predictor(path, manifest, tensors, request.accuracy, request.accuracy_source)


def _space_name(request: CheckpointExport, draft: Manifest | None) -> str:
    if draft is None:
        if request.space is None:
            names = ", ".join(space_names())
            raise UsageError(
                f"{request.checkpoint} does not say of which design space it is: run `fleetnas inspect "
                f"{request.checkpoint}`, which prints the command, or give --space with one of {names}"
            )
        return request.space
    if request.space not in (None, draft.space):
        raise UsageError(
            f"{request.checkpoint} says itself that it is of {draft.space}, and --space names {request.space}; leave "
            "--space out"
        )
    return draft.space


def _options_from_shapes(tensors: Mapping[str, Array]) -> dict[str, Any]:
    """Return the number of classes and of channels, which every layout shows in its first and its last tensors."""
    from fleetnas.supernet_export.checkpoints.facts import read_facts

    try:
        facts = read_facts({name: array.shape for name, array in tensors.items()})
    except CheckpointError:  # a family of another distribution, which knows its own names
        return {}
    return {"classes": facts.classes, "image_channels": facts.image_channels}


def _made(name: str, options: Mapping[str, Any], given: Mapping[str, Any]) -> DesignSpace:
    """Make the space; a space of another distribution may take neither classes nor channels."""
    from fleetnas.supernet_export.spaces.registry import built_in_space_names

    if name in built_in_space_names():
        return make_space(name, options)
    try:
        return make_space(name, options)
    except UsageError:
        return make_space(name, given)


def check_kernel_transforms(space: DesignSpace, tensors: Collection[str]) -> None:
    """Raise `CheckpointError` where kernel transforms among the names `tensors`, or none, show another space."""
    if not isinstance(space, MBConvSpace) or len(space.kernels) < 2:
        return
    transforms = has_transforms(tensors)
    other = None
    if space.name in WITHOUT_TRANSFORMS and transforms:
        found, other = "holds kernel transform matrices, which CompOFA's networks do not have", "ofa-mbv3"
    elif not transforms and not space.tied and not space.stage_kernels:
        found = "holds no kernel transform matrices"
        other = "compofa or compofa-elastic" if space.name == "ofa-mbv3" else "a space with one kernel size"
    if other is not None:
        raise CheckpointError(
            f"the checkpoint {found}: it is not of {space.name} but of {other}, most probably; name that one, or give "
            f"--trust-space if it was trained as {space.name} all the same"
        )


def _manifest(
    request: CheckpointExport, draft: Manifest | None, space: DesignSpace
) -> tuple[Manifest, tuple[str, ...]]:
    """Return the bundle's manifest, and what was assumed for it."""
    sha256 = file_sha256(request.checkpoint)
    names = request.class_names
    if names is not None and len(names) != space.classes:
        raise UsageError(
            f"{len(names):,} class names are given, and the checkpoint has {space.classes:,} classes; give one for each"
        )
    if draft is not None:
        return _from_draft(request, draft, space, sha256), ()
    described = described_data(
        space,
        dataset=request.dataset,
        fields=request.preprocessing,
        fallback_name=request.checkpoint.stem[:64] or "own",
    )
    manifest = Manifest(
        space=space.name,
        options=dict(space.options),
        classes=space.classes,
        class_names=names,
        dataset=described.dataset,
        preprocessing=described.preprocessing,
        provenance=Provenance(source=request.checkpoint.name, sha256=sha256),
    )
    if manifest.is_digits and not is_digits(space):
        raise UsageError(
            "a dataset 'digits' of 10 classes without names and one channel would be taken for scikit-learn's: give "
            "the classes' names (--classes-from, --classes-file), or another --dataset"
        )
    if names is None and not is_digits(space):
        return manifest, (*described.assumed, assumed_class_order(space))
    return manifest, described.assumed


def _from_draft(request: CheckpointExport, draft: Manifest, space: DesignSpace, sha256: str) -> Manifest:
    """Return the manifest in the checkpoint's metadata with what the user gave in its place."""
    dataset, preprocessing = request.dataset or draft.dataset, draft.preprocessing
    if request.preprocessing:
        given = draft.preprocessing.model_dump(exclude={"channels"}) | dict(request.preprocessing)
        preprocessing = described_data(space, dataset=dataset, fields=given, fallback_name=dataset).preprocessing
    fields = {name: getattr(draft, name) for name in Manifest.model_fields if name != "format_version"}
    changes: dict[str, Any] = {
        "options": dict(space.options),
        "classes": space.classes,
        "class_names": request.class_names or draft.class_names,
        "dataset": dataset,
        "preprocessing": preprocessing,
        "provenance": draft.provenance.model_copy(update={"sha256": sha256}),
        "accuracy_predictor": None,
    }
    return Manifest(**(fields | changes))
