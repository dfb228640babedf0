"""The pages of a dashboard show what is stored and published, renew what has changed, and say what to do on a fault."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rigs.dashboards import CURVE, PageRig
from rigs.simulated_fleet import TOPICS, Simulation

from fleetnas.coordinator.dashboard.comparison import compared_targets, remarks_on
from fleetnas.coordinator.dashboard.published_runs import LiveRuns
from fleetnas.coordinator.dashboard.rendering import Page
from fleetnas.coordinator.dashboard.run_state import RunState
from fleetnas.coordinator.monitoring.publisher import SILENT_AFTER_S, Publisher
from fleetnas.coordinator.monitoring.store_feed import StoreFeed
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, Snapshot, TargetSnapshot
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.coordinator.report.stored_outcome import outcome_of, stored_totals
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import StoreError, UsageError
from fleetnas.fleet_protocol.messages import Measurement
from fleetnas.fleet_protocol.transports.base import Disconnected, Transport, take_events

PLAN = CampaignPlan(targets="auto:2", budget=10, initial_design=6, wait_for=2, grace_s=5)
LABEL = "onnxruntime_cpu_1t_fp32"


def begun(store: MeasurementStore, run_id: str = "run-1", **changes: object) -> Simulation:
    fleet = Simulation(PLAN.model_copy(update=changes), store=store, run_id=run_id)
    fleet.add("pi0")
    fleet.add("pi1", seed=1)
    fleet.begin()
    return fleet


def finished(store: MeasurementStore, run_id: str = "run-1", **changes: object) -> Simulation:
    fleet = begun(store, run_id, **changes)
    fleet.run()
    fleet.campaign.finish()
    return fleet


@pytest.fixture(scope="module")
def ended() -> Iterator[PageRig]:
    """Two runs that have ended; tests only read."""
    store = MeasurementStore.open("sqlite://")
    finished(store)
    finished(store, "run-2", seed=7)
    yield PageRig(store)
    store.close()


@pytest.fixture
def rig() -> Iterator[PageRig]:
    store = MeasurementStore.open("sqlite://")
    yield PageRig(store)
    store.close()


def text_of(page: Page, part: str = "") -> str:
    html = " ".join(str(each.html) for each in page.parts if part in ("", each.name))
    return " ".join(re.sub(r"<[^>]*>", " ", html.replace("<wbr>", "")).split())


def names(page: Page, etag: str) -> list[str]:
    return [part.name for part in page.changed(etag)]


class TestRuns:
    def test_an_empty_store_says_how_to_begin(self, rig: PageRig) -> None:
        assert "holds no run yet" in text_of(rig.pages.runs(1))
        assert "fleetnas demo" in text_of(rig.pages.runs(1))

    def test_every_run_is_listed_the_newest_first_with_the_counts_of_the_other_views(self, ended: PageRig) -> None:
        rows = ended.sources.runs.page(1).rows
        assert {row.run_id for row in rows} == {"run-1", "run-2"}
        for row in rows:
            totals = stored_totals(ended.store, row.run_id, 2)
            assert row.met == f"{totals.met} of {totals.asked}"
            assert (row.status, row.devices, row.targets) == ("complete", "pi0, pi1", "auto:2")

    def test_a_run_of_another_version_hides_no_other(self, rig: PageRig) -> None:
        finished(rig.store)
        run = rig.store.run("run-1")
        rig.store.create_run(replace(run, run_id="odd", settings={"other": 1}, created_unix_s=2.0))
        rows = rig.sources.runs.page(1).rows
        assert [(row.run_id, row.met) for row in rows] == [("odd", "?"), ("run-1", "4 of 4")]
        with pytest.raises(StoreError, match="use the fleetnas that made it"):
            rig.pages.run("odd")

    def test_a_run_with_a_name_is_shown_with_it(self, rig: PageRig) -> None:
        finished(rig.store)
        run = rig.store.run("run-1")
        rig.store.create_run(replace(run, run_id="run-2", name="pi-shelf", created_unix_s=2.0))
        assert "run-2 pi-shelf" in text_of(rig.pages.runs(1))
        assert rig.pages.run("run-2").heading == "Run run-2: pi-shelf"
        assert rig.pages.run("run-1").heading == "Run run-1"

    def test_many_runs_have_pages(self, rig: PageRig) -> None:
        finished(rig.store)
        run = rig.store.run("run-1")
        for number in range(130):
            rig.store.create_run(replace(run, run_id=f"many-{number}", created_unix_s=100.0 + number))
        first, second = rig.sources.runs.page(1), rig.sources.runs.page(2)
        assert (len(first.rows), len(second.rows), first.pages) == (100, 31, 2)
        assert first.rows[0].run_id == "many-129"
        assert second.rows[-1].run_id == "run-1"
        assert rig.sources.runs.page(99).number == 2
        assert "/?page=2" in str(rig.pages.runs(1).parts[0].html)


class TestRun:
    def test_it_shows_progress_fronts_targets_and_events(self, ended: PageRig) -> None:
        page = ended.pages.run("run-1")
        assert "4 of 4 targets met" in text_of(page, "summary")
        assert "20 of 20" in text_of(page, "summary")
        assert f"pi0/{LABEL}" in text_of(page, "devices")
        assert "All devices together" in text_of(page, "fronts")
        assert text_of(page, "targets").count("✓ met") == 4
        assert "run run-1 complete" in text_of(page, "events").partition("measured")[0]
        assert page.every_s == 5.0

    def test_it_shows_what_watch_shows(self, ended: PageRig) -> None:
        update = StoreFeed(ended.store, "run-1", wait=lambda _: None).poll(0)
        assert ended.sources.readers.read("run-1").snapshot == update.snapshot

    def test_its_measurements_are_those_of_the_report(self, ended: PageRig) -> None:
        state = ended.sources.readers.read("run-1")
        for device in outcome_of(ended.store, "run-1").devices:
            rows = [row for row in device.rows if row.counted]
            points = state.points[device.device, device.setting.label]
            assert [p.task_id for p in points] == [row.task_id for row in rows]
            assert [p.measured_ms for p in points] == [row.measurement.median_ms for row in rows]
            assert [p.predicted_ms for p in points] == [row.predicted_ms for row in rows]

    def test_one_that_is_not_there_names_those_that_are(self, ended: PageRig) -> None:
        with pytest.raises(UsageError, match="holds no run 'run-9'; the latest are"):
            ended.pages.run("run-9")

    def test_only_changed_parts_are_sent_while_it_runs(self, rig: PageRig) -> None:
        fleet = begun(rig.store)
        fleet.run(until=lambda: len(rig.store.outcomes("run-1")) >= 4)
        first = rig.pages.run("run-1")
        assert first.every_s == 1.0
        assert names(rig.pages.run("run-1"), first.etag) == []
        before = len(rig.store.outcomes("run-1"))
        fleet.run(until=lambda: len(rig.store.outcomes("run-1")) > before)
        second = rig.pages.run("run-1")
        assert set(names(second, first.etag)) == {"summary", "devices", "fronts", "events"}
        assert names(second, '"of.another.page"') == ["summary", "devices", "fronts", "targets", "events"]
        fleet.run()
        fleet.campaign.finish()
        assert "targets" in names(rig.pages.run("run-1"), second.etag)
        assert "4 of 4 targets met" in text_of(rig.pages.run("run-1"), "summary")

    def test_figures_of_an_unchanged_run_are_drawn_once(self, ended: PageRig) -> None:
        ended.pages.run("run-1")
        version = ended.sources.readers.read("run-1").version
        assert ended.sources.readers.read("run-1").version == version

    def test_a_store_that_goes_away_leaves_the_last_state_with_a_remark(self, tmp_path: Path) -> None:
        rig = PageRig(MeasurementStore.open(tmp_path / "runs.sqlite"))
        finished(rig.store)
        assert "⚠" not in text_of(rig.pages.run("run-1"))
        rig.store.close()
        for file in tmp_path.iterdir():
            file.unlink()
        (tmp_path / "runs.sqlite").mkdir()
        page = rig.pages.run("run-1")
        assert "this is its last known state" in text_of(page)
        assert "4 of 4 targets met" in text_of(page)
        with pytest.raises(StoreError):
            rig.pages.runs(1)

    def test_text_of_devices_is_no_markup(self, rig: PageRig) -> None:
        fleet = finished(rig.store)
        rig.store.put_devices(
            [replace(each, reason="<script>alert(1)</script>") for each in rig.store.devices(fleet.run_id)]
        )
        html = rig.renderer.page(rig.pages.run("run-1")).decode()
        assert "<script>alert" not in html
        assert "&lt;script&gt;alert" in html


class TestDevice:
    def test_it_shows_its_board_figures_and_measurements(self, ended: PageRig) -> None:
        page = ended.pages.device("run-1", ("pi0", LABEL), 0)
        shown = text_of(page)
        for words in (
            "Predicted and measured",
            "Drift",
            "simulated, 1 core",
            "1 to 12 of 12",
            "exploring",
            "verification",
        ):
            assert words in shown
        assert "Failures" not in shown

    def test_measurements_are_for_the_targets_as_they_were_asked_for(self, rig: PageRig) -> None:
        asked = CampaignPlan(targets="fps:1000,1.2").targets
        fleet = finished(rig.store, targets=asked, budget=16, initial_design=8)
        states = next(run for run in fleet.campaign.setting_runs.values() if run.device == "pi0").search.targets
        assert all(state.verified_ms is not None for state in states)
        shown = text_of(rig.pages.device("run-1", ("pi0", LABEL), 0), "measurements")
        for target in ("1000 fps", "1.2 ms"):
            assert f"verification for {target}" in shown

    def test_failures_are_shown_with_their_reasons(self, rig: PageRig) -> None:
        fleet = begun(rig.store)
        fails = iter(["crashed"])
        fleet.agents[0].fails = lambda task: next(fails, None)
        fleet.run()
        fleet.campaign.finish()
        assert "crashed" in text_of(rig.pages.device("run-1", ("pi0", LABEL), 0), "failures")

    def test_long_tables_have_pages(self, rig: PageRig) -> None:
        finished(rig.store, budget=120, initial_design=100)
        first = rig.pages.device("run-1", ("pi0", LABEL), 0)
        assert "1 to 100 of" in text_of(first, "measurements")
        assert "?from=100" in str(first.parts[3].html)
        second = rig.pages.device("run-1", ("pi0", LABEL), 100)
        assert "101 to" in text_of(second, "measurements")
        assert "?from=0" in str(second.parts[3].html)

    def test_one_that_is_not_there_names_those_that_are(self, ended: PageRig) -> None:
        with pytest.raises(UsageError, match=f"no device setting pi9/x; it has pi0/{LABEL}, pi1"):
            ended.pages.device("run-1", ("pi9", "x"), 0)


class TestCompare:
    def test_targets_of_both_runs_are_side_by_side(self, ended: PageRig) -> None:
        page = ended.pages.compare(["run-1", "run-2"])
        shown = text_of(page)
        assert "budget 10, seed 0" in shown
        assert "budget 10, seed 7" in shown
        assert "⚠" not in shown
        assert "A: run-1" in text_of(page, "figures")

    def test_a_run_against_itself_gains_nothing(self, ended: PageRig) -> None:
        shown = text_of(ended.pages.compare(["run-1", "run-1"]), "targets")
        assert shown.count("+0.0") == 4

    def test_figures_that_cannot_be_compared_are_remarked_on(self, rig: PageRig) -> None:
        finished(rig.store)
        run = rig.store.run("run-1")
        other = {**run.settings, "dataset": "textures"}
        rig.store.create_run(replace(run, run_id="other", settings=other))
        shown = text_of(rig.pages.compare(["run-1", "other"]), "summary")
        assert "about different data: not known and textures" in shown
        assert "no device setting in common" in shown

    def test_another_number_of_runs_is_asked_for_two(self, ended: PageRig) -> None:
        for chosen in ([], ["run-1"], ["run-1", "run-2", "run-1"]):
            page = ended.pages.compare(chosen)
            assert "Choose two runs" in text_of(page)
            assert str(page.parts[0].html).count("<select") == 2


class TestPortfolio:
    def test_the_curve_comes_once_it_is_computed(self, rig: PageRig) -> None:
        finished(rig.store)
        assert "being computed" in text_of(rig.pages.portfolio("run-1", renew=True))
        rig.background.run()
        shown = text_of(rig.pages.portfolio("run-1", renew=False))
        assert "82.00 % 4 of 4" in shown
        assert "Accuracy by the number of models" in shown
        rig.pages.portfolio("run-1", renew=True)
        assert not rig.background.waiting  # nothing was measured since

    def test_it_is_computed_again_after_more_measurements_and_only_where_asked(self, rig: PageRig) -> None:
        fleet = begun(rig.store)
        fleet.run(until=lambda: len(rig.store.outcomes("run-1")) >= 4)
        rig.pages.portfolio("run-1", renew=True)
        rig.background.run()
        fleet.run()
        rig.pages.portfolio("run-1", renew=False)
        assert not rig.background.waiting
        rig.pages.portfolio("run-1", renew=True)
        assert len(rig.background.waiting) == 1

    def test_what_is_missing_for_it_is_shown(self) -> None:
        def fail(run_id: str) -> object:
            raise UsageError("there is no bundle digits.supernet; give its path")

        rig = PageRig(MeasurementStore.open("sqlite://"), curve_of=fail)
        finished(rig.store)
        rig.pages.portfolio("run-1", renew=True)
        rig.background.run()
        assert "there is no bundle digits.supernet" in text_of(rig.pages.portfolio("run-1", renew=False))

    def test_the_curve_of_one_model_is_a_table(self, rig: PageRig) -> None:
        rig = PageRig(rig.store, curve_of=lambda run_id: (CURVE[0][:1], 4))
        finished(rig.store)
        rig.pages.portfolio("run-1", renew=True)
        rig.background.run()
        assert "75.00 % 3 of 4" in text_of(rig.pages.portfolio("run-1", renew=False))


class TestPublished:
    """What a coordinator publishes is shown while it is at work."""

    def _live(self, fleet: Simulation) -> tuple[LiveRuns, Publisher, Transport]:
        transport = fleet.broker.transport("dashboard")
        live = LiveRuns(transport, TOPICS, fleet.clock)
        transport.start()
        return live, Publisher(fleet.transport, TOPICS, fleet.run_id, fleet.clock), transport

    def _publish(self, fleet: Simulation, publisher: Publisher) -> None:
        for _ in range(3):
            publisher.update(fleet.campaign.snapshot(fleet.clock.unix()))
            fleet.clock.now_s += 1

    def _take(self, live: LiveRuns, transport: Transport) -> None:
        for event in take_events(transport, 0, 1000):
            live.take(event)

    def test_its_states_stand_for_those_of_the_store(self, rig: PageRig) -> None:
        fleet = begun(rig.store)
        live, publisher, transport = self._live(fleet)
        shown = PageRig(rig.store, live)
        fleet.run(until=lambda: len(rig.store.outcomes("run-1")) >= 4)
        self._publish(fleet, publisher)
        self._take(live, transport)
        state = shown.sources.readers.read("run-1")
        assert state.from_broker
        assert state.snapshot.devices == fleet.campaign.snapshot(fleet.clock.unix()).devices
        fleet.clock.now_s += SILENT_AFTER_S + 1
        assert not shown.sources.readers.read("run-1").from_broker

    def test_a_run_of_another_store_is_listed_and_shown_without_figures(self, rig: PageRig) -> None:
        fleet = begun(MeasurementStore.open("sqlite://"), "elsewhere")
        live, publisher, transport = self._live(fleet)
        fleet.run(until=lambda: len(fleet.store.outcomes("elsewhere")) >= 4)
        self._publish(fleet, publisher)
        self._take(live, transport)
        shown = PageRig(rig.store, live)
        (row,) = shown.sources.runs.page(1).rows
        assert (row.run_id, row.stored) == ("elsewhere", False)
        page = shown.pages.run("elsewhere")
        assert "not in the store of this dashboard" in text_of(page)
        assert f"pi0/{LABEL}" in text_of(page)
        assert "/devices/" not in str(page.parts[1].html)
        with pytest.raises(UsageError, match="needs a search in this dashboard's store"):
            shown.pages.portfolio("elsewhere", renew=True)
        publisher.close()
        self._take(live, transport)
        with pytest.raises(UsageError, match="holds no run"):
            shown.pages.run("elsewhere")

    def test_a_broker_that_refuses_is_a_remark_and_the_store_is_shown(self, rig: PageRig) -> None:
        fleet = finished(rig.store)
        live, _, _ = self._live(fleet)
        live.take(Disconnected("not authorized", fatal=True))
        shown = PageRig(rig.store, live)
        assert "not authorized" in text_of(shown.pages.runs(1))
        assert "run-1" in text_of(shown.pages.runs(1))
        assert "not authorized" in text_of(shown.pages.run("run-1"))


def test_outcomes_without_samples_are_the_same_but_for_these(ended: PageRig) -> None:
    whole = ended.store.outcomes("run-1")
    thin = ended.store.outcome_table.without_samples("run-1")
    assert [
        replace(each, task=replace(each.task, calibration=None), outcome=_thin(each.outcome)) for each in whole
    ] == thin
    assert ended.store.outcome_table.without_samples("run-1", after=whole[4].number) == thin[5:]
    assert ended.store.outcome_table.without_samples("run-9") == []


def _thin(outcome: object) -> object:
    if not isinstance(outcome, Measurement):
        return outcome
    left = {
        "times_us": (),
        "block_medians_ms": (),
        "levels_ms": (),
        "before": Measurement.model_fields["before"].default,
    }
    return outcome.model_copy(update=left)


def test_an_interrupted_run_is_shown_as_such_and_goes_on(rig: PageRig) -> None:
    fleet = begun(rig.store)
    fleet.run(until=lambda: len(rig.store.outcomes("run-1")) >= 4)
    rig.store.set_run_status("run-1", RunStatus.INTERRUPTED)
    page = rig.pages.run("run-1")
    assert "interrupted" in text_of(page, "summary")
    assert page.every_s == 5.0
    rig.store.set_run_status("run-1", RunStatus.RUNNING)
    assert rig.pages.run("run-1").every_s == 1.0


def test_targets_of_about_the_same_latency_are_compared(rig: PageRig) -> None:
    def state(*targets_ms: float) -> RunState:
        targets = tuple(TargetSnapshot(ms, verified_ms=ms, accuracy=0.01 * ms, met=True) for ms in targets_ms)
        devices = (DeviceSnapshot("pi4", "s", "done", targets=targets),)
        return RunState(Snapshot("r", "x", 0.0, 0.0, "complete", devices), RunStatus.COMPLETE, 1)

    rows = compared_targets((state(10.0, 20.0, 40.0), state(10.4, 19.9, 20.5, 80.0)))
    assert [(row.target, row.gain is None) for row in rows] == [
        ("10 ms / 10.4 ms", False),
        ("20 ms / 19.9 ms", False),
        ("20.5 ms", True),
        ("40 ms", True),
        ("80 ms", True),
    ]
    assert rows[0].gain == pytest.approx(0.4)


def test_targets_of_other_kinds_are_compared_by_kind_and_value() -> None:
    def state(*texts: str) -> RunState:
        targets = tuple(TargetSnapshot(20.0, target=text, verified_ms=19.0, accuracy=0.7, met=True) for text in texts)
        devices = (DeviceSnapshot("pi4", "s", "done", targets=targets),)
        return RunState(Snapshot("r", "x", 0.0, 0.0, "complete", devices), RunStatus.COMPLETE, 1)

    rows = compared_targets((state("", "p95:20", "fps:50"), state("fps:50", "p95:21", "")))
    assert sorted((row.target, row.gain is None) for row in rows) == [
        ("20 ms", False),
        ("50 fps", False),
        ("p95 20 ms", True),
        ("p95 21 ms", True),
    ]


def test_runs_that_ask_for_different_things_have_a_remark() -> None:
    def state(plan: CampaignPlan) -> RunState:
        devices = (DeviceSnapshot("pi4", "s", "done"),)
        snapshot = Snapshot("r", "x", 0.0, 0.0, "complete", devices)
        return RunState(snapshot, RunStatus.COMPLETE, 1, plan=plan)

    plain = CampaignPlan(targets="20")
    sustained = CampaignPlan(targets="20", conditions="sustained", bounds=Bounds(parameters=4e6))
    assert remarks_on((state(plain), state(plain))) == []
    assert remarks_on((state(plain), state(sustained))) == [
        "the latencies were measured under different conditions: as-is and sustained",
        "the winners have different bounds: none and at most 4,000,000 parameters",
    ]
