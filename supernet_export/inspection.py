"""Describe a checkpoint or a bundle: what it is, what its shapes do not show, and the command that exports it."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fleetnas.fleet_protocol.errors import CheckpointError
from fleetnas.supernet_export.checkpoints.facts import Facts, MBConvFacts, read_facts
from fleetnas.supernet_export.checkpoints.reader import read_checkpoint
from fleetnas.supernet_export.checkpoints.recognise import Recognition, recognise
from fleetnas.supernet_export.checkpoints.weights_choice import WeightsChoice
from fleetnas.supernet_export.draft import read_draft
from fleetnas.supernet_export.manifest import Manifest

_ONE_SUBNET = (
    "a design space: blocks have unlike kernel sizes or expand ratios, as in one subnet; a supernet's have the largest"
)


@dataclass(frozen=True)
class Inspection:
    """What a file is.

    `kind` is `bundle`, `trained` (weights with a manifest in their metadata) or `checkpoint`. `facts` are name and
    value pairs for people and JSON; `assumed`, `missing` and `others` as in `Recognition`; `command` exports the file,
    None where there is nothing to export or no space fits.
    """

    file: str
    kind: str
    where: str
    space: str | None
    options: dict[str, Any]
    facts: dict[str, Any]
    assumed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    command: str | None = None

    def json(self) -> str:
        """Return all fields as one line of JSON."""
        return json.dumps(asdict(self))


def inspect_file(path: Path, weights: WeightsChoice | None = None) -> Inspection:
    """Inspect a `.supernet` bundle, weights of a training run, or any checkpoint; torch is not needed.

    `CorruptBundleError` or `CheckpointError` where the file is none of these.
    """
    if path.suffix == ".supernet":
        return _bundle(path)
    draft = read_draft(path)
    found = read_checkpoint(path, weights=weights)
    shapes = {name: tuple(array.shape) for name, array in found.tensors.items()}
    if draft is not None:
        facts = _manifest_facts(draft) | {"tensors": len(shapes)}
        command = shlex.join(["fleetnas", "export", str(path)])
        return Inspection(str(path), "trained", found.where, draft.space, dict(draft.options), facts, command=command)
    try:
        known = read_facts(shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    recognition = recognise(known)
    if recognition is None:
        return Inspection(
            str(path),
            "checkpoint",
            found.where,
            None,
            {},
            _facts(known),
            missing=(_ONE_SUBNET,),
        )
    return Inspection(
        str(path),
        "checkpoint",
        found.where,
        recognition.space,
        recognition.options,
        _facts(known),
        recognition.assumed,
        (*recognition.missing, *_about_data(known, recognition.space)),
        recognition.others,
        _command(path, recognition, known, weights),
    )


def _bundle(path: Path) -> Inspection:
    from fleetnas.supernet_export.bundle import SupernetBundle

    bundle = SupernetBundle.open(path)
    manifest = bundle.manifest
    facts = _manifest_facts(manifest) | {"bytes": bundle.size, "sha256": bundle.sha256, "subnets": bundle.space.size}
    where = f"{len(bundle.names)} tensors"
    return Inspection(str(path), "bundle", where, manifest.space, dict(bundle.space.options), facts)


def _manifest_facts(manifest: Manifest) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "classes": manifest.classes,
        "class_names": None if manifest.class_names is None else list(manifest.class_names),
        "image_channels": manifest.preprocessing.channels,
        "dataset": manifest.dataset,
        "preprocessing": manifest.preprocessing.model_dump(mode="json"),
        "provenance": manifest.provenance.model_dump(mode="json"),
        "accuracy_predictor": None
        if manifest.accuracy_predictor is None
        else manifest.accuracy_predictor.model_dump(mode="json"),
    }
    return facts


def _facts(known: Facts) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "family": known.family,
        "classes": known.classes,
        "image_channels": known.image_channels,
        "stem_width": known.stem_width,
        "largest_expand": known.largest_expand,
    }
    if isinstance(known, MBConvFacts):
        stages = known.stages
        facts |= {
            "largest_kernel": known.largest_kernel,
            "kernel_transforms": [*known.transformed_kernels],
            "stage_widths": [stage[0].out_width for stage in stages],
            "stage_blocks": [len(stage) for stage in stages],
            "blocks": len(known.blocks),
        }
    else:
        facts |= {"stage_widths": [*known.stage_widths], "stage_blocks": [*known.stage_blocks]}
    return facts


def _about_data(known: Facts, space: str) -> tuple[str, ...]:
    """Return what no weights tell about images."""
    lines = []
    if space != "digits" and (known.classes, known.image_channels) != (1000, 3):
        lines.append("the dataset's name and its class names, in the order of the logits (--dataset, --classes-from)")
        lines.append("how images were normalised and fitted to the input (--mean, --std, --fit, --crop-fraction)")
    lines.append("the resolutions that were trained, in --options")
    return tuple(lines)


def _command(path: Path, recognition: Recognition, known: Facts, weights: WeightsChoice | None) -> str:
    # An export takes classes and channels from the shapes itself.
    options = {name: value for name, value in recognition.options.items() if name not in ("classes", "image_channels")}
    words = ["fleetnas", "export", str(path), "--space", recognition.space]
    if options:
        words += ["--options", json.dumps(options)]
    if weights is not None:
        words += ["--weights", weights]
    if known.image_channels != 3 and recognition.space != "digits":
        words += ["--mean", "MEAN", "--std", "STD"]
    return shlex.join(words)
