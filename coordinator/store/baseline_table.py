"""Baselines of runs as the store keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sqlalchemy import select

from fleetnas.coordinator.records.baselines import BaselineRecord
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.row_reading import readable, record_of
from fleetnas.coordinator.store.schema import BaselineRow
from fleetnas.coordinator.store.upsert import upsert


class BaselineTable:
    """The baselines of one store. Every method is one transaction, and may raise `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._put = upsert(database, BaselineRow, "run_id", "device", "setting_label", "baseline")

    def put(self, baselines: Sequence[BaselineRecord]) -> None:
        """Add or renew baselines."""
        rows = [
            {**vars(record), "measurements": [each.model_dump(mode="json") for each in record.measurements]}
            for record in baselines
        ]
        if rows:
            with self._database.writing() as session:
                self._put.execute(session.connection(), rows)

    def of_run(self, run_id: str) -> list[BaselineRecord]:
        """Return the baselines of a run, by device setting and name; a damaged one is left out with a log line."""
        key = BaselineRow.device, BaselineRow.setting_label, BaselineRow.baseline
        with self._database.reading() as session:
            rows = session.scalars(select(BaselineRow).where(BaselineRow.run_id == run_id).order_by(*key))
            return list(readable(rows, partial(record_of, BaselineRecord)))
