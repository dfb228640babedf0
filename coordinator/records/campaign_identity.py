"""Names of a campaign and of its supernet."""

from __future__ import annotations

from dataclasses import dataclass

from fleetnas.fleet_protocol.messages import BlobReference


@dataclass(frozen=True)
class CampaignIdentity:
    """Names of a run and of the supernet that it searches."""

    run_id: str
    supernet: str
    bundle: BlobReference
    mirror: str | None = None
    """Where agents may fetch the bundle beside the broker."""
