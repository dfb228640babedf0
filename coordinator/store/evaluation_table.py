"""What model files answered to images, as the store keeps it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from sqlalchemy import select

from fleetnas.coordinator.records.stored import EvaluationRecord
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.row_reading import readable, record_of
from fleetnas.coordinator.store.schema import EvaluationRow
from fleetnas.coordinator.store.upsert import upsert

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
                session.connection().execute(self._put, [vars(evaluation) for evaluation in evaluations])

    def of_run(self, run_id: str) -> list[EvaluationRecord]:
        """Return the evaluations of a run, by file; one that cannot be read is left out with a line in the log."""
        with self._database.reading() as session:
            rows = session.scalars(
                select(EvaluationRow)
                .where(EvaluationRow.run_id == run_id)
                .order_by(EvaluationRow.fingerprint, EvaluationRow.runtime, EvaluationRow.precision, EvaluationRow.part)
            )
            found = list(readable(rows, partial(record_of, EvaluationRecord)))
        whole = [evaluation for evaluation in found if evaluation.class_answers.is_whole()]
        if len(whole) < len(found):
            _log.warning("%d evaluations of run %s are damaged; they are left out", len(found) - len(whole), run_id)
        return whole
