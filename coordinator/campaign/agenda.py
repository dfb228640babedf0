"""Device settings to advance and agents to supply at the next tick."""

from __future__ import annotations

from collections.abc import Iterator

from fleetnas.coordinator.campaign.setting_run import SettingRun


class Agenda:
    """Work of the next tick, in the order in which it came up: a tick does not look at the whole fleet."""

    def __init__(self) -> None:
        self._changed: dict[str, SettingRun] = {}
        self._agents_to_supply: dict[str, None] = {}

    def add(self, setting_run: SettingRun) -> None:
        """Have a changed device setting advanced and its agent supplied."""
        self._changed[setting_run.label] = setting_run
        self._agents_to_supply[setting_run.device] = None

    def supply(self, agent: str) -> None:
        """Have an agent supplied with tasks."""
        self._agents_to_supply[agent] = None

    @property
    def has_changes(self) -> bool:
        """Whether device settings wait to be advanced."""
        return bool(self._changed)

    def take_changed(self) -> Iterator[SettingRun]:
        """Yield the changed device settings of this moment; those that the caller does not take stay."""
        for label in list(self._changed):
            yield self._changed.pop(label)

    def take_agents(self) -> list[str]:
        """Return the agents to supply, once."""
        agents, self._agents_to_supply = list(self._agents_to_supply), {}
        return agents
