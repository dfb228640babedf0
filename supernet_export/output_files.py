"""Write files that users name: their suffixes fit their content, and they are written completely or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fleetnas.fleet_protocol.errors import UsageError

#: Suffixes from which users and our own commands expect a certain content.
_PROMISING = frozenset(
    {
        *(".bz2", ".csv", ".gz", ".html", ".jpg", ".json", ".jsonl", ".npy", ".npz", ".onnx", ".parquet", ".pb"),
        *(".pdf", ".pickle", ".pkl", ".png", ".pt", ".pth", ".safetensors", ".sqlite", ".supernet", ".tar", ".tflite"),
        *(".toml", ".tsv", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zip"),
    }
)
#: Bytes for which a folder must have room when it is checked: a full file system may still take an empty file.
_PROBE_BYTES = 4096


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file at once and make its folder if it is missing; `OSError` with the name of `path` if that fails."""
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
        # The error of a full disk names no file, and the name of the temporary file would not help.
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_folder(option: str, directory: Path) -> None:
    """Make the folder that `option` names if it is missing; `UsageError` if it cannot be written."""
    if os.path.exists(directory) and not directory.is_dir():
        raise UsageError(f"{option} {directory} is not a folder; give the name of a folder, which may be a new one")
    _try_to_write(option, directory, directory)


def check_file(option: str, path: Path, *suffixes: str, strict: bool = False) -> None:
    """Check an output file before the work whose result it will hold; make its folder if it is missing.

    Raises `UsageError` if its suffix does not fit (see `check_suffix`), or if it cannot be written. `option` named it.
    """
    check_suffix(option, path, *suffixes, strict=strict)
    if os.path.exists(path) and not path.is_file():
        raise UsageError(f"{option} {path} is no file that can be replaced; give the name of a file")
    _try_to_write(option, path, path.parent)


def check_suffix(option: str, path: Path, *suffixes: str, strict: bool = False) -> None:
    """Raise `UsageError` if a file's suffix stands for another content than the `suffixes`.

    An unknown suffix is accepted, unless `strict`, for files that are read by their suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in suffixes and (strict or suffix in _PROMISING):
        raise UsageError(
            f"{option} {path} would hold the content of a {' or '.join(suffixes)} file; give it a name with this "
            f"suffix, such as {path.stem}{suffixes[0]}"
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
