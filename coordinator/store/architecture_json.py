"""Architectures as the bytes that the store keeps."""

from __future__ import annotations

from functools import lru_cache

from pydantic_core import to_json

from fleetnas.fleet_protocol.architecture import Architecture


@lru_cache(maxsize=4096)
def architecture_json(architecture: Architecture) -> bytes:
    """Return an architecture as JSON; cached, as devices of a fleet measure much the same subnets."""
    return to_json(architecture)
