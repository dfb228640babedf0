"""View, summary, event, results.json, report and metrics say the same of a run, live and from its store."""

from __future__ import annotations

import io
import itertools
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import urlopen

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rigs import simulated_fleet, waiting
from rigs.simulated_fleet import SPACE, HiddenDevice, InlineExecutor, Simulation, StandInModels, measurement

from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.campaign.winner_builder import CalibratedModel
from fleetnas.coordinator.campaign.winner_record import winner_record
from fleetnas.coordinator.monitoring.metrics import Metrics
from fleetnas.coordinator.monitoring.store_feed import StoreFeed
from fleetnas.coordinator.records.events import CampaignFinished, Event, MeasurementsSlowed, RegimeChanged
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.records.stored import Arrival, TaskRecord
from fleetnas.coordinator.records.totals import TargetTotals, target_totals
from fleetnas.coordinator.report.artifacts import ArtifactFolder, read_results
from fleetnas.coordinator.report.html import render_report
from fleetnas.coordinator.report.stored_outcome import outcome_of, stored_totals
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.target_state import ChosenSubnet, TargetState
from fleetnas.coordinator.view.lines import event_lines
from fleetnas.coordinator.view.live import render
from fleetnas.coordinator.view.summary import summary
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.messages import AgentInfo, Failed, Measurement, RuntimeSetting, TaskKey
from fleetnas.fleet_protocol.orders import MeasureTask
from fleetnas.supernet_export.spaces.base import DesignSpace

SETTING = RuntimeSetting()
(SUBNET,) = SPACE.decode(SPACE.smallest())
NUMBERS = itertools.count()


@dataclass
class DecidedSearch:
    """Stands in for a device's search that came to its end: the targets as they were decided."""

    targets: list[TargetState]
    measurements: int = 0
    space: ClassVar[DesignSpace] = SPACE
    targets_note: str = ""
    quarantined: int = 0
    board: None = None

    @property
    def targets_known(self) -> int | None:
        return len(self.targets) or None

    def leave(self) -> None:
        """There is nobody to take over."""

    @property
    def decided(self) -> list[TargetState]:
        return [state for state in self.targets if state.status != "open"]


@dataclass(frozen=True)
class DrawnSetting:
    """What became of one device setting."""

    status: SettingStatus
    fates: tuple[str, ...]
    """Of its targets, where they were known to the search."""
    qualities: tuple[str, ...] = ()


