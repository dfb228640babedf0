"""What model files answered to images, as the store keeps it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from functools import partial

from sqlalchemy import ColumnElement, select

from fleetnas.coordinator.records.stored import EvaluationRecord
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.row_reading import readable, record_of
from fleetnas.coordinator.store.schema import EvaluationRow
from fleetnas.coordinator.store.upsert import upsert

#: Subnets of one query.
_PAGE = 500

_log = logging.getLogger("fleetnas.coordinator")


class EvaluationTable:
    """The evaluations of one store. Every method is one transaction, and may raise `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._put = upsert(database, EvaluationRow, "run_id", "fingerprint", "runtime", "precision", "part")

    def put(self, evaluations: Sequence[EvaluationRecord]) -> None:
        """Add or renew evaluations."""
        if evaluations:
            with self._database.writing() as session:
                self._put.execute(session.connection(), map(vars, evaluations))

    def of_run(self, run_id: str) -> list[EvaluationRecord]:
        """Return the evaluations of a run, by file; one that cannot be read is left out with a line in the log."""
        return self._read(EvaluationRow.run_id == run_id)

    def of_subnets(self, run_id: str, fingerprints: Collection[str]) -> list[EvaluationRecord]:
        """Return the evaluations of these subnets alone: a run evaluates many more candidates than it has winners."""
        wanted = sorted(set(fingerprints))
        return [
            evaluation
            for first in range(0, len(wanted), _PAGE)
            for evaluation in self._read(
                EvaluationRow.run_id == run_id, EvaluationRow.fingerprint.in_(wanted[first : first + _PAGE])
            )
        ]

    def _read(self, *conditions: ColumnElement[bool]) -> list[EvaluationRecord]:
        key = EvaluationRow.fingerprint, EvaluationRow.runtime, EvaluationRow.precision, EvaluationRow.part
        with self._database.reading() as session:
            rows = session.scalars(select(EvaluationRow).where(*conditions).order_by(*key))
            found = list(readable(rows, partial(record_of, EvaluationRecord)))
        whole = [evaluation for evaluation in found if evaluation.class_answers.is_whole()]
        if len(whole) < len(found):
            _log.warning("%d stored evaluations are damaged; they are left out", len(found) - len(whole))
        return whole
