"""The coordinator's connection to its fleet: messages to and from agents, blobs, and whether the broker is there."""

from __future__ import annotations

from typing import Protocol

from fleetnas.coordinator.fleet.agent_link import AgentLink
from fleetnas.coordinator.fleet.blob_server import BlobServer
from fleetnas.fleet_protocol.messages import Inventory, TaskUpdate


class TaskGuest(Protocol):
    """Has tasks of its own on the campaign's connection."""

    def take(self, agent: str, update: TaskUpdate) -> bool:
        """Take an update; False where it is about a task of somebody else."""

    def reconcile(self, agent: str, held: Inventory) -> Inventory:
        """Compare an agent's inventory with its own tasks; returns the inventory without these."""


class FleetConnection:
    """Link and blob server of one coordinator, with the state of its connection to the broker."""

    def __init__(self, link: AgentLink, blobs: BlobServer) -> None:
        self.link = link
        self.blobs = blobs
        self._guest: TaskGuest | None = None
        self._is_open = False
        self._count = 0
        self._first_s: float | None = None

    @property
    def guest(self) -> TaskGuest | None:
        """Is asked about messages on tasks before the campaign; None: there is no such guest."""
        return self._guest

    def admit(self, guest: TaskGuest) -> None:
        """Take in a guest, in place of an earlier one."""
        self._guest = guest

    @property
    def is_open(self) -> bool:
        """Whether the broker is connected now."""
        return self._is_open

    @property
    def count(self) -> int:
        """Number of connections so far."""
        return self._count

    @property
    def first_s(self) -> float | None:
        """Time of the first connection, by the campaign's clock; None before it."""
        return self._first_s

    def opened(self, now_s: float) -> None:
        """Note that the broker is connected."""
        self._is_open = True
        self._count += 1
        if self._first_s is None:
            self._first_s = now_s

    def closed(self) -> bool:
        """Note that the connection is gone; returns whether it was there."""
        was_open, self._is_open = self._is_open, False
        return was_open