def drawn_settings(count: int, automatic: bool, most_measured: int) -> st.SearchStrategy[DrawnSetting]:
    """Ends of a device setting with `count` targets asked for."""
    decided, any_fate = (
        st.sampled_from(("met", "missed", "infeasible")),
        st.sampled_from(("met", "missed", "infeasible", "open")),
    )
    given_up = (SettingStatus.LOST, SettingStatus.FAILED)
    fewest = 1 if automatic else count
    qualities = st.lists(st.sampled_from(("ok", "noisy", "slowed")), max_size=most_measured).map(tuple)

    def tuples(fate: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
        return st.lists(fate, min_size=fewest, max_size=count).map(tuple)

    return st.one_of(
        st.builds(DrawnSetting, st.just(SettingStatus.FINISHED), tuples(decided), qualities),
        st.builds(DrawnSetting, st.sampled_from(given_up), tuples(any_fate) | st.just(()), qualities),
    )


@st.composite
def runs(draw: st.DrawFn, most_measured: int = 12) -> tuple[str, list[DrawnSetting]]:
    """A request for targets, and what became of each device setting."""
    count = draw(st.integers(1, 4))
    automatic = draw(st.booleans())
    request = f"auto:{count}" if automatic else ",".join(str(5 * n) for n in range(1, count + 1))
    return request, draw(st.lists(drawn_settings(count, automatic, most_measured), min_size=1, max_size=4))


def state(target_ms: float, end: str) -> TargetState:
    found = TargetState(target_ms)
    subnet = ChosenSubnet(SPACE.smallest()[0], SUBNET, 0.9, 0.9 * target_ms)
    if end == "met":
        found.meet("a" * 64)
        found.choose(subnet, 0.9 * target_ms, 0.9 * target_ms)
    elif end == "missed":
        found.choose(subnet, 1.1 * target_ms)
        found.miss("over the target in all 6 re-measurements")
    elif end == "infeasible":
        found.give_up("the fastest subnet found takes 99 ms", infeasible=True)
    return found


@dataclass
class EndedRun:
    """A run that is over: its campaign, still in memory, and its store."""

    fleet: Simulation
    events: list[Event] = field(default_factory=list)
    stored_events: tuple[Event, ...] = ()
    stored: Snapshot | None = None

    @property
    def live(self) -> Snapshot:
        return self.fleet.campaign.snapshot(self.fleet.clock.unix())

    def read_store(self) -> None:
        update = StoreFeed(self.fleet.store, self.fleet.run_id, wall_clock=self.fleet.clock.unix).poll(0)
        self.stored_events, self.stored = update.events, update.snapshot


def ended_run(store: MeasurementStore, request: str, drawn: list[DrawnSetting]) -> EndedRun:
    """Give a real campaign the device settings that were drawn, store what they stored, and finish it."""
    number = next(NUMBERS)
    fleet = Simulation(CampaignPlan(targets=request), store=store, run_id=f"run-{number}")
    campaign = fleet.begin()
    for index, setting in enumerate(drawn):
        device = f"pi{number}-{index}"
        info = AgentInfo(
            agent=device,
            session=1,
            profile=DeviceProfile(model="x", machine="x", cores=1),
            settings=(SETTING,),
            versions={},
        )
        targets = [state(5.0 * (n + 1), fate) for n, fate in enumerate(setting.fates)]
        search = DecidedSearch(targets, len(setting.qualities))
        setting_run = SettingRun(fleet.run_id, device, SETTING, info, search)  # type: ignore[arg-type]
        campaign.add_setting_run(setting_run)
        setting_run.close(setting.status, "")  # type: ignore[arg-type]
        tasks = [
            TaskRecord(f"{device}.{n}", fleet.run_id, device, SETTING.label, "candidate", SUBNET)
            for n in range(len(setting.qualities))
        ]
        taken = [
            measurement(2.0, quality=quality, undisturbed_ms=2.0 / (1 + n), regime_unix_s=100.0 + n // 5)
            for n, quality in enumerate(setting.qualities)
        ]
        store.put_devices([setting_run.to_record()])
        store.put_tasks(tasks)
        store.add_outcomes(
            [
                Arrival(TaskKey(task_id=task.task_id, attempt=1), one, 1.0)
                for task, one in zip(tasks, taken, strict=True)
            ]
        )
        for one in taken:
            setting_run.count_outcome(one)
        store.put_winners([winner_record(setting_run, each) for each in search.decided])
    campaign.finish()
    run = EndedRun(fleet, list(fleet.events))
    run.read_store()
    return run


def printed_totals(text: str) -> list[tuple[int, int]]:
    return [(int(met), int(asked)) for met, asked in re.findall(r"(\d+) of (\d+) targets? met", text)]


def text_of(renderable: object, width: int = 400, height: int = 200) -> str:
    file = io.StringIO()
    Console(file=file, width=width, height=height, force_terminal=False).print(renderable)
    return file.getvalue()


@pytest.fixture(scope="module")
def store() -> Iterator[MeasurementStore]:
    opened = MeasurementStore.open("sqlite://")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def metrics() -> Iterator[Metrics]:
    listening = Metrics("127.0.0.1", 0)
    yield listening
    listening.close()


def scraped_targets(metrics: Metrics, snapshot: Snapshot) -> Counter[str]:
    """Targets by state that are told of a snapshot's devices."""
    metrics.update(snapshot)
    with urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=waiting.STALL_S) as answer:
        text = answer.read().decode()
    names = {device.device for device in snapshot.devices}
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "fleetnas_targets" and sample.labels["device"] in names:
                found[sample.labels["state"]] += int(sample.value)
    return found


class TestAnyRun:
    @settings(max_examples=40)
    @given(runs(most_measured=0))  # plots take most of the time
    def test_everything_that_is_printed_has_the_same_totals(
        self, store: MeasurementStore, metrics: Metrics, drawn: tuple[str, list[DrawnSetting]]
    ) -> None:
        request, ends = drawn
        run = ended_run(store, request, ends)
        requested = int(request.removeprefix("auto:")) if request.startswith("auto") else request.count(",") + 1
        met = sum(end.fates.count("met") for end in ends)
        asked = sum(len(end.fates) or requested for end in ends)
        expected = [(met, asked)]
        finished = run.events[-1]
        assert isinstance(finished, CampaignFinished)
        assert printed_totals("\n".join(event_lines(finished))) == expected
        for snapshot in (run.live, run.stored):
            assert snapshot is not None
            assert printed_totals(text_of(render(snapshot))) == expected
            counted = scraped_targets(metrics, snapshot)
            assert (counted["met"], sum(counted.values()), counted["open"]) == (met, asked, 0)
        again = run.stored_events[-1]
        assert isinstance(again, CampaignFinished)
        changes = {"at_s": again.at_s, "elapsed_s": again.elapsed_s}
        assert again == finished.model_copy(update=changes)
        outcome = outcome_of(store, run.fleet.run_id)
        assert printed_totals(text_of(summary(outcome))) == expected
        assert stored_totals(store, run.fleet.run_id, run.fleet.plan.targets_asked) == TargetTotals(met, asked)
        with tempfile.TemporaryDirectory() as folder:
            ArtifactFolder(Path(folder)).write(outcome)
            results = read_results(Path(folder))
            assert (results.targets_met, results.targets_asked) == (met, asked)
            assert printed_totals(re.sub(r"<[^>]+>", "", render_report(Path(folder)))) == expected
        assert results.status == finished.status == store.run(run.fleet.run_id).status
        complete = met == asked and all(end.status == "finished" for end in ends)
        assert (results.status == "complete") is complete

    @settings(max_examples=40)
    @given(runs())
    def test_live_and_stored_snapshots_are_equal(
        self, store: MeasurementStore, drawn: tuple[str, list[DrawnSetting]]
    ) -> None:
        run = ended_run(store, *drawn)
        assert run.stored is not None
        assert facts(run.stored) == facts(run.live)

    @settings(max_examples=40)
    @given(runs())
    def test_a_failed_device_is_never_shown_as_done(
        self, store: MeasurementStore, drawn: tuple[str, list[DrawnSetting]]
    ) -> None:
        run = ended_run(store, *drawn)
        ends = drawn[1]
        counts = Counter(end.status for end in ends)
        for snapshot in (run.live, run.stored):
            assert snapshot is not None
            states = [device.state for device in snapshot.devices]
            shown = {"finished": "done"}
            assert states == [shown.get(end.status, end.status) for end in ends]
            text = text_of(render(snapshot))
            for word, state_ in (("✓ done", "finished"), ("✗ failed", "failed"), ("✗ lost", "lost")):
                assert text.count(word) == counts[state_]
            header = text.splitlines()[1]
            assert (f"{counts['failed']} failed" in header) is bool(counts["failed"])
        final = run.events[-1]
        assert isinstance(final, CampaignFinished)
        assert (len(final.devices_failed), len(final.devices_lost)) == (counts["failed"], counts["lost"])

    @settings(max_examples=12)
    @given(runs())
    def test_everything_warns_exactly_of_the_settings_that_were_slowed_too_often(
        self, store: MeasurementStore, drawn: tuple[str, list[DrawnSetting]]
    ) -> None:
        run = ended_run(store, *drawn)
        slowed = {
            f"{device}/{SETTING.label}"
            for (device, _), end in zip(run.fleet.campaign.setting_runs, drawn[1], strict=True)
            if end.qualities.count("slowed") * 4 > len(end.qualities)
        }
        outcome = outcome_of(store, run.fleet.run_id)
        assert run.stored is not None
        texts = [
            text_of(render(run.live)),
            text_of(render(run.stored)),
            text_of(summary(outcome)),
            "\n".join(event_lines(run.events[-1])),
            "\n".join(event_lines(run.stored_events[-1])),
        ]
        with tempfile.TemporaryDirectory() as folder:
            ArtifactFolder(Path(folder)).write(outcome)
            texts.append(re.sub(r"<svg.*?</svg>|<[^>]+>", "", render_report(Path(folder)), flags=re.DOTALL))
        for text in texts:
            warnings = [line for line in text.splitlines() if "WARNING" in line]
            assert len(warnings) == bool(slowed)
            assert set(re.findall(rf"pi\d+-\d+/{SETTING.label}", "".join(warnings))) == slowed


def facts(snapshot: Snapshot) -> list[tuple[object, ...]]:
    """What a stored run must say as the live one did."""
    return [
        (
            device.device,
            device.setting_label,
            device.measurements,
            device.failures,
            device.quality,
            device.targets_asked,
            device.targets_note,
            device.ended,
            device.state if device.ended else None,
            [(target.target_ms, target.met, target.reason) for target in device.targets],
            [target for target in device.targets if target.met],
        )
        for device in snapshot.devices
    ]


class DisturbedDevice(HiddenDevice):
    """Every third measurement is slowed, and after ten the device stays slower."""

    taken = 0

    def measure(self, task: MeasureTask, finished_unix_s: float) -> Measurement:
        self.taken += 1
        found = super().measure(task, finished_unix_s)
        slowed = self.taken % 3 == 0
        return found.model_copy(
            update={
                "quality": "slowed" if slowed else "ok",
                "undisturbed_ms": found.median_ms / (1.5 if slowed else 1.0) / (1.0 if self.taken <= 10 else 1.3),
                "regime_unix_s": 100.0 if self.taken <= 10 else 500.0,
            }
        )


@pytest.mark.parametrize("targets", ["auto:3", "1.2,2,3"])
def test_a_campaign_with_failures_and_losses_reads_alike_live_and_from_its_store(targets: str) -> None:
    plan = CampaignPlan(targets=targets, budget=14, initial_design=6, wait_for=4, grace_s=20, deadline_s=30)
    fleet = Simulation(plan)
    steady, disturbed, broken, gone = (fleet.add(f"pi{n}", seed=n) for n in range(4))
    steady.fails = lambda task: "crashed" if len(steady.measured) % 4 == 2 else None
    disturbed.devices = {SETTING: DisturbedDevice(1)}
    broken.fails = lambda task: "crashed"
    fleet.begin()
    for step in range(2000):
        fleet.step()
        if step == 12:
            gone.mute = True
            fleet.broker.cut("pi3")
            fleet.agents.remove(gone)
        if step % 7 == 0 and fleet.store.devices("run-1"):
            run = EndedRun(fleet)
            run.read_store()
            live = facts(run.live)
            assert run.stored is not None
            for mine, theirs in zip(facts(run.stored), live, strict=True):
                assert mine[:5] == theirs[:5]  # targets and ends are stored every two seconds
        if fleet.campaign.finished:
            break
    fleet.campaign.finish()
    run = EndedRun(fleet)
    run.read_store()
    assert run.stored is not None
    assert facts(run.stored) == facts(run.live)
    states = {device.device: device.state for device in run.stored.devices}
    assert states == {"pi0": "done", "pi1": "done", "pi2": "failed", "pi3": "lost"}
    outcome = outcome_of(fleet.store, "run-1")
    with tempfile.TemporaryDirectory() as folder:
        results = ArtifactFolder(Path(folder)).write(outcome)
    for device, record in zip(run.live.devices, results.fleet, strict=True):
        assert (record.measurements, record.failed_measurements) == (device.measurements, device.failures)
        assert record.data_quality == device.quality
        assert len(record.targets) == len(device.targets)
    failing = next(device for device in run.live.devices if device.device == "pi2")
    assert failing.failures == failing.measurements == 6
    shaken = next(device for device in results.fleet if device.device == "pi1")
    assert [regime.slowdown for regime in shaken.regimes] == pytest.approx([1.0, 1.3])
    for kind in (RegimeChanged, MeasurementsSlowed):
        told = [event for event in fleet.events if isinstance(event, kind)]
        again = [event for event in run.stored_events if isinstance(event, kind)]
        assert [event.device for event in told] == ["pi1"]
        assert again == told


def test_a_result_that_comes_after_another_attempt_of_its_task_counts_nowhere() -> None:
    fleet = Simulation(CampaignPlan(targets="auto:2", budget=10, initial_design=6))
    fleet.add("pi0")
    fleet.begin()
    fleet.run(until=lambda: len(fleet.store.outcomes("run-1")) >= 4)
    first, second = fleet.store.outcomes("run-1")[:2]
    late = measurement(9.0, quality="slowed", undisturbed_ms=1.0)
    fleet.store.add_outcome(TaskKey(task_id=first.key.task_id, attempt=7), late, 1.0)
    failed = Failed(task=TaskKey(task_id=second.key.task_id, attempt=7), reason="timeout")
    fleet.store.add_outcome(failed.task, failed, 1.0)
    run = EndedRun(fleet)
    run.read_store()
    assert run.stored is not None
    (live,), (stored,) = run.live.devices, run.stored.devices
    assert (stored.measurements, stored.failures, stored.quality) == (live.measurements, live.failures, live.quality)
    (device,) = outcome_of(fleet.store, "run-1").devices
    assert (device.measurements, device.failed_measurements, device.quality) == (live.measurements, 0, live.quality)
    assert [row.measurement for row in device.rows if not row.counted] == [late]


def test_a_resumed_run_tells_no_change_again() -> None:
    plan = CampaignPlan(targets="auto:2", budget=20, initial_design=6)
    fleet = Simulation(plan)
    agent = fleet.add("pi0")
    agent.devices = {SETTING: DisturbedDevice(0)}
    fleet.begin()
    fleet.run(until=lambda: any(isinstance(event, RegimeChanged) for event in fleet.events))
    fleet.vanish()
    told = len(fleet.events)
    fleet.begin(resume=True)
    fleet.run()
    fleet.campaign.finish()
    assert not any(isinstance(event, RegimeChanged | MeasurementsSlowed) for event in fleet.events[told:])
    finished = fleet.events[-1]
    assert isinstance(finished, CampaignFinished)
    assert finished.devices_slowed == ("pi0/onnxruntime_cpu_1t_fp32",)
    assert "WARNING" in event_lines(finished)[-1]


def test_given_targets_are_listed_from_the_first_moment_on() -> None:
    fleet = Simulation(CampaignPlan(targets="1.2,2,3"))
    fleet.add("pi0")
    fleet.begin()
    fleet.run(until=lambda: bool(fleet.campaign.setting_runs))
    (device,) = fleet.campaign.snapshot(fleet.clock.unix()).devices
    assert device.measurements == 0
    assert [target.target_ms for target in device.targets] == [1.2, 2.0, 3.0]
    text = text_of(render(fleet.campaign.snapshot(fleet.clock.unix())))
    assert "0 of 3 targets met" in text
    assert text.count("searching") >= 3
    assert "chosen" not in text
    assert target_totals([device]) == TargetTotals(0, 3)


class StuckEvaluations(InlineExecutor):
    """Plans at once; the accuracy of a winner never comes."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future() if fn.__name__ == "accuracy" else super().submit(fn, *args, **kwargs)


class SlowlyEvaluated(StandInModels):
    def evaluates_at_once(self, model: CalibratedModel) -> bool:
        return False


def test_a_winner_is_kept_where_its_device_is_lost_before_its_accuracy_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simulated_fleet, "InlineExecutor", StuckEvaluations)
    fleet = Simulation(CampaignPlan(targets="auto:3", budget=10, initial_design=6, grace_s=5), models=SlowlyEvaluated())
    fleet.add("pi0")
    fleet.begin()
    setting_runs = fleet.campaign.setting_runs
    fleet.run(
        until=lambda: any(
            s.status == "met" for setting_run in setting_runs.values() for s in setting_run.search.targets
        )
    )
    fleet.broker.cut("pi0")
    fleet.agents.clear()
    fleet.run()
    fleet.campaign.finish()
    live = target_totals(fleet.campaign.snapshot(fleet.clock.unix()).devices)
    assert live == TargetTotals(1, 3)
    outcome = outcome_of(fleet.store, "run-1")
    assert target_totals(outcome.devices) == live
    assert [target.met for target in outcome.devices[0].targets] == [
        target.met for target in fleet.campaign.snapshot(0.0).devices[0].targets
    ]
