"""Options of design spaces, validated: what a bundle's manifest and `--options` may hold."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fleetnas.device_profiles.plain_text import plain
from fleetnas.fleet_protocol.error_text import fault_words
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.suggestions import did_you_mean

#: Bounds of every family. An architecture holds at most 64 blocks, and resolutions from 8 to 1024 pixels.
MAX_BLOCKS = 64
MAX_STAGES = 16
MOST_RESOLUTIONS = 64
_LOWEST_SIDE, _HIGHEST_SIDE, _SIDE_STEP = 8, 1024, 4
_FARTHEST_ASPECT = 8
#: Entries of any list, beyond all bounds of its kind: a longer one is not validated entry by entry.
_LONGEST_LIST = 1024

_Number = TypeVar("_Number", int, float)


def _as_tuple(value: object) -> object:
    """Take JSON's lists, and ranges, as the tuples that options hold; one of a hostile length is refused early."""
    if not isinstance(value, (list, range, tuple)):
        return value
    if len(value) > _LONGEST_LIST:
        raise ValueError(f"a list has at most {_LONGEST_LIST} entries")
    return tuple(value)


def _ascending(values: tuple[_Number, ...]) -> tuple[_Number, ...]:
    if len(set(values)) < len(values):
        raise ValueError("its entries must differ from each other")
    return tuple(sorted(values))


def _odd(values: tuple[int, ...]) -> tuple[int, ...]:
    if any(value % 2 == 0 for value in values):
        raise ValueError("kernel sizes must be odd")
    return values


def sides_of(allowed: range) -> AfterValidator:
    """Return a validator of resolutions: ascending, distinct, at least one, each `allowed`."""

    def check(sides: tuple[object, ...]) -> tuple[int, ...]:
        whole = [side for side in sides if type(side) is int and side in allowed]
        if not 1 <= len(sides) <= MOST_RESOLUTIONS or len(set(whole)) < len(sides):
            raise ValueError(
                f"resolutions must be distinct multiples of {allowed.step} from {allowed.start} to {allowed[-1]} "
                f"pixels, at least one and at most {MOST_RESOLUTIONS}"
            )
        return tuple(sorted(whole))

    return AfterValidator(check)


def _lowest_terms(aspect: tuple[int, int]) -> tuple[int, int]:
    height, width = aspect
    if max(aspect) > _FARTHEST_ASPECT * min(aspect):
        raise ValueError(f"the long side may be at most {_FARTHEST_ASPECT} times the short one")
    divisor = math.gcd(height, width)
    return height // divisor, width // divisor


Listed = BeforeValidator(_as_tuple)
Ascending = AfterValidator(_ascending)
Classes = Annotated[int, Field(ge=1, le=1_000_000)]
Channels = Annotated[int, Field(ge=1, le=16)]
Stride = Annotated[int, Field(ge=1, le=4)]
BatchNormEpsilon = Annotated[float, Field(ge=1e-7, le=0.1)]
#: Channels of a layer.
Width = Annotated[int, Field(ge=1, le=16_384)]
WidthMultiplier = Annotated[float, Field(ge=0.05, le=8)]
Sides = Annotated[tuple[Any, ...], Listed]
Resolutions = Annotated[Sides, sides_of(range(_LOWEST_SIDE, _HIGHEST_SIDE + 1, _SIDE_STEP))]
#: Height and width, in lowest terms.
Aspect = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65_536)], Annotated[int, Field(ge=1, le=65_536)]],
    Listed,
    AfterValidator(_lowest_terms),
]
Kernels = Annotated[
    tuple[Annotated[int, Field(ge=3, le=11)], ...],
    Listed,
    Field(min_length=1, max_length=5),
    AfterValidator(_odd),
    Ascending,
]
Expands = Annotated[
    tuple[Annotated[float, Field(ge=0.25, le=16)], ...], Listed, Field(min_length=1, max_length=8), Ascending
]
Depths = Annotated[
    tuple[Annotated[int, Field(ge=1, le=16)], ...], Listed, Field(min_length=1, max_length=16), Ascending
]
#: One of a family's kernel sizes for each stage.
StageKernels = Annotated[
    tuple[Annotated[int, Field(ge=3, le=11)], ...], Listed, Field(min_length=1, max_length=MAX_STAGES)
]


class OptionGroup(BaseModel):
    """Options that belong together. Numbers must be numbers, lists must be lists: nothing is converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class SpaceOptions(OptionGroup):
    """Options that every family has."""

    #: Options that a manifest always holds; others only where they differ from what was published.
    always_stored: ClassVar[tuple[str, ...]] = ("resolutions",)

    classes: Classes = 1000
    image_channels: Channels = 3
    resolutions: Resolutions
    aspect: Aspect = (1, 1)

    def stored(self) -> dict[str, Any]:
        """Return the options for a manifest, as JSON values."""
        found, fields = self.model_dump(mode="json"), type(self).model_fields
        others = [name for name in fields if name not in self.always_stored]
        changed = [name for name in others if getattr(self, name) != fields[name].default]
        return {name: found[name] for name in (*self.always_stored, *changed)}


_Options = TypeVar("_Options", bound=SpaceOptions)


def checked_options(model: type[_Options], space: str, given: Mapping[str, Any]) -> _Options:
    """Return the validated options of `space`; `UsageError` in one line names the first that is wrong."""
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        names = " ".join(".".join(str(part)[:40] for part in first["loc"][:6]).split())
        place = plain(names) or "the options"
        message = " ".join(fault_words(first).split())
        if first["type"] == "extra_forbidden":
            near = did_you_mean(str(first["loc"][-1])[:80], model.model_fields)
            message = f"there is no such option{near} there are {', '.join(model.model_fields)}"
        raise UsageError(
            f"design space {space!r} does not take these options: {place}: {message[:300]}, "
            f"found {shown(first['input'])}; correct it"
        ) from None
    except RecursionError:
        raise UsageError(f"design space {space!r} does not take these options: they are nested too deeply") from None


def shown(value: object) -> str:
    """Return a short text of any value, on one line."""
    return " ".join(reprlib.repr(value).split())[:120]


def input_size(resolution: int, aspect: Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of images in pixels: the short side is `resolution`.

    The long side has the ratio of `aspect` (height, width), rounded to the nearest multiple of 4, halves up.
    """
    height, width = aspect
    short, long = min(aspect), max(aspect)
    far = resolution if short == long else (2 * resolution * long + 4 * short) // (8 * short) * 4
    far = max(far, resolution)
    return (far, resolution) if height > width else (resolution, far)
