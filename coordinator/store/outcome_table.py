"""Outcomes of measurements without their raw samples, for views that read many of them at once."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Row, select, type_coerce
from sqlalchemy.types import NullType

from fleetnas.coordinator.records.stored import OutcomeRecord, TaskRecord
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.row_reading import outcome_of_fields, readable, record_of_fields
from fleetnas.coordinator.store.schema import FailureRow, MeasurementRow, OutcomeRow, TaskRow
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.error_text import first_fault
from fleetnas.fleet_protocol.errors import StoreError
from fleetnas.fleet_protocol.messages import Measurement

#: Fields of a measurement that no view shows: they are most of its bytes.
_SAMPLES = ("times_us", "block_medians_ms", "levels_ms", "before")
_MEASURED = tuple(name for name in Measurement.model_fields if name not in _SAMPLES)
_TASK = tuple(field.name for field in fields(TaskRecord) if field.name not in ("architecture", "calibration"))


class OutcomeTable:
    """Reads outcomes several times as fast as `MeasurementStore.outcomes`, which returns everything that is stored."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Made once: making such a statement takes longer than running it.
        self._select = (
            select(
                OutcomeRow.outcome_id,
                OutcomeRow.attempt,
                OutcomeRow.stored_unix_s,
                type_coerce(TaskRow.architecture, NullType()),
                FailureRow.reason,
                FailureRow.detail,
                MeasurementRow.outcome_id,
                *(getattr(TaskRow, name) for name in _TASK),
                *(getattr(MeasurementRow, name) for name in _MEASURED),
            )
            .select_from(OutcomeRow)
            .join(TaskRow, TaskRow.task_id == OutcomeRow.task_id)
            .outerjoin(MeasurementRow, MeasurementRow.outcome_id == OutcomeRow.outcome_id)
            .outerjoin(FailureRow, FailureRow.outcome_id == OutcomeRow.outcome_id)
            .order_by(OutcomeRow.outcome_id)
        )

    def without_samples(self, run_id: str, after: int = 0) -> list[OutcomeRecord]:
        """Return every outcome of a run in the order of arrival, from the one after number `after` on.

        Measurements lack raw times, medians of blocks, levels of references and the conditions before them. One that
        cannot be read is left out with a line in the log.
        """
        wanted = self._select.where(TaskRow.run_id == run_id).where(OutcomeRow.outcome_id > after)
        with self._database.reading() as session:
            # By the connection: the session would look at each row as at one of objects.
            return list(readable(session.connection().execute(wanted), _outcome))


def _outcome(row: Row[Any]) -> OutcomeRecord:
    number, attempt, stored_unix_s, architecture, reason, detail, measurement, *rest = tuple(row)
    measured = None
    if measurement is not None:
        measured = {**dict(zip(_MEASURED, rest[len(_TASK) :], strict=True)), "times_us": ()}
    failure = None if reason is None else (reason, detail)
    try:
        task = {**dict(zip(_TASK, rest, strict=False)), "architecture": _architecture(architecture)}
        return outcome_of_fields(number, attempt, stored_unix_s, record_of_fields(TaskRecord, task), measured, failure)
    except ValidationError as error:
        raise StoreError(f"outcome {number} in the store is damaged: {first_fault(error)}"[:400]) from error


def _architecture(stored: object) -> Architecture:
    """Read an architecture as its driver returns it: SQLite's the text, PostgreSQL's what it says."""
    return _of_text(stored) if isinstance(stored, str) else Architecture.model_validate(stored)


@lru_cache(maxsize=16_384)
def _of_text(text: str) -> Architecture:
    """Read a text; cached, as devices of a fleet measure much the same subnets."""
    return Architecture.model_validate_json(text)
