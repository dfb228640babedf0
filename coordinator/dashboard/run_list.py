"""The list of runs: those of the store, and those at work that only the broker knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from fleetnas.coordinator.records.plan import kind_of, settings_of
from fleetnas.coordinator.records.stored import RunRecord
from fleetnas.coordinator.records.totals import target_totals, targets_asked
from fleetnas.coordinator.store.run_overview import DecidedTarget, SettingOverview
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import FleetnasError
from fleetnas.fleet_protocol.updates import RunSummary

#: Runs on one page of the list.
MOST_RUNS = 100
#: Device names that a row shows.
_MOST_NAMED = 4


class RunsAtWork(Protocol):
    """Runs whose coordinators publish on the broker."""

    @property
    def problem(self) -> str:
        """Why nothing is received now; empty where all is well."""

    def summaries(self) -> list[RunSummary]:
        """Return the runs at work."""


@dataclass(frozen=True)
class RunRow:
    """One run of the list."""

    run_id: str
    begun_unix_s: float
    kind: str
    supernet: str
    targets: str
    status: str
    met: str
    devices: str
    stored: bool = True
    name: str = ""
    """As the user gave it; may be empty."""

    @property
    def address(self) -> str:
        """Address of its page."""
        return f"/runs/{quote(self.run_id, safe='')}"


@dataclass(frozen=True)
class ListedRuns:
    """One page of the list."""

    rows: tuple[RunRow, ...]
    number: int
    pages: int
    total: int
    problem: str = ""


class RunList:
    """Reads the list of runs."""

    def __init__(self, store: MeasurementStore, at_work: RunsAtWork | None = None) -> None:
        self._store, self._at_work = store, at_work

    @property
    def problem(self) -> str:
        """Why the broker tells nothing now; empty where all is well or no broker was given."""
        return self._at_work.problem if self._at_work is not None else ""

    def stored_ids(self) -> list[str]:
        """Return the ids of the stored runs, the newest first."""
        return [run.run_id for run in reversed(self._store.runs())]

    def page(self, number: int) -> ListedRuns:
        """Return one page of the list, the newest runs first; `number` counts from 1."""
        stored = list(reversed(self._store.runs()))
        known = {run.run_id for run in stored}
        elsewhere = [] if self._at_work is None else [s for s in self._at_work.summaries() if s.run_id not in known]
        pages = max(1, -(-len(stored) // MOST_RUNS))
        number = min(max(1, number), pages)
        shown = stored[(number - 1) * MOST_RUNS : number * MOST_RUNS]
        settings = self._store.overview.settings([run.run_id for run in shown])
        rows = [_published_row(summary) for summary in elsewhere] if number == 1 else []
        rows += [_stored_row(run, settings[run.run_id]) for run in shown]
        return ListedRuns(tuple(rows), number, pages, len(stored) + len(elsewhere), self.problem)


@dataclass(frozen=True)
class _Targets:
    targets: tuple[DecidedTarget, ...]
    targets_asked: int


def _stored_row(run: RunRecord, settings: Sequence[SettingOverview]) -> RunRow:
    met, targets = "?", "?"
    try:
        plan = settings_of(run).plan
    except FleetnasError:  # another fleetnas made it; its own page says what to do
        pass
    else:
        targets = str(plan.targets)
        totals = target_totals(
            _Targets(each.targets, targets_asked(plan.targets_asked, each.resolved)) for each in settings
        )
        met = f"{totals.met} of {totals.asked}"
    names = list(dict.fromkeys(each.device for each in settings))
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    devices = ", ".join(names[:_MOST_NAMED]) + more
    return RunRow(
        run.run_id,
        run.created_unix_s,
        kind_of(run),
        run.supernet,
        targets,
        str(run.status),
        met,
        devices or "–",
        name=run.name or "",
    )


def _published_row(summary: RunSummary) -> RunRow:
    return RunRow(
        summary.run_id,
        summary.started_unix_s,
        "not in this store",
        summary.supernet,
        "–",
        str(summary.state),
        "–",
        f"{summary.settings} settings",
        stored=False,
    )
