"""Runs by the names that users give them: found, renamed, deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sqlalchemy import ColumnElement, Table, delete, func, select, update
from sqlalchemy.orm import Session

from fleetnas.coordinator.records.run_names import check_run_name, find_run
from fleetnas.coordinator.records.stored import RunRecord
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.row_reading import readable, record_of
from fleetnas.coordinator.store.schema import Base, DeviceRow, MeasurementRow, OutcomeRow, RunRow, TaskRow, WinnerRow
from fleetnas.fleet_protocol.errors import UsageError


@dataclass(frozen=True)
class RunContent:
    """Number of stored values of one run, which deleting it loses."""

    settings: int
    measurements: int
    winners: int


class RunTable:
    """The runs of one store. Every method is one transaction, and may raise `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, text: str, fits: Callable[[RunRecord], bool] = lambda run: True) -> RunRecord:
        """Return the run that a user names: by id, name, `latest`, or a beginning that only one run has.

        Args:
            text: as the user gave it.
            fits: `latest` is the newest run that this is true of.

        Raises:
            UsageError: no run or several runs are meant.
            StoreError: the run of this id cannot be read.
        """
        with self._database.reading() as session:
            exact = session.get(RunRow, text)
            if exact is not None:
                return record_of(RunRecord, exact)
            rows = session.scalars(select(RunRow).order_by(RunRow.created_unix_s, RunRow.run_id))
            return find_run(list(readable(rows, partial(record_of, RunRecord))), text, self._database.name, fits)

    def check_free(self, name: str, run_id: str = "") -> None:
        """Check a name for the run `run_id`, or for a new one; `UsageError` where it cannot be used or is taken."""
        check_run_name(name)
        with self._database.reading() as session:
            self._check_free(session, name, run_id)

    def rename(self, run_id: str, name: str | None) -> None:
        """Give a run another name, or none; `UsageError` where another run has it."""
        if name is not None:
            check_run_name(name)
        with self._database.writing() as session:
            if name is not None:
                self._check_free(session, name, run_id)
            session.execute(update(RunRow).where(RunRow.run_id == run_id).values(name=name))

    def content(self, run_id: str) -> RunContent:
        """Count the stored values of a run."""
        outcomes = select(OutcomeRow.outcome_id).join(TaskRow, TaskRow.task_id == OutcomeRow.task_id)
        of_run = outcomes.where(TaskRow.run_id == run_id)
        with self._database.reading() as session:
            return RunContent(
                _count(session, DeviceRow.run_id == run_id),
                _count(session, MeasurementRow.outcome_id.in_(of_run)),
                _count(session, WinnerRow.run_id == run_id),
            )

    def claim_to_delete(self, run_id: str) -> None:
        """Claim a run; `UsageError` where another coordinator works on it."""
        if not self._database.claim(run_id):
            raise UsageError(f"another coordinator works on run {run_id}; end that one first, and delete the run then")

    def delete(self, run_id: str) -> None:
        """Delete a run with all its rows in all tables; `UsageError` where another coordinator works on it."""
        self.claim_to_delete(run_id)
        with self._database.writing() as session:
            # From the tables that refer to others to those that are referred to.
            for table in reversed(Base.metadata.sorted_tables):
                condition = _of_run(table, run_id)
                if condition is not None:
                    session.execute(delete(table).where(condition))

    @staticmethod
    def _check_free(session: Session, name: str, run_id: str) -> None:
        other = session.scalars(select(RunRow.run_id).where(RunRow.name == name).where(RunRow.run_id != run_id)).first()
        if other is not None:
            raise UsageError(
                f"run {other} has the name {name!r} already; choose another name, or rename that run: "
                f"fleetnas runs rename {other} NAME"
            )


def _of_run(table: Table, run_id: str) -> ColumnElement[bool] | None:
    """Return the condition that selects a run's rows of a table; None where its rows are of no run."""
    if "run_id" in table.c:
        return table.c.run_id == run_id
    for key in table.foreign_keys:
        parent = _of_run(key.column.table, run_id)
        if parent is not None:
            return key.parent.in_(select(key.column).where(parent))
    return None


def _count(session: Session, condition: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).where(condition)) or 0
