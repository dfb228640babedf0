"""Cores that a process may use."""

from __future__ import annotations

import os

import pytest

from fleetnas.fleet_protocol.cores import affinity, core_count


def test_cores_outside_the_affinity_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 2}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert affinity() == (2, 5)
    assert core_count() == 2


def test_where_the_system_does_not_tell_the_machines_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> set[int]:
        raise OSError("not here")

    monkeypatch.setattr(os, "sched_getaffinity", refuse, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert (affinity(), core_count()) == ((), 3)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert core_count() == 1
