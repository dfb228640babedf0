"""Times, counts and sizes with units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetnas.fleet_protocol.units import COUNTS, SIZES, milliseconds, quantity, seconds


@pytest.mark.parametrize(
    ("text", "in_seconds", "in_ms"),
    [
        ("20", 20.0, 20.0),  # without a unit: seconds of a time, milliseconds of a latency
        ("20ms", 0.02, 20.0),
        ("0.02s", 0.02, 20.0),
        (" 500 us ", 0.0005, 0.5),
        ("90s", 90.0, 90e3),
        ("2H", 7200.0, 7200e3),
        ("1h30m", 5400.0, 5400e3),
        ("1h 30min 5s", 5405.0, 5405e3),
        (".5", 0.5, 0.5),
        ("1e3", 1000.0, 1000.0),
    ],
)
def test_a_time_is_read_with_its_unit(text: str, in_seconds: float, in_ms: float) -> None:
    assert (seconds(text), milliseconds(text)) == (in_seconds, in_ms)


@pytest.mark.parametrize(
    "text", ["", "soon", "-5s", "ms", "nan", "infs", "1,5s", "5x", "30m1h", "1h1h", "1e3s", "1e999", "٣", "9" * 400]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    for read in (seconds, milliseconds):
        with pytest.raises(ValueError, match="is no time"):
            read(text)


@given(st.integers(1, 10**7))
def test_a_unit_changes_no_digit(hundredths: int) -> None:
    value = hundredths / 100
    assert milliseconds(f"{value}ms") == milliseconds(str(value)) == value
    assert seconds(f"{value}s") == value
    assert milliseconds(f"{value}s") == hundredths * 10


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [
        ("4M", COUNTS, 4e6),
        ("300 K", COUNTS, 3e5),
        ("1.5g", COUNTS, 1.5e9),
        ("8MiB", SIZES, 8 * 2**20),
        ("20mb", SIZES, 20e6),
        ("4096", SIZES, 4096.0),
    ],
)
def test_a_quantity_is_read_with_its_unit(text: str, units: dict[str, float], value: float) -> None:
    assert quantity(text, units) == value


@pytest.mark.parametrize(
    ("text", "units"), [("4MB", COUNTS), ("20M", SIZES), ("0", COUNTS), ("-1", SIZES), ("", SIZES)]
)
def test_what_is_no_quantity_is_refused(text: str, units: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        quantity(text, units)
