"""One BLAS thread for as long as any thread of the process wants it."""

from __future__ import annotations

import threading

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


def test_whichever_thread_comes_first_and_leaves_last() -> None:
    entered, leave = threading.Event(), threading.Event()

    def other_thread() -> None:
        with single_threaded_blas():
            entered.set()
            leave.wait()

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        for _ in range(2):
            thread = threading.Thread(target=other_thread, daemon=True)
            thread.start()
            entered.wait()
            assert blas_threads() == {1}
            with single_threaded_blas():
                assert blas_threads() == {1}
            assert blas_threads() == {1}
            leave.set()
            thread.join()
            assert blas_threads() == before
            entered.clear()
            leave.clear()
