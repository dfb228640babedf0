"""Begin a training from weights that exist: a published supernet, a checkpoint file, a bundle or another training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fleetnas.fleet_protocol.errors import CheckpointError, UsageError
from fleetnas.supernet_export.bundle import ACCURACY_PREFIX, SupernetBundle
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


def load_source(net: ElasticMBConvNet, space: MBConvSpace, source: Source) -> str:
    """Copy a source's weights into `net`, all but layers that other classes or channels need; return a line about it.

    `CheckpointError` where any other tensor has another shape, is missing or is unknown.
    """
    spelled = slicer_for(space).spellings
    own = {next(iter(spelled(name))): tensor for name, tensor in net.state_dict().items()}
    given = {next(iter(spelled(name))): array for name, array in source.tensors.items()}
    given = {name: array for name, array in given.items() if not name.endswith("num_batches_tracked")}
    if not any(name.endswith("_matrix") for name in given):
        given = _with_transforms(given, own)
    renewed = [name for name in (*_HEAD, _STEM) if name in given and given[name].shape != tuple(own[name].shape)]
    if any(name in renewed for name in _HEAD):
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
        line += f"; the classifier is new, for {space.classes:,} classes in place of {len(given[_HEAD[1]]):,}"
    if _STEM in renewed:
        line += (
            f"; the first convolution is new, for {space.image_channels} channels in place of {given[_STEM].shape[1]}"
        )
    absent = len(own) - loaded - len(renewed)
    if absent:
        line += f"; {absent} kernel transforms, which it has not, begin as the identity"
    return line


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
        f"{source.name} is not of {space.name} with {choices}: {'; '.join(parts)}; give --kernels, --expands, --depths, "
        "--width and --options as it was trained with"
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
