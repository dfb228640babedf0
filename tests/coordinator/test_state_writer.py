"""Changed states of device settings are stored in order, a limited number at a time, and none is left out."""

from __future__ import annotations

from collections.abc import Sequence

from fleetnas.coordinator.campaign.state_writer import StateWriter
from fleetnas.coordinator.store.circuit_breaker import CircuitBreaker


class _Evaluations:
    def put(self, evaluations: Sequence[object]) -> None:
        assert not evaluations


class _Store:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.evaluations = _Evaluations()
        self.written: list[list[str]] = []

    def put_devices(self, records: Sequence[str]) -> None:
        self.written.append(list(records))

    def put_winners(self, winners: Sequence[object]) -> None:
        assert not winners


class _SettingRun:
    def __init__(self, number: int) -> None:
        self.label = f"device-{number}"


def test_a_large_fleet_is_written_in_parts_and_at_the_end_as_a_whole() -> None:
    store, now = _Store(), 0.0
    breaker = CircuitBreaker(lambda: now, lambda _: None, lambda _: None)
    writer = StateWriter(store, breaker, list)  # type: ignore[arg-type]
    settings = [_SettingRun(number) for number in range(1000)]
    for setting in settings:
        writer.mark_dirty(setting)  # type: ignore[arg-type]
    writer.write_at_times(0.0, lambda setting: setting.label)  # type: ignore[arg-type, return-value]
    first = store.written[0]
    assert 0 < len(first) < 1000
    writer.mark_dirty(settings[0])  # type: ignore[arg-type]  # changes again, and waits behind the others
    writer.write_at_times(0.1, lambda setting: setting.label)  # type: ignore[arg-type, return-value]
    assert len(store.written) == 1, "too soon"
    writer.write_at_times(10.0, lambda setting: setting.label)  # type: ignore[arg-type, return-value]
    assert not set(first) & set(store.written[1])
    writer.write(lambda setting: setting.label)  # type: ignore[arg-type, return-value]
    assert not writer.is_dirty
    assert [label for part in store.written for label in part] == [*(s.label for s in settings), "device-0"]
