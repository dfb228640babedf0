"""Begin a training from weights that exist: a published supernet, a checkpoint file, a bundle or another training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fleetnas.fleet_protocol.errors import CheckpointError, UsageError
from fleetnas.supernet_export.bundle import ACCURACY_PREFIX, SupernetBundle, space_of
from fleetnas.supernet_export.checkpoints.download import ProgressCallback, download
from fleetnas.supernet_export.checkpoints.published import PUBLISHED
from fleetnas.supernet_export.checkpoints.reader import read_checkpoint
from fleetnas.supernet_export.graph import Array
from fleetnas.supernet_export.manifest import Manifest
from fleetnas.supernet_export.slicing.families import slicer_for
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.training.elastic import ElasticMBConvNet
from fleetnas.supernet_export.training.result import WEIGHTS_NAME, read_draft

#: Layers that depend on the classes and on the channels of images, and are trained anew where these differ.
_HEAD, _STEM = ("classifier.linear.weight", "classifier.linear.bias"), "first_conv.conv.weight"


@dataclass(frozen=True)
class Source:
    """Weights to begin from, as stored, and their design space where it is known."""

    name: str
    tensors: dict[str, Array]
    space: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None


@dataclass(frozen=True)
class Loaded:
    """A line about what was loaded, and the names of the layers that begin anew."""

    line: str
    renewed: tuple[str, ...]


def open_source(name: str, *, cache: Path | None = None, progress: ProgressCallback | None = None) -> Source:
    """Read the weights that `--from` names: a published supernet, a checkpoint, a bundle or a folder of a training.

    Raises:
        UsageError: there is no such thing.
        CheckpointError: the file cannot be read.
    """
    if name in PUBLISHED:
        supernet = PUBLISHED[name]
        checkpoint = download(supernet.checkpoint, cache=cache, progress=progress)
        return Source(name, read_checkpoint(checkpoint).tensors, supernet.space, supernet.options)
    path = Path(name)
    if path.is_dir():
        path = path / WEIGHTS_NAME
    if not path.is_file():
        raise UsageError(
            f"--from {name!r} is neither a published supernet nor a file or a folder of a training; give one of "
            f"{', '.join(PUBLISHED)}, a checkpoint, a bundle, or the --out of a training that has ended"
        )
    if path.suffix == ".supernet":
        bundle = SupernetBundle.open(path)
        manifest = bundle.manifest
        tensors = {
            tensor: np.array(bundle.tensor(tensor)) for tensor in bundle.names if not tensor.startswith(ACCURACY_PREFIX)
        }
        return Source(name, tensors, manifest.space, manifest.options, manifest)
    draft = read_draft(path)
    tensors = read_checkpoint(path).tensors
    if draft is None:
        return Source(name, tensors)
    return Source(name, tensors, draft.space, draft.options, draft)


def load_teacher(net: ElasticMBConvNet, space: MBConvSpace, manifest: Manifest, name: str) -> str:
    """Copy the weights that `--teacher` names into `net`; return a line about it.

    `UsageError` where it has other classes, another order of them, other strides and the like, or sees images otherwise
    normalised than `manifest` says; `CheckpointError` where its tensors are not those of the space.
    """
    source = open_source(name)
    loaded = load_source(net, space, source, manifest.class_names)
    if loaded.renewed:
        raise UsageError(
            f"--teacher {name} must have the classes of these images in the same order, and images of "
            f"{space.image_channels} channels, and it has others; train one on the same folders, or leave it out"
        )
    if source.manifest is not None:
        ours, theirs = manifest.preprocessing, source.manifest.preprocessing
        if (ours.mean, ours.std) != (theirs.mean, theirs.std):
            raise UsageError(
                f"--teacher {name} sees images normalised with mean {theirs.mean} and deviation {theirs.std}, and this "
                f"training with {ours.mean} and {ours.std}; take a teacher that sees the same images"
            )
        network = getattr(space_of(source.manifest), "network", None)
        if network != space.network:
            raise UsageError(
                f"--teacher {name} has tensors of the same shapes but other strides, activations or the like than "
                f"{space.name} with these options; take a teacher of the same space"
            )
    return loaded.line


def load_source(
    net: ElasticMBConvNet, space: MBConvSpace, source: Source, class_names: Sequence[str] | None = None
) -> Loaded:
    """Copy a source's weights into `net`, all but layers that other classes or channels need.

    The classifier is such a layer too where the source's class names are known and not `class_names`.
    `CheckpointError` where any other tensor has another shape, is missing or is unknown.
    """
    spelled = slicer_for(space).spellings
    own = {next(iter(spelled(name))): tensor for name, tensor in net.state_dict().items()}
    given = {next(iter(spelled(name))): array for name, array in source.tensors.items()}
    given = {name: array for name, array in given.items() if not name.endswith("num_batches_tracked")}
    if not any(name.endswith("_matrix") for name in given):
        given = _with_transforms(given, own)
    renewed = [name for name in (*_HEAD, _STEM) if name in given and given[name].shape != tuple(own[name].shape)]
    theirs = None if source.manifest is None else source.manifest.class_names
    other_classes = None not in (theirs, class_names) and tuple(class_names or ()) != theirs
    if other_classes or any(name in renewed for name in _HEAD):
        renewed = [*_HEAD, *(name for name in renewed if name == _STEM)]
    wrong = [
        name
        for name, tensor in own.items()
        if name not in renewed and name in given and given[name].shape != tuple(tensor.shape)
    ]
    missing = [name for name in own if name not in given and not name.endswith("_matrix")]
    unknown = [name for name in given if name not in own]
    if wrong or missing or unknown:
        raise CheckpointError(_explained(space, source, own, given, wrong, missing, unknown))
    with torch.no_grad():
        for name in own.keys() & given.keys() - set(renewed):
            own[name].copy_(torch.from_numpy(np.ascontiguousarray(given[name], np.float32)))
    loaded = len(own.keys() & given.keys()) - len(renewed)
    line = f"{source.name}: {loaded} of {len(own)} tensors loaded"
    if any(name in renewed for name in _HEAD):
        found = len(given[_HEAD[1]])
        reason = f"for {space.classes:,} classes in place of {found:,}"
        if found == space.classes:
            reason = "since its classes are others, or in another order"
        line += f"; the classifier is new, {reason}"
    if _STEM in renewed:
        line += (
            f"; the first convolution is new, for {space.image_channels} channels in place of {given[_STEM].shape[1]}"
        )
    absent = len(own) - loaded - len(renewed)
    if absent:
        line += f"; {absent} kernel transforms, which it has not, begin as the identity"
    return Loaded(line, tuple(renewed))


def _explained(
    space: MBConvSpace,
    source: Source,
    own: Mapping[str, Any],
    given: Mapping[str, Array],
    wrong: list[str],
    missing: list[str],
    unknown: list[str],
) -> str:
    parts = []
    if wrong:
        name = wrong[0]
        parts.append(
            f"{len(wrong)} tensors have other shapes, such as {name!r}, {given[name].shape} in place of "
            f"{tuple(own[name].shape)}"
        )
    if missing:
        parts.append(f"{len(missing)} are missing, such as {missing[0]!r}")
    if unknown:
        parts.append(f"{len(unknown)} are unknown, such as {unknown[0]!r}")
    choices = (
        f"kernels {list(space.kernels)}, expand ratios {list(space.expands)}, depths {list(space.depths)}, "
        f"width {getattr(space, 'width', 1)}"
    )
    return (
        f"{source.name} is not of {space.name} with {choices}: {'; '.join(parts)}; give --kernels, --expands, "
        "--depths, --width and --options as it was trained with"
    )


def _with_transforms(given: dict[str, Array], own: Mapping[str, Any]) -> dict[str, Array]:
    """Return a bundle's tensors with kernel transforms in place of the smaller kernels that it holds.

    A bundle has no transforms but what they made. Of all matrices that make exactly that, the one nearest to the
    identity is taken.
    """
    found = {name: array for name, array in given.items() if ".depth_conv.conv.weight.k" not in name}
    for name in [name for name in own if name.endswith("_matrix")]:
        stem, _, sizes = name.rpartition(".")
        large, small = (int(side) for side in sizes.removesuffix("_matrix").split("to"))
        larger = given.get(f"{stem}.weight.k{large}", given.get(f"{stem}.weight"))
        smaller = given.get(f"{stem}.weight.k{small}")
        if larger is None or smaller is None or larger.shape[-1] != large:
            continue
        edge = (large - small) // 2
        centre = larger[:, 0, edge : edge + small, edge : edge + small].reshape(len(larger), -1).astype(np.float64)
        change = smaller.reshape(len(smaller), -1).astype(np.float64) - centre
        solved = np.linalg.lstsq(centre, change, rcond=1e-6)[0].T
        found[name] = (np.eye(small**2) + solved).astype(np.float32)
    return found
