"""Counts of targets over device settings, the same for every view, file, event and metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fleetnas.coordinator.records.statuses import EndStatus, RunStatus, SettingStatus

_UNREACHED: dict[SettingStatus, str] = {
    SettingStatus.RUNNING: "not decided yet",
    SettingStatus.FINISHED: "not reached: search over",
    SettingStatus.LOST: "not reached: device lost",
    SettingStatus.FAILED: "not reached: device failed",
}


class Target(Protocol):
    """One target."""

    @property
    def met(self) -> bool | None:
        """True once a re-measurement met it."""

    @property
    def target_ms(self) -> float | None:
        """None where a given subnet is compared with no target."""

    @property
    def target(self) -> str:
        """Text of a target of another kind than latency; else empty."""


class SettingTargets(Protocol):
    """One device setting with the targets that are known so far."""

    @property
    def targets(self) -> Sequence[Target]:
        """The known ones."""

    @property
    def targets_asked(self) -> int:
        """Number of targets that were asked for, the ones that are not known yet included."""


@dataclass(frozen=True)
class TargetTotals:
    """Targets met, of the targets that were asked for."""

    met: int
    asked: int
    without_target: bool = False
    """Given subnets are compared with no target: `met` counts the measured ones."""


def targets_asked(requested: int, resolved: int | None) -> int:
    """Count the targets that were asked for on one device setting where subnets are searched.

    `requested` is the number in the request: 3 for `5,10,20`, 4 for `auto:4`. `resolved` is the number of targets that
    the request came down to on this device setting; None before that, or where the device was lost or failed first.
    """
    return requested if resolved is None else resolved


def target_totals(settings: Iterable[SettingTargets]) -> TargetTotals:
    """Count the targets of these device settings, the ones asked for on lost and failed devices included."""
    met = asked = known = compared = 0
    for setting in settings:
        known += len(setting.targets)
        compared += sum(target.target_ms is not None or bool(target.target) for target in setting.targets)
        met += sum(target.met is True for target in setting.targets)
        asked += max(setting.targets_asked, len(setting.targets))
    return TargetTotals(met, asked, without_target=known > compared == 0)


def run_end(totals: TargetTotals, statuses: Iterable[SettingStatus]) -> EndStatus:
    """Return the end of a run: every target met on devices that finished, some targets met, or none."""
    if not totals.met:
        return RunStatus.FAILED
    finished = all(status is SettingStatus.FINISHED for status in statuses)
    return RunStatus.COMPLETE if finished and totals.met == totals.asked else RunStatus.PARTIAL


def unreached(status: SettingStatus) -> str:
    """Explain why a target of a device setting with this status is not decided."""
    return _UNREACHED[status]
