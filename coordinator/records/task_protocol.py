"""The protocol of one measurement: as precise as it was asked to be, with the percentiles that it was asked for."""

from __future__ import annotations

import math

from fleetnas.coordinator.records.precision import protocol_for
from fleetnas.coordinator.records.stored import TaskRecord
from fleetnas.coordinator.records.target_kinds import Target, TargetKind
from fleetnas.fleet_protocol.messages import MeasurementProtocol
from fleetnas.fleet_protocol.percentiles import runs_needed

#: Timed runs of a measurement that only teaches what percentiles are like on a device.
_LEARNING_RUNS = 40
#: A measurement that decides a percentile may last this many times the time of its runs, and this share of the
#: deadline: references take their turns, and building and loading take their time.
_TIMES_LONGER, _DEADLINE_SHARE = 2.0, 0.8


def task_protocol(base: MeasurementProtocol, task: TaskRecord, deadline_s: float) -> MeasurementProtocol:
    """Return the protocol of a task, from a run's protocol; a task may last `deadline_s` on its device.

    A verification of a target for a percentile gets enough runs for the percentile's own interval.
    """
    found = protocol_for(base, task.asked_precision)
    if not task.asked_percentiles:
        return found
    target = Target.parse(task.target) if task.target and task.purpose == "verification" else None
    if target is None or target.kind is not TargetKind.PERCENTILE:
        runs = max(found.min_runs, _LEARNING_RUNS)
    else:
        # Each session takes its share, rounded up, and the shortest decides how many of each are pooled.
        needed = math.ceil(runs_needed(target.percentile) / found.sessions) * found.sessions
        runs = max(found.min_runs, needed)
    expected_s = runs * (task.predicted_ms or 0.0) / 1000.0
    longest_s = max(found.max_s, min(_TIMES_LONGER * expected_s, _DEADLINE_SHARE * deadline_s))
    return found.model_copy(update={"percentiles": task.asked_percentiles, "min_runs": runs, "max_s": longest_s})
