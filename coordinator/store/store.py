"""The measurement store: every run, task, outcome and winner, through SQLAlchemy; SQLite unless told otherwise."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection, Row, delete, insert, inspect, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, contains_eager, joinedload

from fleetnas.coordinator.records.stored import (
    Arrival,
    DeviceRecord,
    DeviceStatus,
    LatencyRecord,
    Outcome,
    OutcomeRecord,
    RunRecord,
    RunStatus,
    TaskRecord,
    WinnerRecord,
)
from fleetnas.coordinator.store.database import Database, UnreadableJson
from fleetnas.coordinator.store.migration import bring_up_to_date
from fleetnas.coordinator.store.schema import (
    Base,
    DeviceRow,
    DistrustedRow,
    FailureRow,
    MeasurementRow,
    OutcomeRow,
    RunRow,
    TaskRow,
    WinnerRow,
)
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.device_profiles.quantities import LATENCY_RANGE_MS
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import StoreError, UsageError
from fleetnas.fleet_protocol.messages import AgentInfo, Failed, Measurement, RuntimeSetting, TaskKey

R = TypeVar("R")
T = TypeVar("T")
_log = logging.getLogger("fleetnas.coordinator")
_MEASUREMENT_FIELDS = tuple(Measurement.model_fields)
_LATENCY_FIELDS = tuple(LatencyRecord.__dataclass_fields__)
#: Measurements that are read at once where there may be very many.
_PAGE = 500

_log = logging.getLogger("fleetnas.coordinator")


class MeasurementStore:
    """One open store. Every method is one transaction that is on disk when it returns.

    Each may raise `StoreError`, of which `StoreUnavailableError` says that the same call may succeed later: the disk
    is full, the server is away.
    """

    def __init__(self, database: Database) -> None:
        """Of a database whose tables are up to date."""
        self._database = database
        self.url = database.name  #: for people: without a password
        self.in_memory = database.in_memory  #: known to the thread that opened it alone
        self.read_only = database.read_only  #: nothing can be added or changed
        # Made once: making such a statement takes longer than running it. Both databases spell it alike.
        insert_or = postgresql_insert if database.dialect == "postgresql" else sqlite_insert
        # The unique key decides, not a look before it: several coordinators may share a store.
        self._add_new_outcomes = (
            insert_or(OutcomeRow)
            .on_conflict_do_nothing(index_elements=["task_id", "attempt"])
            .returning(OutcomeRow.task_id, OutcomeRow.attempt, OutcomeRow.outcome_id)
        )

        def upsert(table: type[Base], *key: str) -> Any:
            rows = insert_or(table)
            renewed = {column.name: column for column in rows.excluded if column.name not in key}
            return rows.on_conflict_do_update(index_elements=list(key), set_=renewed)

        self._put_tasks = upsert(TaskRow, "task_id")
        self._put_devices = upsert(DeviceRow, "run_id", "device", "setting_label")
        self._put_winners = upsert(WinnerRow, "run_id", "device", "setting_label", "target_ms")

    @classmethod
    def open(cls, location: str | Path, *, to_read: bool = False) -> MeasurementStore:
        """Open a file's path, or a URL with `://` in it, and make or upgrade its tables.

        `to_read` also opens a file that cannot be written; it is then `read_only`, and left as it is.

        Raises:
            UsageError: it is no URL of a store.
            MissingDependencyError: the database's driver is not installed.
            StoreError: it cannot be used, or a newer fleetnas or another program wrote it.
        """
        database = Database(str(location), to_read=to_read)
        try:
            bring_up_to_date(database)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def close(self) -> None:
        """Give the file or the connections back."""
        self._database.close()

    def on_write(self, observe: Callable[[float], object]) -> None:
        """Have `observe` called with the seconds that each writing transaction takes."""
        self._database.on_write = observe

    # -- runs --------------------------------------------------------------------------------------------------

    def create_run(self, run: RunRecord) -> None:
        """Begin a run; `StoreError` where its id is taken."""
        with self._database.writing() as session:
            session.add(RunRow(**vars(run)))

    def claim_run(self, run_id: str) -> bool:
        """Work on a run alone until the store is closed, or the process ends however; False where another one does."""
        return self._database.claim(run_id)

    def set_run_status(self, run_id: str, status: RunStatus, finished_unix_s: float | None = None) -> None:
        """Say how a run stands."""
        with self._database.writing() as session:
            row = self._run(session, run_id)
            row.status, row.finished_unix_s = status, finished_unix_s

    def run(self, run_id: str) -> RunRecord:
        """The run called `run_id`; `UsageError` names the known ones where there is none."""
        with self._database.reading() as session:
            return cast(RunRecord, _record(RunRecord, self._run(session, run_id)))

    def runs(self) -> list[RunRecord]:
        """Every run, oldest first; one that cannot be read is left out with a line in the log."""
        with self._database.reading() as session:
            rows = session.scalars(select(RunRow).order_by(RunRow.created_unix_s, RunRow.run_id))
            return list(_readable(rows, partial(_record, RunRecord)))

    def run_ids(self) -> set[str]:
        """The ids of every run."""
        with self._database.reading() as session:
            return set(session.scalars(select(RunRow.run_id)))

    def _run(self, session: Session, run_id: str) -> RunRow:
        row = session.get(RunRow, run_id)
        if row is None:
            known = session.scalars(select(RunRow.run_id).order_by(RunRow.created_unix_s.desc()).limit(5)).all()
            there = f"the latest are {', '.join(known)}" if known else "it holds none"
            raise UsageError(f"the store {self.url} holds no run {run_id!r}; {there}")
        return row

    # -- device settings ---------------------------------------------------------------------------------------

    def put_device(self, device: DeviceRecord) -> None:
        """Add a device setting to its run, or renew what is known of it."""
        self.put_devices([device])

    def put_devices(self, devices: Sequence[DeviceRecord]) -> None:
        """Add or renew many device settings in one transaction."""
        rows = [
            {
                "run_id": device.run_id,
                "device": device.device,
                "setting_label": device.setting.label,
                "setting": device.setting.model_dump(mode="json"),
                "info": device.info.model_dump(mode="json"),
                "status": device.status,
                "reason": device.reason,
                "learning": [list(point) for point in device.learning],
                "wire_bytes": device.wire_bytes,
                "targets_ms": None if device.targets_ms is None else list(device.targets_ms),
                "targets_note": device.targets_note,
            }
            for device in devices
        ]
        if rows:
            with self._database.writing() as session:
                session.connection().execute(self._put_devices, rows)

    def devices(self, run_id: str) -> list[DeviceRecord]:
        """The device settings of a run, by name."""
        with self._database.reading() as session:
            rows = session.scalars(
                select(DeviceRow).where(DeviceRow.run_id == run_id).order_by(DeviceRow.device, DeviceRow.setting_label)
            )
            return [record for row in rows if (record := _device(row)) is not None]

    def known_devices(self) -> set[str]:
        """The names of all devices of all runs."""
        with self._database.reading() as session:
            return set(session.scalars(select(DeviceRow.device).distinct()))

    def distrusted(self) -> set[str]:
        """The names of devices whose measurements are to teach no other one."""
        with self._database.reading() as session:
            return set(session.scalars(select(DistrustedRow.device)))

    def distrust(self, devices: Collection[str], trust: Collection[str] = ()) -> None:
        """Let runs that begin from now on learn nothing from `devices`, and from `trust` again what was measured there.

        `UsageError` where the store holds no such device.
        """
        unknown = sorted({*devices, *trust} - self.known_devices())
        if unknown:
            raise UsageError(
                f"the store {self.url} holds no device {', '.join(unknown)}; see the names with `fleetnas results`, or "
                "give its store with --store"
            )
        with self._database.writing() as session:
            known = set(session.scalars(select(DistrustedRow.device)))
            session.add_all(DistrustedRow(device=device) for device in sorted(set(devices) - known))
            session.execute(delete(DistrustedRow).where(DistrustedRow.device.in_(trust)))

    # -- tasks and what came of them ---------------------------------------------------------------------------

    def put_task(self, task: TaskRecord) -> None:
        """Add a task, or renew its attempt count."""
        self.put_tasks([task])

    def put_tasks(self, tasks: Sequence[TaskRecord]) -> None:
        """Add or renew many tasks in one transaction."""
        if tasks:
            rows = [{**vars(task), "architecture": _architecture_fields(task.architecture)} for task in tasks]
            with self._database.writing() as session:
                session.connection().execute(self._put_tasks, rows)

    def task(self, task_id: str) -> TaskRecord | None:
        """One task, of whichever run."""
        with self._database.reading() as session:
            row = session.get(TaskRow, task_id)
            return _task(row) if row is not None else None

    def tasks(self, run_id: str) -> list[TaskRecord]:
        """Every task of a run, by id; one that cannot be read is left out with a line in the log."""
        with self._database.reading() as session:
            rows = session.scalars(select(TaskRow).where(TaskRow.run_id == run_id).order_by(TaskRow.task_id))
            return list(_readable(rows, _task))

    def add_outcome(self, key: TaskKey, outcome: Outcome, stored_unix_s: float) -> bool:
        """Store what an attempt brought; False where that attempt's outcome is stored already.

        `StoreError` where the task is unknown.
        """
        return self.add_outcomes([Arrival(key, outcome, stored_unix_s)])[0]

    def add_outcomes(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """Store what many attempts brought, in order of arrival, in one transaction: all may be acknowledged after it.

        Returns, for each, whether it is new: False where that attempt's outcome was stored already, or comes earlier
        in `arrivals`. `StoreError`, with nothing stored, where a task is unknown.
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
        """Insert what is not there yet; returns the row number of each new outcome."""
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
                measurements.append({"outcome_id": number, **outcome.model_dump(mode="json")})
        if measurements:
            connection.execute(insert(MeasurementRow), measurements)
        if failures:
            connection.execute(insert(FailureRow), failures)
        return numbers

    def _refuse_unknown_tasks(self, task_ids: set[str]) -> None:
        with self._database.reading() as session:
            known = set(session.scalars(select(TaskRow.task_id).where(TaskRow.task_id.in_(task_ids))))
        unknown = sorted(task_ids - known)
        if unknown:
            raise StoreError(f"task {unknown[0]} is in no run of the store {self.url}; its result is not stored")

    def outcomes(self, run_id: str, after: int = 0) -> list[OutcomeRecord]:
        """Every outcome of a run in the order of arrival, from the one after number `after` on.

        One that cannot be read is left out with a line in the log.
        """
        with self._database.reading() as session:
            rows = session.scalars(
                select(OutcomeRow)
                .join(OutcomeRow.task)
                .where(TaskRow.run_id == run_id)
                .where(OutcomeRow.outcome_id > after)
                .options(
                    joinedload(OutcomeRow.task), joinedload(OutcomeRow.measurement), joinedload(OutcomeRow.failure)
                )
                .order_by(OutcomeRow.outcome_id)
            )
            return list(_readable(rows, _outcome))

    def measurements(self, run_ids: Sequence[str], devices: Sequence[str] = ()) -> Iterator[OutcomeRecord]:
        """Measurements of these runs, and of these devices if any are given, in the order of arrival.

        They come page by page, each page a transaction of its own: a long history fits into little memory, and nobody
        who writes waits for its reader.
        """
        wanted = (
            select(OutcomeRow)
            .join(OutcomeRow.task)
            .join(OutcomeRow.measurement)
            .where(TaskRow.run_id.in_(run_ids))
            .options(contains_eager(OutcomeRow.task), contains_eager(OutcomeRow.measurement))
            .order_by(OutcomeRow.outcome_id)
            .limit(_PAGE)
        )
        if devices:
            wanted = wanted.where(TaskRow.device.in_(devices))
        last = 0
        while True:
            with self._database.reading() as session:
                rows = session.scalars(wanted.where(OutcomeRow.outcome_id > last)).all()
                page = list(_readable(rows, _outcome))
                last = rows[-1].outcome_id if rows else last
            for found in page:
                if found.refused:
                    _log.warning("the result of task %s is skipped: %s", found.key.task_id, found.refused)
                else:
                    yield found
            if len(rows) < _PAGE:
                return

    def latencies(self, run_id: str, before_unix_s: float) -> list[LatencyRecord]:
        """Every latency at undisturbed speed of a run that was stored before then, in the order of arrival."""
        with self._database.reading() as session:
            rows = session.execute(
                select(
                    TaskRow.device,
                    TaskRow.setting_label,
                    TaskRow.architecture,
                    MeasurementRow.undisturbed_ms,
                )
                .join(OutcomeRow, OutcomeRow.task_id == TaskRow.task_id)
                .join(MeasurementRow, MeasurementRow.outcome_id == OutcomeRow.outcome_id)
                .where(TaskRow.run_id == run_id)
                .where(OutcomeRow.stored_unix_s < before_unix_s)
                .where(MeasurementRow.undisturbed_ms.is_not(None))
                .order_by(OutcomeRow.outcome_id)
            )
            least_ms, most_ms = LATENCY_RANGE_MS  # others are from before the bounds that hold now
            return [found for found in _readable(rows, _latency) if least_ms <= found.latency_ms <= most_ms]

    # -- winners -----------------------------------------------------------------------------------------------

    def put_winner(self, winner: WinnerRecord) -> None:
        """Say what became of a target."""
        self.put_winners([winner])

    def put_winners(self, winners: Sequence[WinnerRecord]) -> None:
        """Say what became of many targets, in one transaction."""
        if winners:
            with self._database.writing() as session:
                session.connection().execute(self._put_winners, [dict(vars(winner)) for winner in winners])

    def winners(self, run_id: str) -> list[WinnerRecord]:
        """What became of a run's targets, by device setting and target.

        What cannot be read is left out with a line in the log.
        """
        with self._database.reading() as session:
            rows = session.scalars(
                select(WinnerRow)
                .where(WinnerRow.run_id == run_id)
                .order_by(WinnerRow.device, WinnerRow.setting_label, WinnerRow.target_ms)
            )
            return list(_readable(rows, partial(_record, WinnerRecord)))


