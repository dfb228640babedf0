"""Defaults of the delivery of bundles through the broker."""

from __future__ import annotations

#: Rate to all agents together; a bundle of 30 MB then takes two seconds and the broker keeps room for messages.
DEFAULT_RATE_BYTES_PER_S = 16_000_000
#: Agents that are sent a bundle at the same time. One asks for half a megabyte ahead: these fill any line.
DEFAULT_AT_ONCE = 16
