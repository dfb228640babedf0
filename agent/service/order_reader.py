"""Decode and authenticate the coordinator's orders: tasks, cancellations, acknowledgements."""

from __future__ import annotations

from collections.abc import Callable

from fleetnas.fleet_protocol.codec import decode, decode_task
from fleetnas.fleet_protocol.envelope import read_envelope
from fleetnas.fleet_protocol.errors import ProtocolError, UntrustedError
from fleetnas.fleet_protocol.messages import Rejected, TaskKey
from fleetnas.fleet_protocol.orders import Acknowledgement, CancelTask, Task
from fleetnas.fleet_protocol.rate_limited_log import RateLimitedLog
from fleetnas.fleet_protocol.security.signing import OrderVerifier

_MAX_DETAIL = 500


class OrderReader:
    """Reads orders. Each refused order is logged and answered with `Rejected`, as often as the log's limit allows."""

    def __init__(
        self,
        verifier: OrderVerifier | None,
        log: RateLimitedLog,
        reject: Callable[[Rejected], None],
        is_known: Callable[[TaskKey], bool],
    ) -> None:
        """Without a `verifier`, every order is accepted. `is_known` tells whether the agent has a task already."""
        self._verifier = verifier
        self._log = log
        self._reject = reject
        self._is_known = is_known

    def read_task(self, payload: bytes) -> Task | None:
        """Return the task or cancellation in a payload; None if it was refused.

        Raises `UntrustedError` if the order is neither understood nor signed with a pinned key.
        """
        try:
            task = decode_task(payload)
        except ProtocolError as error:
            self._refuse_unreadable(payload, error)
            return None
        return task if self._is_trusted(task, payload) else None

    def read_acknowledgement(self, payload: bytes) -> Acknowledgement:
        """Return the acknowledgement in a payload; `ProtocolError` if it is none, or not signed with a pinned key."""
        acknowledgement = decode(Acknowledgement, payload)
        if self._verifier is not None:
            self._verifier.check("ack", payload)
        return acknowledgement

    def _refuse_unreadable(self, payload: bytes, error: ProtocolError) -> None:
        if self._verifier is not None:
            self._verifier.check("task", payload)
        envelope = read_envelope(payload)
        logged = self._log(f"task {envelope.key.task_id if envelope is not None else 'without a name'}: {error}")
        if logged and envelope is not None and envelope.op != "cancel":
            detail = str(error)[:_MAX_DETAIL]
            self._reject(Rejected(task=envelope.key, reason="not_understood", detail=detail))

    def _is_trusted(self, task: Task, payload: bytes) -> bool:
        """Tell whether a pinned coordinator gave this order."""
        if self._verifier is None:
            return True
        try:
            self._verifier.check("task", payload)
        except UntrustedError as error:
            logged = self._log(f"task {task.task.task_id}: {error}")
            known = self._is_known(task.task)
            # An honest coordinator without the key learns it. A task that is known came from the right coordinator.
            if logged and error.answerable and not isinstance(task, CancelTask) and not known:
                self._reject(Rejected(task=task.task, reason="not_trusted", detail=str(error)[:_MAX_DETAIL]))
            return False
        return True
