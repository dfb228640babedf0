"""BLAS on one thread while a search runs."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit BLAS to one thread inside the context.

    The search multiplies many small matrices: more BLAS threads wait for each other longer than they compute.

    On a machine with busy cores they made a search fifteen times slower. Without threadpoolctl nothing changes; then
    OMP_NUM_THREADS=1 has the same effect.
    """
    controller = _controller()
    if controller is None:
        yield
        return
    _LIMIT.enter(controller)
    try:
        yield
    finally:
        _LIMIT.leave()


class _Limit:
    """The limit of the whole process, kept while any thread needs it: threads would undo each other's limits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limiter: Any = None

    def enter(self, controller: Any) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                _take_control(controller)
                self._limiter = controller.limit(limits=1, user_api="blas")

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                _take_control(_controller())
                self._limiter.restore_original_limits()


def _take_control(controller: Any) -> None:
    """Let this thread set limits: since threadpoolctl 3.8, OpenBLAS obeys only the first thread that did.

    `_Limit` counts and locks in place of that rule.
    """
    for blas in controller.lib_controllers:
        clear = getattr(blas, "clear_controlling_thread", None)
        if clear is not None:
            clear(force=True)


_LIMIT = _Limit()


@functools.cache
def _controller() -> Any:
    try:
        threadpoolctl = importlib.import_module("threadpoolctl")
    except ImportError:
        return None
    return threadpoolctl.ThreadpoolController()