def _readable(rows: Iterable[R], read: Callable[[R], T]) -> Iterator[T]:
    """Each row as `read` has it; one that a disk or a person damaged costs itself and a line."""
    for row in rows:
        try:
            yield read(row)
        except (StoreError, ValidationError) as error:  # noqa: PERF203 - each row for itself is the point
            reason = str(error) if isinstance(error, StoreError) else _damage(row, error)
            _log.warning("%s; it is left out", reason)


def _damage(row: object, error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    found = first["input"]
    why = f"no JSON ({found.reason})" if isinstance(found, UnreadableJson) else first["msg"]
    where = ".".join(map(str, first["loc"])) or "it"
    key = ""
    if isinstance(row, Base):
        key = f"row {', '.join(map(str, inspect(row).identity or ()))} of {row.__tablename__} in "
    return f"{key}the store is damaged: {where}: {why}"[:400]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _record(kind: Any, row: Base) -> Any:
    """A dataclass of `records` from its row; `StoreError` where a column holds something else than it should."""
    try:
        return _adapter(kind).validate_python({name: getattr(row, name) for name in kind.__dataclass_fields__})
    except ValidationError as error:
        raise StoreError(_damage(row, error)) from error


@lru_cache(maxsize=4096)
def _architecture_fields(architecture: Architecture) -> dict[str, Any]:
    """As JSON; a fleet's devices measure much the same subnets."""
    return architecture.model_dump(mode="json")


def _task(row: TaskRow) -> TaskRecord:
    return cast(TaskRecord, _record(TaskRecord, row))


def _latency(row: Row[Any]) -> LatencyRecord:
    return cast(LatencyRecord, _adapter(LatencyRecord).validate_python(dict(zip(_LATENCY_FIELDS, row, strict=True))))


def _outcome(row: OutcomeRow) -> OutcomeRecord:
    key = TaskKey(task_id=row.task_id, attempt=row.attempt)
    outcome: Outcome
    refused = ""
    if row.measurement is not None:
        try:
            outcome = Measurement.model_validate({name: getattr(row.measurement, name) for name in _MEASUREMENT_FIELDS})
        except ValidationError as error:  # from before the bounds that hold now
            refused = _fault(error)
            detail = f"the stored measurement cannot be used: {refused}"[:500]
            outcome = Failed(task=key, reason="bad_output", detail=detail)
    elif row.failure is not None:
        outcome = Failed.model_validate({"task": key, "reason": row.failure.reason, "detail": row.failure.detail})
    else:
        raise StoreError(f"outcome {row.outcome_id} of task {row.task_id} is neither a measurement nor a failure")
    return OutcomeRecord(_task(row.task), key, outcome, row.stored_unix_s, row.outcome_id, refused)


def _device(row: DeviceRow) -> DeviceRecord | None:
    """None, with a line in the log, where not even the setting can be read."""
    try:
        setting = RuntimeSetting.model_validate(row.setting)
    except ValidationError as error:
        _log.warning("device setting %s/%s is skipped: %s", row.device, row.setting_label, _fault(error))
        return None
    return DeviceRecord(
        run_id=row.run_id,
        device=row.device,
        setting=setting,
        info=_info(row, setting),
        status=cast(DeviceStatus, row.status),
        reason=row.reason,
        learning=tuple((n, mape, rank, held) for n, mape, rank, held in row.learning if _is_finite(mape)),
        wire_bytes=row.wire_bytes,
        targets_ms=None if row.targets_ms is None else tuple(ms for ms in row.targets_ms if _is_finite(ms)),
        targets_note=row.targets_note or "",
    )


def _info(row: DeviceRow, setting: RuntimeSetting) -> AgentInfo:
    try:
        return AgentInfo.model_validate(row.info)
    except ValidationError as error:  # from before the bounds that hold now: its measurements count without it
        _log.warning("the stored profile of %s is skipped: %s", row.device, _fault(error))
        profile = DeviceProfile(model="unknown", machine="unknown", cores=1)
        return AgentInfo(agent=row.device, session=0, profile=profile, settings=(setting,), versions={})


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}"
