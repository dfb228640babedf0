"""Find out how a checkpoint's network sees images: as the user says, or as published for its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fleetnas.fleet_protocol.error_text import first_fault
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.digits.data import DEVIATION, MEAN
from fleetnas.supernet_export.manifest import Preprocessing
from fleetnas.supernet_export.spaces.base import DesignSpace

#: How OFA's networks see images.
IMAGENET = Preprocessing(
    channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear", crop_fraction=0.875
)
DIGITS = Preprocessing(channels=1, mean=(MEAN,), std=(DEVIATION,), interpolation="bilinear")
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class DataDescription:
    """A dataset's name and preprocessing; `assumed` are sentences about what nobody said."""

    dataset: str
    preprocessing: Preprocessing
    assumed: tuple[str, ...] = ()


def is_digits(space: DesignSpace) -> bool:
    """Whether a network of this space is for scikit-learn's digits as they come."""
    return space.name == "digits" and (space.classes, space.image_channels) == (10, 1)


def described_data(
    space: DesignSpace, *, dataset: str | None, fields: Mapping[str, Any], fallback_name: str
) -> DataDescription:
    """Return the description of a supernet's data from what the user gave.

    `fields` are those of `Preprocessing` that were given. A network for digits takes the digits' preprocessing, one
    for colour images ImageNet's where `mean` and `std` are not given. `UsageError` where these have no default, or
    contradict each other.
    """
    if is_digits(space):
        return _digits(dataset, fields)
    assumed: list[str] = []
    if dataset is None:
        dataset = "imagenet" if (space.classes, space.image_channels) == (IMAGENET_CLASSES, 3) else fallback_name
        assumed.append(f"the dataset is called {dataset!r} (--dataset)")
    given = dict(fields)
    if ("mean" in given) != ("std" in given):
        missing = "std" if "mean" in given else "mean"
        raise UsageError(f"mean and std of the pixels belong together: give --{missing} as well")
    if "mean" not in given:
        if space.image_channels != IMAGENET.channels:
            raise UsageError(
                f"{space.name} takes images of {space.image_channels} channels, for which no mean and deviation are "
                "known: give --mean and --std, of pixels between 0 and 1, as in training"
            )
        given |= {"mean": IMAGENET.mean, "std": IMAGENET.std}
        assumed.append("images are normalised with ImageNet's mean and deviation (--mean, --std)")
        if given.get("fit", "crop") == "crop":
            given.setdefault("crop_fraction", IMAGENET.crop_fraction)
    given = {"fit": "crop", "interpolation": "bilinear"} | given
    if given["fit"] == "crop" and "crop_fraction" not in fields:
        part = f"{given.get('crop_fraction', 1.0):g} of the resized image"
        assumed.append(f"a centre crop takes {part} (--fit, --crop-fraction)")
    if "interpolation" not in fields:
        assumed.append(f"images are resized with {given['interpolation']} interpolation (--interpolation)")
    return DataDescription(dataset, _preprocessing(space, given), tuple(assumed))


def _digits(dataset: str | None, fields: Mapping[str, Any]) -> DataDescription:
    """Digits are always seen in one way, which their accuracy depends on."""
    wanted = DIGITS.model_dump(include=set(fields))
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    if given != wanted or dataset not in (None, "digits"):
        raise UsageError(
            "the space `digits` with 10 classes and 1 channel is for scikit-learn's digits, whose preprocessing is "
            "fixed; leave dataset and preprocessing out, or give --space mbconv for other grey images"
        )
    return DataDescription("digits", DIGITS)


def _preprocessing(space: DesignSpace, given: dict[str, Any]) -> Preprocessing:
    channels = space.image_channels
    for name in ("mean", "std"):
        value = given[name]
        if isinstance(value, (list, tuple)) and len(value) == 1:
            given[name] = tuple(value) * channels
    try:
        return Preprocessing.model_validate({"channels": channels, **given})
    except ValidationError as error:
        raise UsageError(f"this preprocessing is impossible: {first_fault(error)}; correct it") from None
