"""Convert readings of kernel files to one unit; some vendors' drivers use another unit than the documentation.

Two units of one file differ by a factor of a thousand or a million, which no two real devices do: a processor has 65
and not 0.065 degrees, a clock 1.8 GHz and not 1.8 THz.
"""

from __future__ import annotations

#: No processor or battery that still computes is colder or warmer, degrees Celsius.
_COLDEST_C, _HOTTEST_C = -60.0, 200.0
#: From here on a reading cannot be in degrees, or in tenths of one.
_TOO_HOT_IN_DEGREES, _TOO_HOT_IN_TENTHS = 200.0, 2000.0


class Thermometer:
    """Converts one temperature file: thousandths of a degree, or whole degrees or tenths with some drivers.

    The largest reading so far determines the unit, so that a cold moment does not change it.
    """

    def __init__(self) -> None:
        self._largest = 0.0

    def celsius(self, reading: float) -> float | None:
        """Return the temperature, in degrees Celsius; None if no unit makes the reading plausible."""
        self._largest = max(self._largest, abs(reading))
        if self._largest > _TOO_HOT_IN_TENTHS:
            return plausible_celsius(reading / 1000)
        return plausible_celsius(reading / 10 if self._largest > _TOO_HOT_IN_DEGREES else reading)


def plausible_celsius(value: float) -> float | None:
    """Return the temperature; None if no device can have it, as drivers report for a sensor that is off or broken."""
    return value if _COLDEST_C <= value <= _HOTTEST_C else None


def battery_celsius(reading: float) -> float | None:
    """Convert a battery's temperature: tenths of a degree, or thousandths with some drivers."""
    return plausible_celsius(reading / 1000 if abs(reading) > _TOO_HOT_IN_TENTHS else reading / 10)


def clock_mhz(reading: float) -> float | None:
    """Convert a core's clock: kHz, or Hz or MHz with some drivers; None if it stands still."""
    if reading <= 0:
        return None
    if reading >= 2e7:  # 20 GHz in kHz
        return reading / 1e6
    return reading / 1000 if reading >= 1e4 else reading  # 10 MHz in kHz


def microvolts(reading: float) -> float:
    """Convert a battery's voltage: microvolts, or millivolts with some drivers."""
    return 1000 * reading if abs(reading) < 1e5 else reading  # 0.1 V in microvolts


def microamperes(reading: float) -> float:
    """Convert a battery's current under work: microamperes, or milliamperes with some phones' drivers."""
    return 1000 * reading if abs(reading) < 2e4 else reading  # 20 mA in microamperes: less than a sleeping phone


def percent(reading: float) -> float | None:
    """Return a battery's level in per cent; None if it is none."""
    return reading if 0 <= reading <= 100 else None
