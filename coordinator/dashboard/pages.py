"""Pages of the dashboard: what each shows, from the state of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from fleetnas.coordinator.dashboard import figures
from fleetnas.coordinator.dashboard.comparison import compared_facts, compared_targets, remarks_on
from fleetnas.coordinator.dashboard.kept_figures import KeptFigures
from fleetnas.coordinator.dashboard.portfolio_jobs import PortfolioJobs
from fleetnas.coordinator.dashboard.rendering import Page, Part, Renderer
from fleetnas.coordinator.dashboard.run_list import RunList
from fleetnas.coordinator.dashboard.run_reader import RunReaders
from fleetnas.coordinator.dashboard.run_state import RunState, SettingKey
from fleetnas.coordinator.records.snapshot import DeviceSnapshot
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.coordinator.records.totals import target_totals
from fleetnas.coordinator.view import wording
from fleetnas.fleet_protocol.errors import UsageError

#: Seconds between two looks for changes: of a run at work, and of what changes seldom.
BUSY_S, CALM_S = 1.0, 5.0
#: Fronts by themselves, and measurements in a table, on one page.
MOST_FRONTS, MOST_ROWS, MOST_FAILURES = 24, 100, 20
_TOP = ("Runs", "/")


@dataclass(frozen=True)
class Sources:
    """Sources of everything that is shown."""

    readers: RunReaders
    runs: RunList
    portfolios: PortfolioJobs


class Pages:
    """Makes the pages. Each method raises `UsageError` for what is not there, `StoreError` for what cannot be read."""

    def __init__(self, sources: Sources, renderer: Renderer) -> None:
        self._sources, self._render = sources, renderer
        self._figures = KeptFigures()

    def runs(self, number: int) -> Page:
        """Return the list of runs, the newest first; `number` counts its pages from 1."""
        listed = self._sources.runs.page(number)
        values = {
            "rows": listed.rows,
            "choose": sum(row.stored for row in listed.rows) > 1,
            "number": listed.number,
            "pages": listed.pages,
            "problem": listed.problem,
            "caption": f"{wording.count_of(listed.total, 'run')}, the newest first",
        }
        busy = any(row.status == "running" for row in listed.rows)
        parts = self._render.parts("runs.html.j2", ("runs",), values)
        return Page("Runs", "Runs", (("Runs", ""),), parts, BUSY_S * 2 if busy else CALM_S)

    def run(self, run_id: str) -> Page:
        """Return the page of one run."""
        state = self._sources.readers.read(run_id)
        rows = [(device, target) for device in state.snapshot.devices for target in device.targets]
        together, apart = self._figures.get(
            run_id,
            state.version,
            lambda: (figures.fronts_together(state), figures.fronts_apart(state, MOST_FRONTS)),
        )
        values = {
            "state": state,
            "problem": self._sources.runs.problem,
            "address": run_address(run_id),
            "device_address": lambda device: device_address(run_id, device.device, device.setting_label),
            "totals_of": lambda device: target_totals([device]),
            "targets_met": wording.targets_met(state.totals),
            "statuses": _statuses(state),
            "warning": wording.slowed_warning(state.snapshot.slowed),
            "advice": wording.SLOWED_ADVICE,
            "took": wording.elapsed((state.finished_unix_s or 0.0) - state.snapshot.started_s),
            "bounds": "" if state.plan is None else str(state.plan.bounds),
            "together": together,
            "apart": [(device_address(run_id, *key), figure) for key, figure in apart],
            "more_fronts": max(0, len(state.points) - MOST_FRONTS),
            "targets": rows,
            "remarks": [
                f"{device.label}: {remark}" for device in state.snapshot.devices if (remark := _remark(device))
            ],
            "events": list(reversed(state.events)),
        }
        parts = self._render.parts("run.html.j2", ("summary", "devices", "fronts", "targets", "events"), values)
        heading = f"Run {run_id}" + (f": {state.name}" if state.name else "")
        return Page(run_id, heading, (_TOP, (run_id, "")), parts, _every(state))

    def device(self, run_id: str, key: SettingKey, start: int) -> Page:
        """Return the page of one device setting; the table of measurements begins at the `start`-th latest one."""
        state = self._sources.readers.read(run_id)
        device = state.device(key)
        if device is None:
            known = ", ".join(each.label for each in state.snapshot.devices[:10]) or "none yet"
            raise UsageError(f"run {run_id} has no device setting {'/'.join(key)}; it has {known}")
        points, winners = state.points.get(key, ()), state.winners.get(key, ())
        record = state.records.get(key)
        failures = state.failures.get(key, ())
        start = min(max(0, start), max(0, len(points) - 1))
        shown = points[::-1][start : start + MOST_ROWS]
        drawn = self._figures.get(
            (run_id, key), state.version, lambda: figures.setting_figures(points, winners, record, key)
        )
        values = {
            "state": state,
            "device": device,
            "record": record,
            "address": run_address(run_id),
            "targets_met": wording.targets_met(target_totals([device])),
            "targets": [(device, target) for target in device.targets],
            "remark": _remark(device),
            "figures": drawn,
            "points": shown,
            "first": start + 1,
            "last": start + len(shown),
            "total": len(points),
            "newer": max(0, start - MOST_ROWS) if start else None,
            "older": start + MOST_ROWS if start + MOST_ROWS < len(points) else None,
            "failures": failures[: -MOST_FAILURES - 1 : -1],
            "all_failures": len(failures),
        }
        names = ("summary", "targets", "figures", "measurements", "failures")
        parts = self._render.parts("device.html.j2", names, values)
        label = "/".join(key)
        trail = (_TOP, (run_id, run_address(run_id)), (label, ""))
        return Page(f"{label} in {run_id}", label, trail, parts, _every(state))

    def compare(self, run_ids: Sequence[str]) -> Page:
        """Return the comparison of two runs; of another number of runs, a form to choose two."""
        if len(run_ids) != 2:
            return self._choose(run_ids)
        first, second = (self._sources.readers.read(run_id) for run_id in run_ids)
        pair = (first, second)
        labels = (f"A: {run_ids[0]}", f"B: {run_ids[1]}")
        drawn = self._figures.get(
            tuple(run_ids),
            (first.version, second.version),
            lambda: figures.compared_fronts(labels, (first.points, second.points), MOST_FRONTS),
        )
        values = {
            "states": pair,
            "letters": ("A", "B"),
            "run_address": run_address,
            "facts": compared_facts(pair),
            "remarks": remarks_on(pair),
            "rows": compared_targets(pair),
            "figures": drawn,
        }
        parts = self._render.parts("compare.html.j2", ("summary", "targets", "figures"), values)
        title = f"{run_ids[0]} and {run_ids[1]}"
        return Page(title, "Two runs compared", (_TOP, ("Two runs compared", "")), parts, min(map(_every, pair)))

    def portfolio(self, run_id: str, *, renew: bool) -> Page:
        """Return the portfolio's curve of a run; with `renew` it is computed again where the run has measured since."""
        state = self._sources.readers.read(run_id)
        if not state.stored or state.kind != "search":
            raise UsageError(f"run {run_id} has no portfolio: that needs a search in this dashboard's store")
        job = self._sources.portfolios.job(state, renew=renew)
        values = {
            "run_id": run_id,
            "address": run_address(run_id),
            "job": job,
            "figure": figures.portfolio_curve(job.curve, job.targets),
        }
        parts = self._render.parts("portfolio.html.j2", ("curve",), values)
        trail = (_TOP, (run_id, run_address(run_id)), ("Portfolio", ""))
        return Page(f"Portfolio of {run_id}", f"Portfolio of run {run_id}", trail, parts, BUSY_S * 2)

    def _choose(self, run_ids: Sequence[str]) -> Page:
        known = self._sources.runs.stored_ids()
        chosen = [*run_ids, *known][:2]
        values = {
            "remark": f"Choose two runs to compare; {wording.count_of(len(run_ids), 'run')} were given."
            if run_ids
            else "Choose two runs to compare.",
            "run_ids": known,
            "fields": list(zip(("A", "B"), chosen, strict=False)),
        }
        parts: tuple[Part, ...] = self._render.parts("choose.html.j2", ("choose",), values)
        return Page("Compare two runs", "Compare two runs", (_TOP, ("Compare two runs", "")), parts)


def run_address(run_id: str) -> str:
    """Return the address of a run's page."""
    return f"/runs/{quote(run_id, safe='')}"


def device_address(run_id: str, device: str, label: str) -> str:
    """Return the address of the page of a device setting."""
    return f"{run_address(run_id)}/devices/{quote(device, safe='')}/{quote(label, safe='')}"


def _every(state: RunState) -> float:
    return BUSY_S if state.running else CALM_S


def _statuses(state: RunState) -> str:
    if not state.records:
        return ""
    count = wording.count_of(len(state.records), "device setting")
    statuses = (record.status for record in state.records.values())
    return f"{count} ({wording.status_counts(statuses, interrupted=state.status is RunStatus.INTERRUPTED)})"


def _remark(device: DeviceSnapshot) -> str:
    return wording.targets_remark(len(device.targets), device.targets_asked, device.targets_note, device.ended)
