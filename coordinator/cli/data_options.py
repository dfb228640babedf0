"""Read options about the user's data: class names and preprocessing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fleetnas.coordinator.cli.options import json_object
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.suggestions import did_you_mean

_PANEL = "Data of a checkpoint file"
_FIELDS = ("mean", "std", "fit", "crop_fraction", "interpolation")


@dataclass(frozen=True)
class DataOptions:
    """The dataset's name, its class names, and how its images become the network's input."""

    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="NAME", help="What accuracy is about.", rich_help_panel=_PANEL),
    ] = None
    classes_file: Annotated[
        Path | None,
        typer.Option(
            "--classes-file",
            metavar="FILE",
            help="Class names in the order of the logits: one a line, or JSON.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    classes_from: Annotated[
        Path | None,
        typer.Option(
            "--classes-from",
            metavar="DIR",
            help="The training images: names of its class folders, sorted.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option("--mean", metavar="NUMBERS", help="Of pixels in 0 to 1, one per channel.", rich_help_panel=_PANEL),
    ] = None
    std: Annotated[
        str | None,
        typer.Option("--std", metavar="NUMBERS", help="Deviation, one per channel.", rich_help_panel=_PANEL),
    ] = None
    fit: Annotated[
        str | None,
        typer.Option("--fit", metavar="crop|squash|letterbox", help="Of images to the input.", rich_help_panel=_PANEL),
    ] = None
    crop_fraction: Annotated[
        float | None,
        typer.Option(
            "--crop-fraction", metavar="F", help="Side of the crop over that of the image.", rich_help_panel=_PANEL
        ),
    ] = None
    interpolation: Annotated[
        str | None,
        typer.Option(
            "--interpolation", metavar="nearest|bilinear|bicubic", help="Of resizing.", rich_help_panel=_PANEL
        ),
    ] = None
    preprocessing: Annotated[
        str | None,
        typer.Option(
            "--preprocessing",
            metavar="JSON|FILE",
            help="These five, from --mean on, in one object.",
            rich_help_panel=_PANEL,
        ),
    ] = None

    def class_names(self) -> tuple[str, ...] | None:
        """Return the class names in a file, or those of the class folders in a folder; None where neither is given.

        A text file has one name a line; JSON a list of names, or an object with the number of each name.
        """
        if self.classes_file is not None and self.classes_from is not None:
            raise UsageError("--classes-file and --classes-from both give class names; leave one out")
        if self.classes_from is not None:
            from fleetnas.supernet_export.evaluation.class_folders import class_order_in

            return class_order_in(self.classes_from)
        return None if self.classes_file is None else _names_in_file(self.classes_file)

    def preprocessing_fields(self) -> dict[str, Any]:
        """Return the fields of `Preprocessing` that were given; `UsageError` where they cannot be read."""
        found = {name: getattr(self, name) for name in _FIELDS if getattr(self, name) is not None}
        for name in ("mean", "std"):
            if name in found:
                found[name] = _numbers(f"--{name}", found[name])
        if self.preprocessing is None:
            return found
        if found:
            useless = ", ".join(f"--{name.replace('_', '-')}" for name in found)
            raise UsageError(f"--preprocessing gives all of it; leave {useless} out")
        return _all_fields(self.preprocessing)


def _names_in_file(file: Path) -> tuple[str, ...]:
    from fleetnas.supernet_export.manifest import checked_class_names

    try:
        text = read_text(file)
        names = _json_names(text) if file.suffix == ".json" else [line.strip() for line in text.splitlines()]
        while names and not names[-1]:
            names.pop()
        return checked_class_names(tuple(names))
    except OSError as error:
        raise UsageError(f"--classes-file {file} cannot be read: {error.strerror or error}; check the path") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--classes-file {file} holds no class names ({reason}); give one name a line, or JSON: a list of names, "
            "or an object with each name's number"
        ) from None


def _json_names(text: str) -> list[str]:
    found = json.loads(text)
    if isinstance(found, dict):
        if sorted(value for value in found.values() if type(value) is int) != list(range(len(found))):
            raise ValueError("the numbers of the names are not 0, 1, 2 and so on")
        found = sorted(found, key=found.__getitem__)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError("it is neither a list of names nor an object of numbers")
    return found


def _all_fields(text: str) -> dict[str, Any]:
    """Return the fields in JSON, or in a file of it; `channels` follow from the network."""
    if not text.lstrip().startswith("{"):
        try:
            text = read_text(Path(text))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"--preprocessing {text[:200]}: {reason}; give JSON, or a file of it") from None
    found = json_object("--preprocessing", text)
    unknown = sorted(set(found) - {*_FIELDS, "channels"})
    if unknown:
        near = did_you_mean(unknown[0][:80], _FIELDS)
        raise UsageError(f"--preprocessing has no field {unknown[0][:80]!r}{near} there are {', '.join(_FIELDS)}")
    return {name: value for name, value in found.items() if name != "channels"}


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text[:80]!r} is no list of numbers; give one per channel, such as 0.485,0.456,0.406"
        ) from None
