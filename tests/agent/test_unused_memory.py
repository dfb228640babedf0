"""Memory of a closed model goes back to the system."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from fleetnas.agent.host.unused_memory import return_unused_memory

_STATUS = Path("/proc/self/statm")
_MIB = 2**20


def resident_mib() -> float:
    return int(_STATUS.read_text().split()[1]) * 4096 / _MIB


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_memory_below_a_block_that_is_in_use_is_given_back() -> None:
    # Smaller than what the C library maps on its own, so that all of it lies on the heap.
    blocks = [bytearray(b"x" * 65_536) for _ in range(800)]
    kept = bytearray(b"x" * 65_536)
    del blocks
    before_mib = resident_mib()
    return_unused_memory()
    assert resident_mib() < before_mib - 30
    assert len(kept) == 65_536
    return_unused_memory()


def test_a_c_library_without_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: object) -> object:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    return_unused_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    return_unused_memory()
