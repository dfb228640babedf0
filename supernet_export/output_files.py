"""Files that users name: their names fit what is in them, and they are put in place whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fleetnas.fleet_protocol.errors import UsageError

#: Suffixes that promise a content, as users and our own commands read them.
_PROMISING = frozenset(
    {
        *(".bz2", ".csv", ".gz", ".html", ".jpg", ".json", ".jsonl", ".npy", ".npz", ".onnx", ".parquet", ".pb"),
        *(".pdf", ".pickle", ".pkl", ".png", ".pt", ".pth", ".safetensors", ".sqlite", ".supernet", ".tar", ".tflite"),
        *(".toml", ".tsv", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zip"),
    }
)
#: What a folder must have room for when it is checked: a full file system may still take an empty file.
_PROBE_BYTES = 4096


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file at once, its folder made where it is missing; an `OSError` names `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        # A full disk does not say which file did not fit, and the temporary file's name says nothing to anybody.
        error.filename, error.filename2 = str(path), None
        raise


def check_folder(option: str, directory: Path) -> None:
    """Make the folder that `option` names where it is missing; `UsageError` where nothing can be written into it."""
    if os.path.exists(directory) and not directory.is_dir():
        raise UsageError(f"{option} {directory} is not a folder; give the name of a folder, which may be a new one")
    _try_to_write(option, directory, directory)


def check_file(option: str, path: Path, *suffixes: str, strict: bool = False) -> None:
    """Check the file that `option` names before the work that it is for; its folder is made where it is missing.

    `UsageError` where its name promises another content (as `check_suffix`), or where it could not be written.
    """
    check_suffix(option, path, *suffixes, strict=strict)
    if os.path.exists(path) and not path.is_file():
        raise UsageError(f"{option} {path} is no file that can be replaced; give the name of a file")
    _try_to_write(option, path, path.parent)


def check_suffix(option: str, path: Path, *suffixes: str, strict: bool = False) -> None:
    """`UsageError` where a file's name promises another content than that of a file with one of `suffixes`.

    A name that promises nothing will do, unless `strict`, for files that are read by their suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in suffixes and (strict or suffix in _PROMISING):
        raise UsageError(
            f"{option} {path} would hold what belongs into a {' or '.join(suffixes)} file; give it a name that ends "
            f"so, such as {path.stem}{suffixes[0]}"
        )


def _try_to_write(option: str, named: Path, directory: Path) -> None:
    probe = directory / ".fleetnas-probe"
    try:
        write_atomically(probe, bytes(_PROBE_BYTES))
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"{option} {named} cannot be written ({error.strerror}); make room there, check who may write there, or "
            "give another place"
        ) from error
