"""The program that classifies images with a winner, and the names of its classes, beside the model files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fleetnas.supernet_export.output_files import write_atomically

INFER_FILE, LABELS_FILE = "infer.py", "labels.txt"
#: A program of its own, which imports nothing of fleetnas: it is copied as it is.
_PROGRAM = Path(__file__).with_name(INFER_FILE)


def write_inference_program(folder: Path, class_names: Sequence[str] | None) -> None:
    """Write `infer.py` to a folder of models, and `labels.txt` with one class a line where they have names.

    The program takes preprocessing and class names from the card of each model. `OSError` where it cannot be written.
    """
    _write_changed(folder / INFER_FILE, _PROGRAM.read_bytes())
    if class_names is not None:
        _write_changed(folder / LABELS_FILE, "".join(f"{name}\n" for name in class_names).encode())


def _write_changed(path: Path, content: bytes) -> None:
    """Write a file whose content differs: results are written again and again while a run goes on."""
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)
