"""The rules that every view, file, event and metric takes from one place."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rigs.simulated_fleet import measurement

from fleetnas.coordinator.records.budget import counts_against_budget
from fleetnas.coordinator.records.data_quality import DataQuality, QualityTally, regimes_of
from fleetnas.coordinator.records.predictor_error import FEWEST_HELD_OUT, PredictorError
from fleetnas.coordinator.records.statuses import RunStatus, SettingStatus
from fleetnas.coordinator.records.totals import TargetTotals, run_end, target_totals, targets_asked, unreached
from fleetnas.coordinator.records.verdict import meets_target
from fleetnas.coordinator.view import wording
from fleetnas.fleet_protocol.messages import Measurement


def taken(quality: str = "ok", slowdown: float | None = 1.0, since_s: float = 100.0) -> Measurement:
    undisturbed_ms = None if slowdown is None else 2.0 / slowdown
    return measurement(2.0, quality=quality, undisturbed_ms=undisturbed_ms, regime_unix_s=since_s)


MEASUREMENTS = st.lists(
    st.builds(
        taken,
        st.sampled_from(("ok", "noisy", "slowed")),
        st.none() | st.floats(0.5, 8.0),
        st.sampled_from((0.0, 100.0, 200.0, 300.0)),
    ),
    max_size=40,
)


class TestBudget:
    @pytest.mark.parametrize(
        ("purpose", "target_ms", "counts"),
        [
            ("initial-design", None, True),
            ("candidate", None, True),
            ("candidate", 2.0, False),  # in place of a winner that missed its target
            ("verification", 2.0, False),
        ],
    )
    def test_what_counts(self, purpose: str, target_ms: float | None, counts: bool) -> None:
        assert counts_against_budget(purpose, target_ms) is counts


class TestVerdict:
    @pytest.mark.parametrize(
        ("verified_ms", "typical_ms", "met"),
        [
            (None, None, False),
            (None, 1.0, False),
            (2.0, None, True),
            (2.001, None, False),
            (1.9, 2.0, True),
            (1.9, 2.001, False),  # within it in a lucky moment only
            (2.001, 1.9, False),
        ],
    )
    def test_both_latencies_must_be_within_the_target(
        self, verified_ms: float | None, typical_ms: float | None, met: bool
    ) -> None:
        assert meets_target(2.0, verified_ms, typical_ms) is met


@dataclass(frozen=True)
class Target:
    met: bool | None
    target_ms: float | None = 5.0


@dataclass(frozen=True)
class Setting:
    targets: tuple[Target, ...]
    targets_asked: int


class TestTotals:
    def test_a_target_that_was_asked_for_counts_whatever_became_of_its_device(self) -> None:
        explicit_and_failed = Setting((), targets_asked(3, None))
        automatic_and_lost = Setting((), targets_asked(4, None))
        resolved_to_two = Setting((Target(True), Target(None)), targets_asked(4, 2))
        done = Setting((Target(True), Target(False), Target(True)), targets_asked(3, 3))
        settings = [explicit_and_failed, automatic_and_lost, resolved_to_two, done]
        assert target_totals(settings) == TargetTotals(met=3, asked=3 + 4 + 2 + 3)

    @given(st.lists(st.tuples(st.lists(st.sampled_from((True, False, None)), max_size=5), st.integers(0, 6))))
    def test_a_total_is_the_sum_of_its_settings(self, drawn: list[tuple[list[bool | None], int]]) -> None:
        settings = [Setting(tuple(Target(met) for met in mets), asked) for mets, asked in drawn]
        parts = [target_totals([setting]) for setting in settings]
        totals = target_totals(settings)
        assert totals == TargetTotals(sum(part.met for part in parts), sum(part.asked for part in parts))
        assert totals.met <= totals.asked

    @pytest.mark.parametrize(
        ("met", "asked", "statuses", "end"),
        [
            (4, 4, ["finished"], "complete"),
            (4, 4, ["finished", "failed"], "partial"),
            (4, 6, ["finished", "finished"], "partial"),
            (0, 4, ["finished"], "failed"),
            (0, 0, [], "failed"),
        ],
    )
    def test_a_run_is_complete_when_every_target_asked_for_is_met(
        self, met: int, asked: int, statuses: list[str], end: str
    ) -> None:
        assert run_end(TargetTotals(met, asked), map(SettingStatus, statuses)) is RunStatus(end)

    def test_why_a_target_was_not_reached_differs_by_the_end_of_its_device(self) -> None:
        assert len({unreached(status) for status in SettingStatus}) == 4


class TestDataQuality:
    @given(MEASUREMENTS)
    def test_every_measurement_is_counted_once(self, measurements: list[Measurement]) -> None:
        quality = DataQuality.of(measurements)
        assert quality.measured == len(measurements)
        assert quality.unknown_speed == sum(each.undisturbed_ms is None for each in measurements)
        known = [each.slowdown for each in measurements if each.slowdown is not None]
        assert quality.largest_slowdown == (max(known) if known else None)
        assert sum(regime.measurements for regime in regimes_of(measurements)) == len(measurements)

    @given(MEASUREMENTS, st.randoms(use_true_random=False))
    def test_the_order_of_arrival_changes_nothing(self, measurements: list[Measurement], random: object) -> None:
        shuffled = list(measurements)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        assert DataQuality.of(shuffled) == DataQuality.of(measurements)
        assert regimes_of(shuffled) == regimes_of(measurements)

    @given(MEASUREMENTS)
    def test_the_loud_line_is_there_exactly_when_more_than_a_quarter_was_slowed(
        self, measurements: list[Measurement]
    ) -> None:
        quality = DataQuality.of(measurements)
        slowed = sum(each.quality == "slowed" for each in measurements)
        assert bool(wording.slowed_warning([("pi/ort", quality)])) is (slowed > 0.25 * len(measurements))
        assert quality.often_slowed is (quality.slowed_share > 0.25)

    @given(MEASUREMENTS)
    def test_a_running_search_warns_once_and_from_eight_measurements_on(self, measurements: list[Measurement]) -> None:
        tally = QualityTally()
        warned_at = [n for n, each in enumerate(measurements, 1) if "often_slowed" in tally.add(each)]
        due = [
            n
            for n in range(8, len(measurements) + 1)
            if sum(each.quality == "slowed" for each in measurements[:n]) * 4 > n
        ]
        assert warned_at == due[:1]

    @given(st.lists(st.sampled_from((0.0, 100.0, 200.0, 300.0)), max_size=20))
    def test_a_lasting_speed_is_announced_once_and_the_first_never(self, since: list[float]) -> None:
        tally = QualityTally()
        announced = [s for s in since if "regime_changed" in tally.add(taken("ok", 1.0 + s / 100.0, s))]
        told = list(dict.fromkeys(s for s in since if s))
        assert announced == told[1:]
        assert tally.quality.regimes == max(len(told), min(len(since), 1))

    def test_an_agent_that_was_started_again_at_the_same_speed_has_no_new_regime(self) -> None:
        tally = QualityTally()
        found = [tally.add(taken("ok", slowdown, since)) for slowdown, since in ((1.0, 100.0), (1.02, 200.0))]
        assert found == [(), ()]
        assert tally.quality.regimes == 1

    def test_a_regime_has_its_typical_slow_down(self) -> None:
        slowdowns = [(1.0, 100.0), (1.1, 100.0), (4.0, 100.0), (1.5, 200.0), (None, 200.0), (None, 0.0)]
        found = regimes_of([taken("ok", slowdown, since) for slowdown, since in slowdowns])
        assert [(each.since_unix_s, each.measurements) for each in found] == [(None, 1), (100.0, 3), (200.0, 2)]
        assert [each.slowdown for each in found] == [None, pytest.approx(1.1), pytest.approx(1.5)]


class TestWording:
    @given(st.floats(0, 500), st.integers(0, 40))
    def test_an_error_over_few_measurements_is_never_shown(self, mape_percent: float, held_out: int) -> None:
        error = PredictorError(mape_percent, 0.9, held_out)
        for short in (False, True):
            text = wording.predictor_error(error, short=short)
            assert str(held_out) in text
            assert ("%" in text) is (held_out >= FEWEST_HELD_OUT)
            assert ("too few" in text) is (held_out < FEWEST_HELD_OUT)

    @pytest.mark.parametrize(
        ("typical_ms", "text"), [(0.39, "0.385"), (0.3928, "0.385 (typical 0.393)"), (0.37, "0.385 (typical 0.370)")]
    )
    def test_the_typical_latency_stands_beside_the_verified_one_where_they_differ(
        self, typical_ms: float, text: str
    ) -> None:
        assert wording.verified(0.385, typical_ms) == text
        assert wording.verified(0.385, None) == "0.385"

    def test_a_warning_names_the_worst_first_and_not_all_of_a_large_fleet(self) -> None:
        settings = [(f"pi{n}", DataQuality(ok=20 - n, slowed=n)) for n in range(20)]
        warning = wording.slowed_warning(settings)
        assert warning.startswith("WARNING")
        assert "on 14 device settings: pi19 (19 of 20), pi18 (18 of 20)" in warning
        assert warning.endswith("9 more")
