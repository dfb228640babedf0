"""Keep an accelerator's compiled engines, so that a model is compiled once per device."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

#: An engine of a mobile network takes some 20 MB; a campaign makes hundreds of them.
MAX_BYTES = 1024**3


class EngineCache:
    """One folder per model, named by its hash.

    TensorRT's own file names come from the graph's names and not from its weights or shapes, so that two subnets in
    one folder would get each other's engine (onnxruntime issue 6455).
    """

    def __init__(self, root: Path, max_bytes: int = MAX_BYTES) -> None:
        self._root = root
        self._max_bytes = max_bytes

    @property
    def timings(self) -> Path:
        """Folder of the compiler's timings of layers; every model's build shares it."""
        return self._root / "timings"

    def folder(self, model_sha256: str) -> Path | None:
        """Return the model's own folder; the least recently used folders are deleted if all exceed the cap.

        None if the folder cannot be made: the engine is then compiled every time.
        """
        own = self._root / model_sha256
        try:
            self.timings.mkdir(parents=True, exist_ok=True)
            own.mkdir(exist_ok=True)
            os.utime(own)
            self._make_room(own)
        except OSError:
            return None
        return own

    def _make_room(self, keep: Path) -> None:
        folders = [path for path in self._root.iterdir() if path.is_dir() and path not in (keep, self.timings)]
        aged = sorted((path.stat().st_mtime_ns, _size(path), path) for path in folders)
        used = sum(size for _, size, _ in aged) + _size(keep)
        for _, size, path in aged:
            if used <= self._max_bytes:
                return
            with contextlib.suppress(OSError):
                shutil.rmtree(path)
                used -= size


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
