"""Make torch give the same numbers every time, while one thing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def reproducible(threads: int, *, on_cpu: bool) -> Iterator[None]:
    """Use `threads` threads and, on a CPU, deterministic algorithms; numbers too small for float32 become 0."""
    deterministic, before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic or on_cpu)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)
