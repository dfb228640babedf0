"""Continue the levels of reference subnets from one measuring child to the next."""

from __future__ import annotations

from collections.abc import Mapping

from fleetnas.agent.measuring.undisturbed import median

#: New readings below this factor of the old levels show that the old levels were read on a slowed device.
FASTER_RATIO = 0.92


def continued_levels(read_ms: Mapping[str, float], old_ms: Mapping[str, float]) -> dict[str, float]:
    """Return levels of new sessions, which read `read_ms`, on the scale of the levels before, by fingerprint.

    Sessions of one model differ, each by a factor of its own; the device's speed now is a factor that all share, and
    is taken out. If that factor shows that the device is much faster now, the old levels were read on a slowed
    device, and the new readings become the levels.
    """
    ratios = [read_ms[name] / old_ms[name] for name in read_ms.keys() & old_ms.keys()]
    common = median(ratios) if ratios else 1.0
    scale = common if common >= FASTER_RATIO else 1.0
    return {name: value / scale for name, value in read_ms.items()}
