"""Deliver results: keep each in the outbox, send it, and send it again until the coordinator acknowledges it."""

from __future__ import annotations

import logging

from fleetnas.agent.service.connection import MAX_RESEND_S, RESEND_EVERY_S, Connection
from fleetnas.agent.service.outbox import Outbox
from fleetnas.fleet_protocol.errors import StoreError
from fleetnas.fleet_protocol.messages import TaskKey

#: Results kept for coordinators that have not come back; of more, the oldest are dropped.
OUTBOX_LIMIT = 1000
_UNSENT = (float("-inf"), 0.0)

_log = logging.getLogger("fleetnas.agent")


class ResultDelivery:
    """The results that no coordinator has acknowledged yet.

    If the disk does not take a result, it is kept in memory and sent like the others; only the end of the process
    loses it.
    """

    def __init__(self, outbox: Outbox, connection: Connection) -> None:
        self._outbox = outbox
        self._connection = connection
        self._in_memory: dict[TaskKey, bytes] = {}
        #: When each unacknowledged result was last sent, and how long to wait before the next time.
        self._sent: dict[TaskKey, tuple[float, float]] = dict.fromkeys((key for key, _ in outbox.pending()), _UNSENT)

    @property
    def unacknowledged(self) -> tuple[TaskKey, ...]:
        """Attempts whose results no coordinator has acknowledged."""
        return tuple(self._sent)

    def add(self, key: TaskKey, payload: bytes, now: float) -> None:
        """Keep an encoded result, then send it."""
        self._keep(key, payload)
        self._sent[key] = now, RESEND_EVERY_S
        self._connection.publish_encoded("task", payload)

    def find(self, key: TaskKey) -> bytes | None:
        """Return the encoded result of an attempt, acknowledged or not; None if there is none."""
        try:
            return self._in_memory.get(key) or self._outbox.find(key)
        except StoreError as error:
            _log.error("%s", error)
            return None

    def acknowledge(self, key: TaskKey) -> None:
        """Send this result no more."""
        self._in_memory.pop(key, None)
        self._sent.pop(key, None)
        try:
            self._outbox.acknowledge(key)
        except StoreError as error:
            _log.error("%s; the result of %s will be sent again, which does no harm", error, key.task_id)

    def send(self, key: TaskKey) -> bool:
        """Send the result of an attempt if there is one; return whether there is."""
        payload = self.find(key)
        if payload is not None:
            self._connection.publish_encoded("task", payload)
        return payload is not None

    def resend(self, now: float) -> None:
        """Send every unacknowledged result whose interval is over, and double its interval."""
        for key, (sent_at, wait_s) in list(self._sent.items()):
            if now - sent_at >= wait_s:
                self._sent[key] = now, min(max(RESEND_EVERY_S, 2 * wait_s), MAX_RESEND_S)
                self.send(key)

    def resend_all(self, now: float) -> None:
        """Send every unacknowledged result now, as after a connect."""
        self._sent = dict.fromkeys(self._sent, _UNSENT)
        self.resend(now)

    def _keep(self, key: TaskKey, payload: bytes) -> None:
        try:
            self._outbox.put(key, payload)
            for dropped in self._outbox.drop_oldest(OUTBOX_LIMIT) if len(self._sent) >= OUTBOX_LIMIT else ():
                self._sent.pop(dropped, None)
                _log.error(
                    "the result of %s is dropped: %d newer ones wait to be acknowledged", dropped.task_id, OUTBOX_LIMIT
                )
        except StoreError as error:
            _log.error("%s; the result of %s is kept in memory and sent from there", error, key.task_id)
            self._in_memory[key] = payload
