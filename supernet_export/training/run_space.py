"""Choose the design space of a training, and how its images are preprocessed."""

from __future__ import annotations

from typing import Any

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.manifest import Preprocessing
from fleetnas.supernet_export.preprocessing import IMAGENET
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.registry import make_space
from fleetnas.supernet_export.training.run_settings import TrainSettings
from fleetnas.supernet_export.training.warm_start import Source

DEFAULT_SPACE = "mbconv"
_SHORT_FORMS = ("resolutions", "kernels", "expands", "depths", "width")
#: Luma of ImageNet's means and the mean of its deviations, for grey images.
_GREY_MEAN, _GREY_DEVIATION = 0.458, 0.226
#: Space of the same network whose expand ratios are tied to depths.
_TIED = {"ofa-mbv3": "compofa-elastic"}


def training_space(settings: TrainSettings, source: Source | None, classes: int) -> MBConvSpace:
    """Make the space that a training fills: the source's or `--space`, with the options of the command line over it.

    Raises:
        UsageError: options contradict each other or are not the space's, or its family cannot be trained.
    """
    if source is not None and source.space is None and settings.space is None:
        raise UsageError(
            f"--from {source.name} does not say of which design space it is: give --space and --options, which "
            f"`fleetnas inspect {source.name}` prints"
        )
    stored = source is not None and source.space is not None
    name = settings.space or (source.space if source is not None and source.space is not None else DEFAULT_SPACE)
    options: dict[str, Any] = {}
    if stored and source is not None:
        if settings.space not in (None, source.space, _TIED.get(source.space or "")):
            raise UsageError(
                f"--from {source.name} is of the design space {source.space}, and --space is {settings.space}; leave "
                "--space out"
            )
        options = dict(source.options)
    if settings.schedule == "compound":
        name = _TIED.get(name, name)
        if name == "mbconv":
            options["tied"] = True
    _check_family(name)
    options |= settings.options
    for short in _SHORT_FORMS:
        value = getattr(settings, short)
        if value is not None:
            if short in settings.options:
                raise UsageError(f"--{short} and --options both give {short}; leave one out")
            options[short] = list(value) if isinstance(value, tuple) else value
    if settings.options.get("classes", classes) != classes:
        raise UsageError(
            f"--options gives {settings.options['classes']} classes and {settings.train} holds {classes}; leave "
            "classes out, they are counted"
        )
    options["classes"] = classes
    if settings.channels is not None:
        options["image_channels"] = settings.channels
    space = make_space(name, options)
    assert isinstance(space, MBConvSpace)
    return space


def _check_family(name: str) -> None:
    if not isinstance(make_space(name), MBConvSpace):
        raise UsageError(
            f"`fleetnas train` is for the families of inverted bottlenecks (mbconv, ofa-mbv3, ofa-proxyless, compofa), "
            f"and {name} is none of them; train it with your own program and export the checkpoint"
        )


def training_preprocessing(settings: TrainSettings, source: Source | None, space: MBConvSpace) -> Preprocessing:
    """Return the preprocessing: the source's where it has one for this number of channels, else ImageNet's."""
    found = IMAGENET
    if source is not None and source.manifest is not None:
        found = source.manifest.preprocessing
    if found.channels != space.image_channels:
        if space.image_channels not in (1, 3):
            raise UsageError(
                f"{space.name} takes images of {space.image_channels} channels, and image files are read as 1 (grey) "
                "or 3 (RGB); give --channels 1 or 3"
            )
        grey = space.image_channels == 1
        found = IMAGENET.model_copy(
            update={"channels": 1, "mean": (_GREY_MEAN,), "std": (_GREY_DEVIATION,)} if grey else {}
        )
    fit = settings.fit or found.fit
    if fit != found.fit:
        found = found.model_copy(update={"fit": fit, "crop_fraction": 0.875 if fit == "crop" else 1.0})
    return Preprocessing.model_validate(found.model_dump())
