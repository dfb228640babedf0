"""Stores outcomes of tasks, each attempt once, whichever coordinator brings it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import IntegrityError

from fleetnas.coordinator.records.stored import Arrival
from fleetnas.coordinator.store.bulk_insert import BulkInsert
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.schema import FailureRow, MeasurementRow, OutcomeRow, TaskRow
from fleetnas.fleet_protocol.errors import StoreError
from fleetnas.fleet_protocol.messages import Failed


class OutcomeWriter:
    """Writes the outcomes of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Made once: making such a statement takes longer than running it. Both databases spell it alike.
        insert_or = postgresql_insert if database.dialect == "postgresql" else sqlite_insert
        # The unique key decides, not a look before it: several coordinators may share a store.
        self._add_new_outcomes = (
            insert_or(OutcomeRow)
            .on_conflict_do_nothing(index_elements=["task_id", "attempt"])
            .returning(OutcomeRow.task_id, OutcomeRow.attempt, OutcomeRow.outcome_id)
        )
        self._add_measurements = BulkInsert(database, insert(MeasurementRow))

    def add(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """Store outcomes in order of arrival, in one transaction.

        Returns for each whether it is new: False where that attempt's outcome was stored already, or comes earlier in
        `arrivals`. `StoreError`, with nothing stored, where a task is unknown.
        """
        first: dict[tuple[str, int], Arrival] = {}
        for arrival in arrivals:
            first.setdefault((arrival.key.task_id, arrival.key.attempt), arrival)
        if not first:
            return []
        try:
            with self._database.writing() as session:
                numbers = self._add_new(session.connection(), first)
        except StoreError as error:
            if isinstance(error.__cause__, IntegrityError):
                self._refuse_unknown_tasks({task_id for task_id, _ in first})
            raise
        return [
            key in numbers and first[key] is arrival
            for arrival in arrivals
            for key in [(arrival.key.task_id, arrival.key.attempt)]
        ]

    def _add_new(self, connection: Connection, first: dict[tuple[str, int], Arrival]) -> dict[tuple[str, int], int]:
        """Insert the outcomes that are not there yet; returns the row number of each."""
        rows = [
            {"task_id": task_id, "attempt": attempt, "stored_unix_s": arrival.stored_unix_s}
            for (task_id, attempt), arrival in first.items()
        ]
        numbers = {
            (task_id, attempt): number for task_id, attempt, number in connection.execute(self._add_new_outcomes, rows)
        }
        measurements, failures = [], []
        for key, number in numbers.items():
            outcome = first[key].outcome
            if isinstance(outcome, Failed):
                failures.append({"outcome_id": number, "reason": outcome.reason, "detail": outcome.detail})
            else:
                measurements.append({"outcome_id": number, **vars(outcome)})
        self._add_measurements.execute(connection, measurements)
        if failures:
            connection.execute(insert(FailureRow), failures)
        return numbers

    def _refuse_unknown_tasks(self, task_ids: set[str]) -> None:
        with self._database.reading() as session:
            known = set(session.scalars(select(TaskRow.task_id).where(TaskRow.task_id.in_(task_ids))))
        unknown = sorted(task_ids - known)
        if unknown:
            raise StoreError(
                f"task {unknown[0]} is in no run of the store {self._database.name}; its result is not stored"
            )
