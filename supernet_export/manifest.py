"""Describe a supernet bundle: its manifest, and how the images that it classifies are preprocessed.

Format version 2 adds class names and the way images are fitted to the network's input. A manifest that uses neither is
written as version 1, with the same text as before, so that earlier versions of fleetnas read it too.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator, model_validator

from fleetnas.device_profiles.text_fields import PlainText
from fleetnas.fleet_protocol.error_text import fault_words
from fleetnas.fleet_protocol.errors import CorruptBundleError
from fleetnas.supernet_export.accuracy.model import HeldOut
from fleetnas.supernet_export.model_metadata import ModelMetadata

#: The newest format of bundles, which this fleetnas reads beside all earlier ones.
FORMAT_VERSION: Literal[2] = 2
#: Greatest length of a class name in characters, and of all names together in bytes of UTF-8.
MAX_NAME_CHARACTERS, MAX_NAMES_BYTES = 200, 512 * 1024

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_PerChannel = Annotated[tuple[Annotated[float, Field(ge=-1000, le=1000)], ...], Field(min_length=1, max_length=16)]
_Deviations = Annotated[tuple[Annotated[float, Field(ge=1e-4, le=1000)], ...], Field(min_length=1, max_length=16)]
_Line = Annotated[PlainText, Field(max_length=500)]
_Name = Annotated[PlainText, Field(max_length=64)]

#: How an image of another shape is fitted to the network's input: `crop` cuts the longer side's ends off, `squash`
#: changes the aspect ratio, `letterbox` adds borders.
Fit: TypeAlias = Literal["crop", "squash", "letterbox"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Preprocessing(_Frozen):
    """Preprocessing of pixels in [0, 1]: fit the image to the input's size, subtract `mean`, divide by `std`.

    `crop` resizes the image to cover the input's size over `crop_fraction`, and crops the centre. `squash` resizes the
    whole image to the input's size. `letterbox` resizes it to lie inside, and fills the borders with `mean`, which is 0
    after normalisation.
    """

    channels: int = Field(ge=1, le=16)
    mean: _PerChannel
    std: _Deviations
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    # A tiny fraction would resize every image to one that fits into no memory.
    crop_fraction: float = Field(
        default=1.0, ge=0.1, le=1, description="side of the crop over side of the resized image"
    )
    fit: Fit = "crop"

    @model_validator(mode="after")
    def _possible(self) -> Preprocessing:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"{self.channels} channels need as many means and deviations")
        if self.fit != "crop" and self.crop_fraction != 1:
            raise ValueError(f"fit {self.fit!r} shows whole images, so that crop_fraction must be 1")
        return self


class Provenance(_Frozen):
    """Origin of the weights."""

    source: _Line = Field(description="address or file name of the checkpoint")
    sha256: _Sha256 | None = Field(default=None, description="of the checkpoint file")


class AccuracyPredictorInfo(_Frozen):
    """Origin and error of the accuracy predictor in the bundle."""

    source: _Line = Field(description="address or file name, or what it was fitted on")
    held_out: HeldOut | None = Field(default=None, description="its error on subnets that it was not fitted on")

    @field_validator("held_out")
    @classmethod
    def _possible(cls, found: HeldOut | None) -> HeldOut | None:
        if found is not None:
            percents = 0 <= found.mae_percent <= 100 and 0 <= found.rmse_percent <= 100
            if not percents or not -1 <= found.spearman <= 1 or found.samples < 0 or found.held_out < 0:
                raise ValueError("no predictor has such an error")
            if any(not 0 <= share <= 1 for share in (found.reliability, found.ceiling) if share is not None):
                raise ValueError("no measurement has such a reliability")
        return found

    @field_serializer("held_out")
    def _written(self, found: HeldOut | None) -> dict[str, Any] | None:
        """Leave out what is not known: the text of a manifest stays that of versions without these fields."""
        return None if found is None else found.to_json()


class Manifest(_Frozen):
    """Metadata of a bundle. `format_version` follows from the other fields where it is not given."""

    format_version: Literal[1, 2] = 1
    space: _Name
    options: dict[str, Any] = Field(default_factory=dict, description="the design space's own options")
    classes: int = Field(ge=1, le=1_000_000)
    class_names: tuple[str, ...] | None = Field(
        default=None, description="name of each class, in the order of the logits; null where they are not known"
    )
    dataset: _Name = Field(description="what accuracy is about: `digits`, `imagenet`, ...")
    preprocessing: Preprocessing
    provenance: Provenance
    accuracy_predictor: AccuracyPredictorInfo | None = None

    @field_validator("class_names")
    @classmethod
    def _usable_names(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if names is None else checked_class_names(names)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"{self.classes:,} classes need as many names, and {len(self.class_names):,} are given")
        if self._uses_version_2 and self.format_version == 1:
            if "format_version" in self.model_fields_set:
                raise ValueError("format version 1 knows neither class names nor a fit other than crop")
            # Frozen for callers; the version is part of what this validator computes.
            object.__setattr__(self, "format_version", 2)
        return self

    @property
    def _uses_version_2(self) -> bool:
        return self.class_names is not None or self.preprocessing.fit != "crop"

    @property
    def is_digits(self) -> bool:
        """Whether the images are scikit-learn's digits, which commands bring with them.

        A data set of the user's own may be called so as well; a training knows its class names.
        """
        return (self.dataset, self.class_names, self.classes, self.preprocessing.channels) == ("digits", None, 10, 1)

    def text(self) -> str:
        """Return the JSON text that a bundle holds; of version 1, without the fields that version 2 added."""
        if self._uses_version_2:  # also of a copy with other fields, whose version was not validated
            return self.model_copy(update={"format_version": 2}).model_dump_json()
        if self.format_version == 1:
            return self.model_dump_json(exclude={"class_names": True, "preprocessing": {"fit"}})
        return self.model_dump_json()

    def model_metadata(self) -> ModelMetadata | None:
        """Return what model files say about themselves; None for version 1, whose files never held metadata."""
        if self.format_version == 1:
            return None
        return ModelMetadata(
            dataset=self.dataset,
            class_names=self.class_names,
            preprocessing=self.preprocessing.model_dump(mode="json"),
            provenance=self.provenance.model_dump(mode="json"),
        )


def checked_class_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return class names in Unicode's composed form; `ValueError` names one that cannot be used."""
    if sum(len(name.encode(errors="surrogatepass")) for name in names) > MAX_NAMES_BYTES:
        raise ValueError(f"class names may have {MAX_NAMES_BYTES:,} bytes together; give shorter ones")
    seen: dict[str, int] = {}
    for index, given in enumerate(names):
        name = unicodedata.normalize("NFC", given)
        if not name.strip() or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            raise ValueError(
                f"class {index} cannot be named {given[:80]!r}; a name has 1 to {MAX_NAME_CHARACTERS} characters, all "
                "of them printable"
            )
        if name in seen:
            raise ValueError(f"classes {seen[name]} and {index} are both named {name[:80]!r}")
        seen[name] = index
    return tuple(seen)


def read_manifest(text: str) -> Manifest:
    """Read the JSON text of a manifest, format version 1 or 2; `CorruptBundleError` names what is wrong in it."""
    try:
        fields = json.loads(text)
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if type(version) is int and version > FORMAT_VERSION:
            raise CorruptBundleError(
                f"it has format version {version}, this fleetnas reads up to {FORMAT_VERSION}: upgrade fleetnas"
            )
        if version == 1:
            _check_version_1(fields)
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CorruptBundleError(f"its manifest is wrong in {where[:100]!r}: {fault_words(first)[:300]}") from None
    except (ValueError, RecursionError):
        raise CorruptBundleError("its manifest is not JSON") from None


def _check_version_1(fields: Mapping[str, Any]) -> None:
    preprocessing = fields.get("preprocessing")
    if "class_names" in fields or (isinstance(preprocessing, dict) and "fit" in preprocessing):
        raise CorruptBundleError("its manifest has format version 1, which has neither class_names nor fit")
