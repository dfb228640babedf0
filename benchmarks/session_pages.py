"""Which pages of memory a session lies in: address and frame, as Linux tells the superuser."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_PAGE, _ENTRY = 4096, 8
_PRESENT, _FRAME = np.uint64(1 << 63), np.uint64((1 << 55) - 1)
#: Longer mappings are reserved addresses, hardly any of them in use.
_MOST_BYTES = 2**36


def own_pages() -> dict[int, int]:
    """Return the frame of each page of this process that is writable and belongs to no file, by page number."""
    found: dict[int, int] = {}
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for line in Path("/proc/self/maps").read_text().splitlines():
            addresses, rights, *rest = line.split()
            begin, end = (int(address, 16) for address in addresses.split("-"))
            of_file = len(rest) > 3 and rest[3].startswith("/")
            if "w" not in rights or of_file or end - begin > _MOST_BYTES:
                continue
            pagemap.seek(begin // _PAGE * _ENTRY)
            entries = np.frombuffer(pagemap.read((end - begin) // _PAGE * _ENTRY), dtype=np.uint64)
            present = np.flatnonzero(entries & _PRESENT)
            frames = entries[present] & _FRAME
            found.update(zip((begin // _PAGE + present).tolist(), frames.tolist(), strict=True))
    return found


class PageWatch:
    """Compares the pages of one session with those of the session before."""

    def __init__(self) -> None:
        """Pages in use now belong to no session."""
        self._base = own_pages()
        self._last: dict[int, int] = {}

    def same_share(self) -> list[float]:
        """Share of the session's pages at the same address in the same frame as before; none for the first session."""
        mine = {page: frame for page, frame in own_pages().items() if page not in self._base}
        last, self._last = self._last, mine
        if not last or not any(mine.values()):  # frames are hidden from other users
            return []
        return [sum(last.get(page) == frame for page, frame in mine.items()) / len(mine)]
