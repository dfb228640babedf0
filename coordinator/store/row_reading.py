"""Reads rows as records. A row that a disk or a person damaged costs itself and a line in the log."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Row, inspect

from fleetnas.coordinator.records.board_place import BoardPlace
from fleetnas.coordinator.records.predictor_error import PredictorError, PredictorPoint
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.records.stored import (
    DeviceRecord,
    LatencyRecord,
    Outcome,
    OutcomeRecord,
    TaskRecord,
    WinnerRecord,
)
from fleetnas.coordinator.records.target_kinds import Target
from fleetnas.coordinator.store.database import UnreadableJson
from fleetnas.coordinator.store.schema import Base, DeviceRow, OutcomeRow, TaskRow, WinnerRow
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.error_text import fault_path, first_fault
from fleetnas.fleet_protocol.errors import StoreError, UsageError
from fleetnas.fleet_protocol.messages import AgentInfo, Failed, Measurement, RuntimeSetting, TaskKey

R = TypeVar("R")
T = TypeVar("T")
_MEASUREMENT_FIELDS = tuple(Measurement.model_fields)
_LATENCY_FIELDS = tuple(LatencyRecord.__dataclass_fields__)

_log = logging.getLogger("fleetnas.coordinator")


def readable(rows: Iterable[R], read: Callable[[R], T]) -> Iterator[T]:
    """Yield `read` of each row; a row that cannot be read is left out with a line in the log."""
    for row in rows:
        try:
            yield read(row)
        except (StoreError, ValidationError) as error:  # noqa: PERF203 - each row for itself is the point
            reason = str(error) if isinstance(error, StoreError) else _damage(row, error)
            _log.warning("%s; it is left out", reason)


def record_of(kind: type[T], row: Base) -> T:
    """Read a row whose columns are the fields of `kind`, a dataclass; `StoreError` names a damaged column."""
    try:
        fields = {name: getattr(row, name) for name in kind.__dataclass_fields__}  # type: ignore[attr-defined]
        return record_of_fields(kind, fields)
    except ValidationError as error:
        raise StoreError(_damage(row, error)) from error


def record_of_fields(kind: type[T], fields: Mapping[str, Any]) -> T:
    """Make a record of `kind`, a dataclass, from stored values; `pydantic.ValidationError` where one is damaged."""
    return cast(T, _adapter(cast(Any, kind)).validate_python(fields))


def task_of(row: TaskRow) -> TaskRecord:
    """Read a task; `StoreError` names a damaged column."""
    return record_of(TaskRecord, row)


def winner_of(row: WinnerRow) -> WinnerRecord:
    """Read a decided target; `StoreError` names a damaged column."""
    found = record_of(WinnerRecord, row)
    return replace(found, target_ms=None) if found.target_ms == 0 else found


def latency_of(row: Row[Any]) -> LatencyRecord:
    """Read the four columns of a latency; `pydantic.ValidationError` where one is damaged."""
    return cast(LatencyRecord, _adapter(LatencyRecord).validate_python(dict(zip(_LATENCY_FIELDS, row, strict=True))))


def outcome_of(row: OutcomeRow) -> OutcomeRecord:
    """Read an outcome with its task; a measurement beyond today's bounds becomes a refused failure.

    Raises:
        StoreError: a column is damaged, or the outcome is neither a measurement nor a failure.
        pydantic.ValidationError: the failure is damaged.
    """
    measured = None
    if row.measurement is not None:
        measured = {name: getattr(row.measurement, name) for name in _MEASUREMENT_FIELDS}
    failure = None if row.failure is None else (row.failure.reason, row.failure.detail)
    return outcome_of_fields(row.outcome_id, row.attempt, row.stored_unix_s, task_of(row.task), measured, failure)


def outcome_of_fields(
    number: int,
    attempt: int,
    stored_unix_s: float,
    task: TaskRecord,
    measured: Mapping[str, Any] | None,
    failure: tuple[str, str] | None,
) -> OutcomeRecord:
    """Make the outcome of an attempt from the fields of its measurement, or from reason and detail of its failure.

    A measurement beyond today's bounds becomes a refused failure.

    Raises:
        StoreError: it is neither a measurement nor a failure.
        pydantic.ValidationError: the failure is damaged.
    """
    key = TaskKey(task_id=task.task_id, attempt=attempt)
    outcome: Outcome
    refused = ""
    if measured is not None:
        try:
            outcome = Measurement.model_validate(measured)
        except ValidationError as error:
            refused = first_fault(error)
            detail = f"the stored measurement cannot be used: {refused}"[:500]
            outcome = Failed(task=key, reason="bad_output", detail=detail)
    elif failure is not None:
        outcome = Failed.model_validate({"task": key, "reason": failure[0], "detail": failure[1]})
    else:
        raise StoreError(f"outcome {number} of task {task.task_id} is neither a measurement nor a failure")
    return OutcomeRecord(task, key, outcome, stored_unix_s, number, refused)


def device_of(row: DeviceRow) -> DeviceRecord | None:
    """Read a device setting; None, with a line in the log, where not even its runtime setting can be read."""
    try:
        setting = RuntimeSetting.model_validate(row.setting)
    except ValidationError as error:
        _log.warning("device setting %s/%s is skipped: %s", row.device, row.setting_label, first_fault(error))
        return None
    status, reason = _status(row)
    return DeviceRecord(
        run_id=row.run_id,
        device=row.device,
        setting=setting,
        info=_info(row, setting),
        status=status,
        reason=reason,
        learning=tuple(
            # Earlier versions stored no transfer weight.
            PredictorPoint(measurements, PredictorError(mape_percent, spearman, held_out, *transfer_weight))
            for measurements, mape_percent, spearman, held_out, *transfer_weight in row.learning
            if _is_finite(mape_percent)
        ),
        wire_bytes=row.wire_bytes,
        targets_ms=None if row.targets_ms is None else tuple(ms for ms in row.targets_ms if _is_finite(ms)),
        targets_note=row.targets_note or "",
        targets=None if row.targets is None else tuple(filter(_is_target, row.targets)),
        board=_board(row),
    )


def _board(row: DeviceRow) -> BoardPlace | None:
    """Read the place of a board in its class; None where it has none, or it is damaged."""
    if row.board is None:
        return None
    try:
        place: BoardPlace = _adapter(BoardPlace).validate_python(row.board)
        return place
    except ValidationError as error:
        _log.warning("the class of %s/%s is skipped: %s", row.device, row.setting_label, first_fault(error))
        return None


def _status(row: DeviceRow) -> tuple[SettingStatus, str]:
    try:
        return SettingStatus(row.status), row.reason
    except ValueError:
        _log.warning("the stored status of %s/%s is damaged: %.40r", row.device, row.setting_label, row.status)
        return SettingStatus.FAILED, "its stored status is damaged"


def _info(row: DeviceRow, setting: RuntimeSetting) -> AgentInfo:
    """Read the profile of a device; one from before today's bounds is replaced, so that its measurements count."""
    try:
        return AgentInfo.model_validate(row.info)
    except ValidationError as error:
        _log.warning("the stored profile of %s is skipped: %s", row.device, first_fault(error))
        profile = DeviceProfile(model="unknown", machine="unknown", cores=1)
        return AgentInfo(agent=row.device, session=0, profile=profile, settings=(setting,), versions={})


def _damage(row: object, error: ValidationError) -> str:
    """Name the row and the column that is damaged."""
    found = error.errors(include_url=False)[0]["input"]
    fault = first_fault(error)
    if isinstance(found, UnreadableJson):
        fault = f"{fault_path(error)}: no JSON ({found.reason})"
    key = ""
    if isinstance(row, Base):
        key = f"row {', '.join(map(str, inspect(row).identity or ()))} of {row.__tablename__} in "
    return f"{key}the store is damaged: {fault}"[:400]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _is_target(text: object) -> bool:
    try:
        return isinstance(text, str) and bool(Target.parse(text))
    except UsageError:
        _log.warning("a stored target is damaged: %.40r", text)
        return False


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
