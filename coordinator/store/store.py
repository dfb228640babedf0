"""The measurement store: every run, task, outcome and winner, through SQLAlchemy; SQLite by default."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pydantic_core import to_json
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session, contains_eager, joinedload

from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.coordinator.records.stored import (
    Arrival,
    DeviceRecord,
    LatencyRecord,
    Outcome,
    OutcomeRecord,
    RunRecord,
    TaskRecord,
    WinnerRecord,
)
from fleetnas.coordinator.store.architecture_json import architecture_json
from fleetnas.coordinator.store.baseline_table import BaselineTable
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.evaluation_table import EvaluationTable
from fleetnas.coordinator.store.migration import bring_up_to_date
from fleetnas.coordinator.store.outcome_table import OutcomeTable
from fleetnas.coordinator.store.outcome_writer import OutcomeWriter
from fleetnas.coordinator.store.row_reading import (
    device_of,
    latency_of,
    outcome_of,
    readable,
    record_of,
    task_of,
    winner_of,
)
from fleetnas.coordinator.store.run_history import RunHistory
from fleetnas.coordinator.store.run_overview import RunOverview
from fleetnas.coordinator.store.run_table import RunTable
from fleetnas.coordinator.store.schema import (
    DeviceRow,
    DistrustedRow,
    MeasurementRow,
    OutcomeRow,
    RunRow,
    TaskRow,
    WinnerRow,
)
from fleetnas.coordinator.store.upsert import upsert
from fleetnas.device_profiles.quantities import LATENCY_RANGE_MS
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import TaskKey
from fleetnas.fleet_protocol.suggestions import did_you_mean

#: Measurements that are read at once where there may be very many.
_PAGE = 500

_log = logging.getLogger("fleetnas.coordinator")
#: Key of a decided target, in the order in which they are returned; it begins with that of its device setting.
_WINNER_KEY = ("run_id", "device", "setting_label", "target_ms", "subnet", "target")


class MeasurementStore:
    """One open store. Every method is one transaction that is on disk when it returns.

    Each may raise `StoreError`, of which `StoreUnavailableError` says that the same call may succeed later.
    """

    def __init__(self, database: Database) -> None:
        """Take a database whose tables are up to date."""
        self._database = database
        self.url = database.name  #: for people: without a password
        self.in_memory = database.in_memory  #: known to the thread that opened it alone
        self.read_only = database.read_only  #: nothing can be added or changed
        self._outcome_writer = OutcomeWriter(database)
        self._put_tasks = upsert(database, TaskRow, "task_id")  # made once, which takes longer than running it
        self.evaluations = EvaluationTable(database)
        self.baselines = BaselineTable(database)
        self.outcome_table, self.overview = OutcomeTable(database), RunOverview(database)
        self.history, self.named_runs = RunHistory(database), RunTable(database)
        self._put_devices = upsert(database, DeviceRow, *_WINNER_KEY[:3])
        self._put_winners = upsert(database, WinnerRow, *_WINNER_KEY)

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
        """Close the file or the connections."""
        self._database.close()

    def observe_writes(self, observe: Callable[[float], object]) -> None:
        """Call `observe` with the duration of each writing transaction, in seconds."""
        self._database.observe_writes(observe)

    # -- runs --------------------------------------------------------------------------------------------------

    def create_run(self, run: RunRecord) -> None:
        """Add a run; `StoreError` where its id is taken."""
        with self._database.writing() as session:
            session.add(RunRow(**{**vars(run), "status": str(run.status)}))

    def claim_run(self, run_id: str) -> bool:
        """Claim a run until the store is closed or the process ends; False where another coordinator works on it."""
        return self._database.claim(run_id)

    def set_run_status(self, run_id: str, status: RunStatus, finished_unix_s: float | None = None) -> None:
        """Change the status of a run; `UsageError` where there is none of that id."""
        with self._database.writing() as session:
            self._run(session, run_id)
            changed = {"status": str(status), "finished_unix_s": finished_unix_s}
            session.execute(update(RunRow).where(RunRow.run_id == run_id).values(changed))

    def run(self, run_id: str) -> RunRecord:
        """Return the run of this id; `UsageError` names the latest ones where there is none."""
        with self._database.reading() as session:
            return record_of(RunRecord, self._run(session, run_id))

    def runs(self) -> list[RunRecord]:
        """Return every run, oldest first; one that cannot be read is left out with a line in the log."""
        with self._database.reading() as session:
            rows = session.scalars(select(RunRow).order_by(RunRow.created_unix_s, RunRow.run_id))
            return list(readable(rows, partial(record_of, RunRecord)))

    def run_ids(self) -> set[str]:
        """Return the ids of all runs."""
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

    def put_devices(self, devices: Sequence[DeviceRecord]) -> None:
        """Add device settings to their runs, or renew what is known of them, in one transaction."""
        rows = [
            {
                "run_id": device.run_id,
                "device": device.device,
                "setting_label": device.setting.label,
                "setting": to_json(device.setting),
                "info": to_json(device.info),
                "status": str(device.status),
                "reason": device.reason,
                "learning": [point.row() for point in device.learning],
                "wire_bytes": device.wire_bytes,
                "targets_ms": None if device.targets_ms is None else list(device.targets_ms),
                "targets_note": device.targets_note,
                "targets": None if device.targets is None else list(device.targets),
                "board": None if device.board is None else asdict(device.board),
            }
            for device in devices
        ]
        if rows:
            with self._database.writing() as session:
                self._put_devices.execute(session.connection(), rows)

    def devices(self, run_id: str) -> list[DeviceRecord]:
        """Return the device settings of a run, by name."""
        with self._database.reading() as session:
            rows = session.scalars(
                select(DeviceRow).where(DeviceRow.run_id == run_id).order_by(DeviceRow.device, DeviceRow.setting_label)
            )
            return [record for row in rows if (record := device_of(row)) is not None]

    def known_devices(self) -> set[str]:
        """Return the names of all devices of all runs."""
        with self._database.reading() as session:
            return set(session.scalars(select(DeviceRow.device).distinct()))

    def distrusted(self) -> set[str]:
        """Return the names of the devices that no prior is to be learned from."""
        with self._database.reading() as session:
            return set(session.scalars(select(DistrustedRow.device)))

    def distrust(self, devices: Collection[str], trust: Collection[str] = ()) -> None:
        """Learn no priors of later runs from `devices`, and learn from `trust` again.

        `UsageError` where the store holds no such device.
        """
        here = sorted(self.known_devices())
        if unknown := sorted({*devices, *trust}.difference(here)):
            near = did_you_mean(unknown[0], here)
            told = f"the store {self.url} holds no device {', '.join(unknown)}{near} see the names"
            raise UsageError(f"{told} with `fleetnas results`, or give its store with --store")
        with self._database.writing() as session:
            known = set(session.scalars(select(DistrustedRow.device)))
            session.add_all(DistrustedRow(device=device) for device in sorted(set(devices) - known))
            session.execute(delete(DistrustedRow).where(DistrustedRow.device.in_(trust)))

    # -- tasks and their outcomes -----------------------------------------------------------------------------

    def put_tasks(self, tasks: Sequence[TaskRecord]) -> None:
        """Add tasks, or renew their attempt counts, in one transaction."""
        if tasks:
            rows = ({**vars(task), "architecture": architecture_json(task.architecture)} for task in tasks)
            with self._database.writing() as session:
                self._put_tasks.execute(session.connection(), rows)

    def task(self, task_id: str) -> TaskRecord | None:
        """Return one task of any run; None where there is none of that id."""
        with self._database.reading() as session:
            row = session.get(TaskRow, task_id)
            return task_of(row) if row is not None else None

    def tasks(self, run_id: str) -> list[TaskRecord]:
        """Return every task of a run, by id; one that cannot be read is left out with a line in the log."""
        with self._database.reading() as session:
            rows = session.scalars(select(TaskRow).where(TaskRow.run_id == run_id).order_by(TaskRow.task_id))
            return list(readable(rows, task_of))

    def add_outcome(self, key: TaskKey, outcome: Outcome, stored_unix_s: float) -> bool:
        """Store the outcome of an attempt; False where that attempt's outcome is stored already.

        `StoreError` where the task is unknown.
        """
        return self.add_outcomes([Arrival(key, outcome, stored_unix_s)])[0]

    def add_outcomes(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """Store the outcomes of many attempts, in order of arrival, in one transaction: all may be acknowledged then.

        Returns for each whether it is new: False where that attempt's outcome was stored already, or comes earlier in
        `arrivals`. `StoreError`, with nothing stored, where a task is unknown.
        """
        return self._outcome_writer.add(arrivals)

    def outcomes(self, run_id: str, after: int = 0) -> list[OutcomeRecord]:
        """Return every outcome of a run in the order of arrival, from the one after number `after` on.

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
            return list(readable(rows, outcome_of))

    def measurements(self, run_ids: Sequence[str], devices: Sequence[str] = ()) -> Iterator[OutcomeRecord]:
        """Yield measurements of these runs, and of these devices if any are given, in the order of arrival.

        They come page by page, each page a transaction of its own: a long history fits into little memory, and no
        writer waits for its reader.
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
                page = list(readable(rows, outcome_of))
                last = rows[-1].outcome_id if rows else last
            for found in page:
                if found.refused:
                    _log.warning("the result of task %s is skipped: %s", found.key.task_id, found.refused)
                else:
                    yield found
            if len(rows) < _PAGE:
                return

    def latencies(self, run_id: str, before_unix_s: float) -> list[LatencyRecord]:
        """Return the latencies of a run at undisturbed speed that were stored before then, in the order of arrival."""
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
            return [found for found in readable(rows, latency_of) if least_ms <= found.latency_ms <= most_ms]

    # -- winners -----------------------------------------------------------------------------------------------

    def put_winners(self, winners: Sequence[WinnerRecord]) -> None:
        """Add or renew decided targets, in one transaction."""
        if winners:
            rows = [
                {
                    **vars(winner),
                    "target_ms": winner.target_ms or 0.0,
                    "status": str(winner.status),
                    "architecture": architecture_json(winner.architecture) if winner.architecture else None,
                }
                for winner in winners
            ]
            with self._database.writing() as session:
                self._put_winners.execute(session.connection(), rows)

    def winners(self, run_id: str) -> list[WinnerRecord]:
        """Return the decided targets of a run, by device setting and target.

        One that cannot be read is left out with a line in the log.
        """
        with self._database.reading() as session:
            rows = session.scalars(
                select(WinnerRow)
                .where(WinnerRow.run_id == run_id)
                .order_by(*(getattr(WinnerRow, name) for name in _WINNER_KEY[1:]))
            )
            return list(readable(rows, winner_of))
