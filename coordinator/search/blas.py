"""BLAS on one thread while a search runs."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """The search multiplies many small matrices: more BLAS threads wait for each other longer than they compute.

    On a machine whose cores are busy they made a search fifteen times slower. Without threadpoolctl nothing changes;
    then OMP_NUM_THREADS=1 does the same.
    """
    controller = _controller()
    if controller is None:
        yield
        return
    with controller.limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _controller() -> Any:
    try:
        threadpoolctl = importlib.import_module("threadpoolctl")
    except ImportError:
        return None
    return threadpoolctl.ThreadpoolController()
