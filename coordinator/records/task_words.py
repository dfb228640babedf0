"""A task in plain words, for views."""

from __future__ import annotations

from fleetnas.coordinator.records.stored import TaskRecord
from fleetnas.coordinator.records.targets import target_label

_PURPOSES = {"initial-design": "to explore the design space", "candidate": "as a candidate"}


def task_words(task: TaskRecord) -> str:
    """Return the subnet of a task and its purpose, such as `subnet 1a2b3c for 2 ms`."""
    subnet = f"subnet {task.architecture.fingerprint}"
    if task.purpose == "verification":
        target = target_label(task.target_ms, task.target)
        return f"{subnet} for {target}" if target else subnet
    return f"{subnet} {_PURPOSES[task.purpose]}"
