"""The device settings of a campaign, by key and by device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fleetnas.coordinator.campaign.agenda import Agenda
from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.fleet.task_dispatcher import TaskDispatcher
from fleetnas.coordinator.fleet.work_queue import WorkQueue

#: Device settings up to which the predictor's error, which costs as much as a plan, is noted after every measurement;
#: of more, whenever it has learned from twice as many, and at the end.
_FEW_SETTINGS = 16


class Roster:
    """Device settings that take part, in the order in which they were taken in."""

    def __init__(self, dispatcher: TaskDispatcher, agenda: Agenda) -> None:
        self._dispatcher, self._agenda = dispatcher, agenda
        self.by_key: dict[tuple[str, str], SettingRun] = {}
        """By device and label of the setting."""
        self._by_device: dict[str, list[SettingRun]] = {}

    def __iter__(self) -> Iterator[SettingRun]:
        return iter(self.by_key.values())

    def __len__(self) -> int:
        return len(self.by_key)

    def add(self, setting_run: SettingRun) -> None:
        """Take in a device setting, new or from the store."""
        self.by_key[setting_run.queue.key] = setting_run
        self._by_device.setdefault(setting_run.device, []).append(setting_run)
        self._dispatcher.add_queue(setting_run.queue)
        self._agenda.add(setting_run)

    def supply(self, agent: str) -> None:
        """Have an agent supplied with tasks at the next tick."""
        self._agenda.supply(agent)

    def of_device(self, device: str) -> Sequence[SettingRun]:
        """Return the settings of one device."""
        return self._by_device.get(device, ())

    def of_queue(self, queue: WorkQueue) -> SettingRun:
        """Return the device setting of a task queue."""
        return self.by_key[queue.key]

    @property
    def devices(self) -> set[str]:
        """Names of the devices that take part."""
        return set(self._by_device)

    @property
    def labels(self) -> list[str]:
        """Device settings that take part, as `DEVICE/SETTING`."""
        return [setting_run.label for setting_run in self]

    @property
    def is_small(self) -> bool:
        """Whether there are so few device settings that each can be computed for after every measurement."""
        return len(self.by_key) <= _FEW_SETTINGS
