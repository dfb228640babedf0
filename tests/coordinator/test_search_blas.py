"""One BLAS thread for as long as any thread of the process wants it."""

from __future__ import annotations

import numpy as np
import pytest

from fleetnas.coordinator.search.blas import single_threaded_blas

threadpoolctl = pytest.importorskip("threadpoolctl")


def blas_threads() -> set[int]:
    np.zeros((2, 2)) @ np.zeros((2, 2))
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


def test_who_leaves_first_does_not_end_what_another_still_wants() -> None:
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        first, second = single_threaded_blas(), single_threaded_blas()
        first.__enter__()
        second.__enter__()
        assert blas_threads() == {1}
        first.__exit__(None, None, None)
        assert blas_threads() == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == before
