"""Figures that were drawn, kept until their run changes: drawing thousands of points takes longer than all else."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")
#: Pages whose figures are kept.
_MOST_KEPT = 50


class KeptFigures:
    """Keeps what was made by a key and a version; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Hashable, Any]] = OrderedDict()

    def get(self, key: Hashable, version: Hashable, make: Callable[[], T]) -> T:
        """Return what was made of this version, or make it."""
        with self._lock:
            known = self._kept.get(key)
            if known is not None and known[0] == version:
                self._kept.move_to_end(key)
                found: T = known[1]
                return found
        made = make()
        with self._lock:
            self._kept[key] = version, made
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return made
