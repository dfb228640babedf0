"""A file at an official address, and how to know it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

#: Where a file's size is not known, no more than this is taken; the largest supernet published has 193 MB.
MAX_BYTES = 1 << 30

_BLOCK = 1 << 18

DigestKind: TypeAlias = Literal["sha256", "git-blob"]


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file at its official address, with the size and hash of its content."""

    name: str
    url: str
    size: int | None
    #: `git-blob` is SHA-1 of "blob <size>\\0" and the content, the name that git gives it.
    digest_kind: DigestKind
    digest: str

    @property
    def most_bytes(self) -> int:
        """The longest possible size of this file; a longer answer is another file."""
        return MAX_BYTES if self.size is None else self.size

    def is_in(self, path: Path) -> bool:
        """Whether `path` holds exactly this file."""
        digest = hashlib.sha256()
        if self.digest_kind == "git-blob":
            digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest() == self.digest
