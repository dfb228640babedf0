"""A fleet of real processes for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs.process_fleet import Fleet, process_fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A broker on this machine and whatever a test starts on it."""
    with process_fleet(tmp_path) as started:
        yield started
