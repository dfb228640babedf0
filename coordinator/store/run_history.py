"""Which tasks runs had, and when their outcomes were stored, without what they measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from sqlalchemy import select

from fleetnas.coordinator.records.budget import Purpose
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.schema import OutcomeRow, TaskRow


@dataclass(frozen=True)
class StoredMoment:
    """The arrival of one outcome."""

    device: str
    setting_label: str
    purpose: Purpose
    target_ms: float | None
    stored_unix_s: float
    target: str = ""
    """Text of a target of another kind than latency."""


class RunHistory:
    """Tasks of a store, and the times of their outcomes. Every method is one transaction; it may raise `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def task_ids(self, run_id: str) -> frozenset[str]:
        """Return the ids of all tasks of a run."""
        with self._database.reading() as session:
            return frozenset(session.scalars(select(TaskRow.task_id).where(TaskRow.run_id == run_id)))

    def moments(self, run_id: str) -> list[StoredMoment]:
        """Return the arrivals of a run's outcomes in their order, failed ones included."""
        with self._database.reading() as session:
            rows = session.execute(
                select(
                    TaskRow.device,
                    TaskRow.setting_label,
                    TaskRow.purpose,
                    TaskRow.target_ms,
                    OutcomeRow.stored_unix_s,
                    TaskRow.target,
                )
                .join(OutcomeRow, OutcomeRow.task_id == TaskRow.task_id)
                .where(TaskRow.run_id == run_id)
                .order_by(OutcomeRow.outcome_id)
            )
            return [
                StoredMoment(device, label, cast(Purpose, purpose), target_ms, stored_s, target)
                for device, label, purpose, target_ms, stored_s, target in rows
            ]
