"""Convert a checkpoint's tensors into a bundle, without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fleetnas.fleet_protocol.errors import CheckpointError
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.bundle import ACCURACY_PREFIX, write_bundle
from fleetnas.supernet_export.checkpoints.download import ProgressCallback, download
from fleetnas.supernet_export.checkpoints.published import published
from fleetnas.supernet_export.checkpoints.reader import read_checkpoint
from fleetnas.supernet_export.graph import Array
from fleetnas.supernet_export.manifest import AccuracyPredictorInfo, Manifest, Preprocessing, Provenance
from fleetnas.supernet_export.slicing.families import slicer_for
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from fleetnas.supernet_export.spaces.registry import make_space

#: How OFA's networks see images.
IMAGENET = Preprocessing(
    channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear", crop_fraction=0.875
)
#: The built-in supernet's weights, under the names of OFA's checkpoints.
DIGITS_CHECKPOINT = Path(__file__).parent / "digits" / "digits.safetensors"


def export_state_dict(state_dict: Mapping[str, Array], space: DesignSpace) -> dict[str, Array]:
    """Return the bundle tensors of `space` from a checkpoint's state dict, in any known spelling of its names.

    `CheckpointError` where a name, a shape or a number shows that the checkpoint is of another network.
    """
    slicer = slicer_for(space)
    required, optional = slicer.checkpoint_shapes(), slicer.optional_shapes()
    wanted = required | optional
    found: dict[str, Array] = {}
    for name, array in state_dict.items():
        if name.endswith("num_batches_tracked"):
            continue
        canonical = next((spelling for spelling in slicer.spellings(name) if spelling in wanted), None)
        if canonical is None:
            raise CheckpointError(
                f"the checkpoint is not of {space.name}: it holds {name!r}, which {space.name} has not"
            )
        if tuple(array.shape) != wanted[canonical]:
            raise CheckpointError(
                f"the checkpoint is not of {space.name} with these options: {name!r} has shape {tuple(array.shape)} "
                f"and should have {wanted[canonical]}"
            )
        if not np.isfinite(array).all() or (canonical.endswith(".running_var") and (array < 0).any()):
            raise CheckpointError(f"the checkpoint is damaged: {name!r} holds impossible numbers")
        found[canonical] = np.asarray(array, np.float32)
    needed = wanted if any(name in found for name in optional) else required
    missing = [name for name in needed if name not in found]
    if missing:
        raise CheckpointError(
            f"the checkpoint is not of {space.name}: {len(missing)} of {len(needed)} tensors are missing, "
            f"{missing[0]!r} among them"
        )
    return slicer.bundle_tensors(found)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def export_checkpoint(
    checkpoint: Path,
    space: DesignSpace,
    path: Path,
    *,
    source: str | None = None,
    accuracy: AccuracyPredictor | None = None,
    accuracy_source: str = "",
    on_read: Callable[[str], object] = lambda where: None,
) -> str:
    """Write the bundle of an ImageNet checkpoint file to `path`; return its SHA-256.

    `source` is what the manifest calls the checkpoint, by default its file name; `accuracy` is a predictor over
    `space` to include; `on_read` is called with the place of the weights in the file.

    Raises `CheckpointError` if the checkpoint cannot be read or is not of `space`.
    """
    found = read_checkpoint(checkpoint)
    on_read(found.where)
    tensors = export_state_dict(found.tensors, space)
    manifest = Manifest(
        space=space.name,
        options=dict(space.options),
        classes=len(tensors["classifier.linear.bias"]),
        dataset="imagenet",
        preprocessing=IMAGENET,
        provenance=Provenance(source=source or checkpoint.name, sha256=file_sha256(checkpoint)),
    )
    return _write(path, manifest, tensors, accuracy, accuracy_source)


def export_published(
    name: str,
    path: Path,
    *,
    cache: Path | None = None,
    mirrors: Sequence[str] | None = None,
    progress: ProgressCallback | None = None,
) -> str:
    """Download a published supernet, with the accuracy predictor published for it, and write its bundle to `path`.

    Returns the bundle's SHA-256. Names: `supernet_export/checkpoints/published.py`. `DownloadError`, `CheckpointError`.
    """
    supernet = published(name)
    checkpoint = download(supernet.checkpoint, cache=cache, mirrors=mirrors, progress=progress)
    accuracy, accuracy_source = None, ""
    if supernet.accuracy_predictor is not None:
        accuracy_source = supernet.accuracy_predictor.url
        accuracy = AccuracyPredictor.from_pth(download(supernet.accuracy_predictor, cache=cache, mirrors=mirrors))
    space = make_space(supernet.space, supernet.options)
    return export_checkpoint(
        checkpoint,
        space,
        path,
        source=supernet.checkpoint.url,
        accuracy=accuracy,
        accuracy_source=accuracy_source,
    )


def export_digits(path: Path, checkpoint: Path = DIGITS_CHECKPOINT, accuracy: AccuracyPredictor | None = None) -> str:
    """Write the bundle of a digits supernet; returns its SHA-256.

    `checkpoint` and `accuracy` are those that ship, unless others are given together.
    """
    from safetensors.numpy import load_file

    from fleetnas.supernet_export.digits.accuracy import load_predictor
    from fleetnas.supernet_export.digits.data import DEVIATION, MEAN

    space = DigitsSpace()
    tensors = export_state_dict(load_file(checkpoint), space)
    manifest = Manifest(
        space=space.name,
        options=dict(space.options),
        classes=space.network.classes,
        dataset="digits",
        preprocessing=Preprocessing(channels=1, mean=(MEAN,), std=(DEVIATION,), interpolation="bilinear"),
        provenance=Provenance(source="trained by fleetnas on scikit-learn's digits", sha256=file_sha256(checkpoint)),
    )
    return _write(path, manifest, tensors, accuracy or load_predictor(), "fitted by fleetnas on evaluated subnets")


def _write(
    path: Path, manifest: Manifest, tensors: dict[str, Array], accuracy: AccuracyPredictor | None, accuracy_source: str
) -> str:
    if accuracy is not None:
        info = AccuracyPredictorInfo(source=accuracy_source, held_out=accuracy.held_out)
        manifest = manifest.model_copy(update={"accuracy_predictor": info})
        tensors = tensors | {f"{ACCURACY_PREFIX}{name}": array for name, array in accuracy.tensors().items()}
    return write_bundle(path, manifest, tensors)
