"""The part of a message about a task that every version of the wire contract keeps.

Any program can therefore answer a message that it does not understand, and its sender does not wait in vain.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleetnas.fleet_protocol.messages import MAX_ATTEMPTS, Identifier, TaskKey

_Word = Annotated[str, Field(max_length=64)]


class _Key(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    task_id: Identifier
    attempt: int = Field(ge=1, le=MAX_ATTEMPTS)


class Envelope(BaseModel):
    """The task that a message is about, and whether the message is an order or an update."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = Field(default=1, ge=1, le=10_000)
    op: _Word = Field(default="", description="of an order")
    kind: _Word = Field(default="", description="of an agent's update")
    task: _Key

    @property
    def key(self) -> TaskKey:
        """Identity of the attempt."""
        return TaskKey(task_id=self.task.task_id, attempt=self.task.attempt)


def read_envelope(payload: bytes) -> Envelope | None:
    """Return the envelope of a message of any version; None if `payload` has none."""
    try:
        return Envelope.model_validate_json(payload)
    except ValidationError:
        return None
