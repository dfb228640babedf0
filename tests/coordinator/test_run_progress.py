"""Progress and time left: never beyond the whole, never backward, and right about as often as it says."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from rigs.event_examples import RUN
from rigs.simulated_fleet import Simulation
from rigs.timed_fleet import followed, timed_fleet

from fleetnas.coordinator.app.progress_events import ProgressEvents
from fleetnas.coordinator.records.events import Event, ProgressChanged
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.run_progress import RunProgress
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.records.workload import (
    Habits,
    SearchState,
    Seconds,
    counts_of_search,
    seconds_by_protocol,
    time_of_device,
)
from fleetnas.coordinator.view.lines import JsonView, LinesView, event_line
from fleetnas.coordinator.view.live import frame_strips
from fleetnas.fleet_protocol.messages import MeasurementProtocol

SEEDS = 20


@pytest.fixture(scope="module")
def campaigns() -> list[list[tuple[float, RunProgress]]]:
    return [followed(seed) for seed in range(SEEDS)]


@pytest.mark.xdist_group("run-progress")
def test_progress_is_within_bounds_and_never_goes_backward(campaigns: list[list[tuple[float, RunProgress]]]) -> None:
    for told in campaigns:
        shares = [found.done for _, found in told]
        assert shares == sorted(shares)
        assert all(0.0 <= share < 1.0 for share in shares[:-1])
        assert shares[-1] == 1.0
        assert all(0.0 <= p.least_left_s <= p.left_s <= p.most_left_s for _, p in told)
        assert told[-1][1].left_s == 0.0


@pytest.mark.xdist_group("run-progress")
def test_in_the_middle_the_interval_covers_the_time_left_in_most_campaigns(
    campaigns: list[list[tuple[float, RunProgress]]],
) -> None:
    covered, errors = 0, []
    for told in campaigns:
        began_s, end_s = told[0][0], told[-1][0]
        at_s, found = min(told, key=lambda each: abs(each[0] - (began_s + end_s) / 2))
        covered += found.least_left_s <= end_s - at_s <= found.most_left_s
        errors.append(abs(found.left_s / (end_s - at_s) - 1.0))
    assert covered >= 0.8 * SEEDS, f"{covered} of {SEEDS}"
    assert float(np.median(errors)) < 0.35


def test_a_share_is_told_again_once_more_is_done_or_time_has_passed() -> None:
    events: list[Event] = []
    emitter = ProgressEvents(events.append)
    for at_s, done in ((0, 0.0), (2, 0.06), (6, 0.07), (50, 0.08), (70, 0.09), (71, 0.5), (75, 0.6)):
        left = RunProgress(done, 10.0, 5.0, 20.0)
        emitter.take(Snapshot("run-1", "digits", 0.0, float(at_s), "searching", progress=left))
    emitter.take(Snapshot("run-1", "digits", 0.0, 99.0, "finished", progress=RunProgress(1.0, 0.0, 0.0, 0.0)))
    assert [event.at_s for event in events] == [0, 6, 70, 75]
    assert all(isinstance(event, ProgressChanged) for event in events)


def test_every_view_shows_it() -> None:
    left = RunProgress(0.354, 250.0, 180.0, 390.0)
    snapshot = Snapshot("run-1", "digits.supernet", 0.0, 100.0, "searching", progress=left)
    words = "35 % done, about 4:10 left (3:00 to 6:30)"
    assert any(words in "".join(segment.text for segment in strip) for strip in frame_strips(snapshot, 120, 20))
    narrow = ["".join(segment.text for segment in strip) for strip in frame_strips(snapshot, 78, 20)]
    assert any("35 %, 4:10 left" in line for line in narrow)
    event = ProgressChanged(**RUN, done=0.354, left_s=250.0, least_left_s=180.0, most_left_s=390.0)
    assert event_line(event) == f"progress: {words}"
    lines, objects = io.StringIO(), io.StringIO()
    LinesView(lines).event(event)
    JsonView(objects).event(event)
    assert words in lines.getvalue()
    assert json.loads(objects.getvalue())["left_s"] == 250.0


def test_more_work_takes_longer_and_less_is_known_of_it() -> None:
    each = seconds_by_protocol(MeasurementProtocol(), "auto")
    assert each.verification > each.first
    assert seconds_by_protocol(MeasurementProtocol(), "fixed").first > each.first
    habits = Habits()
    begun, late = SearchState(open_targets=4), SearchState(measured=35, open_targets=4)
    few, many = (time_of_device([(counts_of_search(40, 10, stands, habits), each)]) for stands in (late, begun))
    assert few.expected < many.expected
    assert few.least < few.expected < few.most
    known = Seconds(each.first, each.verification, 0.1)
    counts = counts_of_search(40, 10, begun, habits)
    assert time_of_device([(counts, known)]).most < time_of_device([(counts, each)]).most


def test_a_history_of_results_that_came_in_one_moment_ends_no_search() -> None:
    """After a crash many results are stored at once: by their times such measurements took no time."""
    assert Seconds(0.0, 0.0).first > 0.0
    plan = CampaignPlan(targets=TargetRequest.parse("auto:2"), budget=8, wait_for=1, prior="default")
    fleet = Simulation(plan)
    fleet.add("pi4")
    fleet.begin()
    fleet.campaign.progress.expect(lambda device, label: Seconds(0.0, 0.0), Habits())
    fleet.run()
    told = fleet.campaign.snapshot(1.0).progress
    assert told is not None
    assert math.isfinite(told.left_s)
    assert fleet.campaign.finished


@pytest.mark.parametrize("seed", range(4))
def test_a_resumed_run_goes_on_from_the_share_that_it_had(seed: int) -> None:
    """The time since the resumption is not the time that the run has taken."""
    fleet = timed_fleet(seed)
    fleet.begin()

    def told(steps: int) -> RunProgress:
        for _ in range(steps):
            fleet.step(0.25)
        found = fleet.campaign.snapshot(fleet.clock.unix()).progress
        assert found is not None
        return found

    while (before := told(8)).done < 0.7:
        assert not fleet.campaign.finished
    fleet.vanish()
    fleet.begin(resume=True)
    after = told(8)
    assert before.done - 0.2 < after.done < before.done + 0.2
