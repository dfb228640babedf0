"""The part of a protocol that each of several sessions gets. Loads no runtime: the agent's own process needs it too."""

from __future__ import annotations

import math

from fleetnas.fleet_protocol.messages import MeasurementProtocol


def session_share(protocol: MeasurementProtocol) -> MeasurementProtocol:
    """Return the part of a protocol for each of its sessions.

    Time, samples and blocks are divided among the sessions; each warms up on its own. The mean of n sessions is more
    certain than each of them by the square root of n.
    """
    n = protocol.sessions
    if n == 1:
        return protocol
    return protocol.model_copy(
        update={
            "sessions": 1,
            "min_runs": max(3, math.ceil(protocol.min_runs / n)),
            "min_s": protocol.min_s / n,
            "max_s": protocol.max_s / n,
            "blocks": math.ceil(protocol.blocks / n),
            "half_width_percent": protocol.half_width_percent * math.sqrt(n),
        }
    )
