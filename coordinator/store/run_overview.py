"""Device settings of many runs at once, with no more of them than a list of runs shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select

from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.schema import DeviceRow, WinnerRow


@dataclass(frozen=True)
class DecidedTarget:
    """One decided target of a device setting."""

    met: bool
    target_ms: float | None
    """None where a given subnet is compared with no target."""
    target: str = ""
    """Text of a target of another kind than latency; else empty."""


@dataclass(frozen=True)
class SettingOverview:
    """One device setting of a run."""

    run_id: str
    device: str
    status: str
    """As it is stored: a damaged one too."""
    resolved: int | None
    """Number of targets that the request came down to; None before that."""
    targets: tuple[DecidedTarget, ...]


class RunOverview:
    """Reads what a list of runs shows, in two queries for all of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def settings(self, run_ids: Sequence[str]) -> dict[str, list[SettingOverview]]:
        """Return the device settings of these runs, by run and in the order of their names."""
        with self._database.reading() as session:
            winners = session.execute(
                select(
                    WinnerRow.run_id,
                    WinnerRow.device,
                    WinnerRow.setting_label,
                    WinnerRow.status,
                    WinnerRow.target_ms,
                    WinnerRow.target,
                )
                .where(WinnerRow.run_id.in_(run_ids))
                .order_by(WinnerRow.target_ms)
            ).all()
            devices = session.execute(
                select(
                    DeviceRow.run_id,
                    DeviceRow.device,
                    DeviceRow.setting_label,
                    DeviceRow.status,
                    DeviceRow.targets_ms,
                    DeviceRow.targets,
                )
                .where(DeviceRow.run_id.in_(run_ids))
                .order_by(DeviceRow.device, DeviceRow.setting_label)
            ).all()
        decided: dict[tuple[str, str, str], list[DecidedTarget]] = {}
        for run_id, device, label, status, target_ms, text in winners:
            target = DecidedTarget(status == TargetStatus.MET.value, target_ms or None, text)
            decided.setdefault((run_id, device, label), []).append(target)
        found: dict[str, list[SettingOverview]] = {run_id: [] for run_id in run_ids}
        for run_id, device, label, status, targets_ms, others in devices:
            count = len(others) if isinstance(others, list) else 0
            resolved = len(targets_ms) + count if isinstance(targets_ms, list) else count or None
            targets = tuple(decided.get((run_id, device, label), ()))
            found[run_id].append(SettingOverview(run_id, device, status, resolved, targets))
        return found
