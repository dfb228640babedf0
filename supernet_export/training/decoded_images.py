"""Image files as Pillow reads them, kept in memory where there is room."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from fleetnas.fleet_protocol.cores import core_count
from fleetnas.supernet_export.evaluation.image_file import open_image, pillow

if TYPE_CHECKING:
    from PIL.Image import Image

_DECODE_THREADS = 8
#: Of a pixel of 16-bit or float grey, which Pillow's mode F holds.
_DEEP_BYTES = 4


class DecodedImages:
    """Images of files by their index, decoded when they are asked for or all at once."""

    def __init__(self, paths: Sequence[Path], channels: int, room: int = 0) -> None:
        """Keep images that are asked for while all together take at most `room` bytes."""
        self._paths, self._channels, self._room = list(paths), channels, room
        self._kept: dict[int, Image] = {}

    def __getitem__(self, index: int) -> Image:
        """Return an image; `UsageError` where its file cannot be read."""
        found = self._kept.get(index)
        if found is None:
            found = open_image(self._paths[index], self._channels)
            needed = found.width * found.height * (_DEEP_BYTES if found.mode == "F" else len(found.getbands()))
            if needed <= self._room:
                self._room -= needed
                self._kept[index] = found
        return found

    def decode_all(self, limit: int) -> int:
        """Decode and keep all images if they take at most `limit` bytes; return the bytes that they take or would."""
        pil = pillow()
        size: int = 0
        for path in self._paths:
            with pil.open(path) as image:
                deep = image.mode in ("F", "I") or image.mode.startswith("I;16")
                size += int(image.width * image.height) * (_DEEP_BYTES if deep else self._channels)
            if size > limit:
                return size
        with ThreadPoolExecutor(min(_DECODE_THREADS, core_count())) as readers:
            found = readers.map(lambda path: open_image(path, self._channels), self._paths)
            self._kept = dict(enumerate(found))
        return size
