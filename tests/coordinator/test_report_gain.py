"""What the report says is gained: winners beside what they are compared with."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rigs.outcome_examples import architecture, artifacts, campaign_outcome, device_outcome

from fleetnas.coordinator.records.outcome import DeviceOutcome, TakenMeasurement, TargetOutcome
from fleetnas.coordinator.report.artifacts import read_results
from fleetnas.coordinator.report.gain import MOST_ACCURATE, Gain, Network, device_gain, gain_text, summary
from fleetnas.coordinator.report.html import MAX_GAINS, render_report
from fleetnas.coordinator.report.results import ComparisonResult, Results
from fleetnas.coordinator.report.target_names import is_about
from fleetnas.coordinator.report.tracked_values import metrics_of
from fleetnas.coordinator.report.winner_table import winner_rows
from fleetnas.fleet_protocol.layer_times import LayerTime


def device(
    winners: Sequence[tuple[float, float]], measured: Sequence[tuple[float, float, str]] = (), name: str = "board"
) -> DeviceOutcome:
    """A device with winners and searched subnets, each a latency in ms and a predicted accuracy."""
    known = device_outcome(name, measurements=max(len(measured), 1))
    targets = [
        TargetOutcome(
            round(latency_ms + 0.5, 3),
            architecture=architecture(np.random.default_rng(index)),
            verified_ms=latency_ms,
            predicted_accuracy=accuracy,
        )
        for index, (latency_ms, accuracy) in enumerate(winners)
    ]
    rows = [
        dataclasses.replace(
            row,
            predicted_accuracy=accuracy,
            measurement=row.measurement.model_copy(
                update={"median_ms": latency_ms, "quality": quality, "undisturbed_ms": None}
            ),
        )
        for row, (latency_ms, accuracy, quality) in zip(known.rows, measured, strict=False)
    ]
    return dataclasses.replace(known, targets=tuple(targets), rows=tuple(rows))


def gain_of(found: DeviceOutcome, tmp_path: Path) -> Gain | None:
    results = artifacts_without_models(tmp_path, found)
    return device_gain(results.fleet[0], found.rows)


def artifacts_without_models(tmp_path: Path, *devices: DeviceOutcome) -> Results:
    from fleetnas.coordinator.report.artifacts import ArtifactFolder

    return ArtifactFolder(tmp_path).write(campaign_outcome(*devices))


def test_winners_are_compared_with_the_most_accurate_subnet_measured(tmp_path: Path) -> None:
    measured = [(12.0, 0.80, "ok"), (3.0, 0.70, "ok"), (90.0, 0.99, "slowed")]
    found = gain_of(device([(4.0, 0.797), (2.0, 0.75)], measured), tmp_path)
    assert found is not None
    assert (found.compared_with.name, found.compared_with.latency_ms) == (MOST_ACCURATE, 12.0)
    assert (found.winner.latency_ms, found.predicted) == (4.0, True)
    assert found.text == "3.0x faster at −0.3 points"


def test_of_winners_as_good_the_fastest_shows_the_gain_else_the_most_accurate(tmp_path: Path) -> None:
    measured = [(12.0, 0.80, "ok")]
    near = gain_of(device([(6.0, 0.799), (4.0, 0.795), (1.0, 0.6)], measured), tmp_path)
    assert near is not None
    assert near.winner.latency_ms == 4.0
    far = gain_of(device([(6.0, 0.75), (1.0, 0.6)], measured), tmp_path)
    assert far is not None
    assert far.text == "2.0x faster at −5.0 points"


def test_without_a_better_subnet_winners_are_compared_with_each_other(tmp_path: Path) -> None:
    found = gain_of(device([(8.0, 0.80), (4.0, 0.795)], [(5.0, 0.7, "ok")]), tmp_path)
    assert found is not None
    assert found.compared_with.name == "winner for 8.5 ms"
    assert found.text == "2.0x faster at −0.5 points"
    assert gain_of(device([(8.0, 0.80)], [(5.0, 0.7, "ok")]), tmp_path) is None
    assert gain_of(device([]), tmp_path) is None


def test_evaluated_accuracies_are_not_mixed_with_predicted_ones(tmp_path: Path) -> None:
    winners = device([(8.0, 0.80), (4.0, 0.79)])
    first, second = winners.targets
    evaluated = dataclasses.replace(
        winners,
        targets=(
            dataclasses.replace(first, accuracy=0.75, accuracy_images=100),
            dataclasses.replace(second, accuracy=0.745, accuracy_images=100),
        ),
    )
    found = gain_of(evaluated, tmp_path)
    assert found is not None
    assert (found.predicted, found.text) == (False, "2.0x faster at −0.5 points")


@pytest.mark.parametrize(
    ("speedup", "points", "text"),
    [
        (2.14, -0.3, "2.1x faster at −0.3 points"),
        (2.0, 0.31, "2.0x faster at +0.3 points"),
        (1.02, 1.2, "as fast at +1.2 points"),
        (0.5, 0.0, "2.0x slower at the same accuracy"),
        (12.4, None, "12x faster"),
    ],
)
def test_gains_in_words(speedup: float, points: float | None, text: str) -> None:
    assert gain_text(speedup, points) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (2.0, 2.4, "2.1x faster at −0.3 points"),
        (1.4, 2.8, "at least 1.4x faster at −0.3 points"),
        (1.47, 2.8, "at least 1.4x faster at −0.3 points"),
        (1.03, 2.8, "at least 1.03x faster at −0.3 points"),
        (1.003, 2.8, "not clearly faster or slower at −0.3 points"),
        (0.0, 5.8, "not clearly faster or slower at −0.3 points"),
        (0.0, None, "not clearly faster or slower at −0.3 points"),
    ],
)
def test_a_gain_is_told_no_more_precisely_than_it_is_known(low: float, high: float | None, text: str) -> None:
    assert gain_text(2.14, -0.3, low, high) == text
    network = Network("winner", 1.0, 0.8)
    gain = Gain(network, network, 2.14, -0.3, predicted=False, low=low, high=high)
    assert gain.text == text
    assert summary([gain]) == text


@pytest.mark.parametrize(
    ("percent", "text"), [(0.5, "3.0x faster"), (40.0, "at least 2.1x faster"), (250.0, "not clearly faster or slower")]
)
def test_a_gain_is_told_no_more_precisely_than_its_winner_was_verified(
    tmp_path: Path, percent: float, text: str
) -> None:
    found = device([(4.0, 0.797)], [(12.0, 0.80, "ok"), (4.0, 0.797, "ok")])
    subnet, verification = found.rows
    measured = verification.measurement.model_copy(update={"half_width_percent": percent})
    verification = dataclasses.replace(verification, purpose="verification", measurement=measured)
    gain = gain_of(dataclasses.replace(found, rows=(subnet, verification)), tmp_path)
    assert gain is not None
    assert gain.text.startswith(text)


def test_a_noisy_subnet_is_no_measure_of_a_gain(tmp_path: Path) -> None:
    noisy = device([(4.0, 0.79)], [(8.0, 0.80, "noisy")])
    rows = [
        dataclasses.replace(row, measurement=row.measurement.model_copy(update={"half_width_percent": 177.0}))
        if row.purpose != "verification"
        else row
        for row in noisy.rows
    ]
    found = gain_of(dataclasses.replace(noisy, rows=tuple(rows)), tmp_path)
    assert found is not None
    assert found.text == "not clearly faster or slower at −1.0 points"


def test_the_page_begins_with_the_gain_and_the_median_of_all(tmp_path: Path) -> None:
    devices = [
        device([(4.0, 0.799 - 0.001 * index)], [(8.0 + index, 0.80, "ok")], f"board-{index:02}")
        for index in range(MAX_GAINS + 3)
    ]
    artifacts_without_models(tmp_path, *devices)
    page = render_report(tmp_path)
    assert page.index("What is gained") < page.index("<svg") < page.index("About this run")
    assert page.count("accuracies as predicted") == MAX_GAINS
    assert f"The first {MAX_GAINS} of {MAX_GAINS + 3} device settings are shown" in page
    results = read_results(tmp_path)
    gains = [gain for each, row in zip(results.fleet, devices, strict=True) if (gain := device_gain(each, row.rows))]
    assert summary(gains) == "3.8x faster at −0.8 points, the median of 15 device settings"
    assert summary(gains) in page


def test_every_setting_stands_in_the_figure_and_its_legend(tmp_path: Path) -> None:
    few = [device_outcome(f"board-{index}", seed=index) for index in range(3)]
    artifacts(tmp_path, campaign_outcome(*few))
    figure = render_report(tmp_path).partition("<figcaption>All fronts")[2].partition("</figure>")[0]
    for each in few:
        assert figure.count(f">{each.label}</text>") == 1
    assert "3 device settings" in figure
    many = [device_outcome(f"board-{index}", measurements=3) for index in range(17)]
    artifacts(tmp_path / "many", campaign_outcome(*many))
    figure = render_report(tmp_path / "many").partition("<figcaption>All fronts")[2].partition("</figure>")[0]
    assert ">one line per device setting</text>" in figure


def test_a_plot_of_one_point_is_not_drawn(tmp_path: Path) -> None:
    one = dataclasses.replace(
        device_outcome("board", measurements=1, targets_ms=(5.0,)), targets=(), predictor_history=()
    )
    artifacts_without_models(tmp_path, one)
    assert "<svg" not in render_report(tmp_path)


def verified(known: DeviceOutcome, layers: tuple[LayerTime, ...] = ()) -> DeviceOutcome:
    """The device, with the verification of its first winner."""
    target, row = known.targets[0], known.rows[0]
    times_us = tuple(float(1000 + index) for index in range(101))
    update = {"model_sha256": target.sha256, "times_us": times_us, "layers": layers}
    measured = row.measurement.model_copy(update=update)
    added: TakenMeasurement = dataclasses.replace(row, task_id="task-v", purpose="verification", measurement=measured)
    return dataclasses.replace(known, rows=(*known.rows, added))


def test_the_networks_of_winners_have_their_costs_and_percentiles(tmp_path: Path) -> None:
    artifacts(tmp_path, campaign_outcome(verified(device_outcome("board"))))
    page = " ".join(render_report(tmp_path).split())
    row = page.partition("<caption>Networks of the winners")[2].partition("</tr>")[2].partition("</tr>")[0]
    for label, value in (
        ("MACs", "3.5 M"),
        ("parameters", "450 k"),
        ("peak", "98.3 kB"),
        ("p50", "1.05"),
        ("p95", "1.09"),
    ):
        assert f'data-label="{label}">{value}</td>' in row, label
    assert "percentiles of 101 samples" in page
    assert page.count('data-label="p50">–</td>') == 3


def test_a_profile_is_a_bar_by_operator_and_a_table(tmp_path: Path) -> None:
    layers = (
        *(LayerTime(name=f"conv{n}", op="Conv", mean_us=10.0 + n) for n in range(20)),
        LayerTime(name="<pool>", op="Pool", mean_us=5.0),
    )
    artifacts(tmp_path, campaign_outcome(verified(device_outcome("board"), layers)))
    page = " ".join(render_report(tmp_path).split())
    assert "Layers of the winner for 1 ms: 21, most time in Conv (99 %)" in page
    assert "Conv: 98.7 % in 20" in page
    assert "<td>conv19</td>" in page
    assert "6 others" in page
    assert "<pool>" not in page
    written = read_results(tmp_path).fleet[0].targets
    assert [len(target.layers) for target in written] == [21, 0, 0, 0]


def test_times_are_those_of_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        artifacts(tmp_path, campaign_outcome(device_outcome("board")))
        page = render_report(tmp_path)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert 'datetime="2023-11-14T22:13:20Z"' in page or 'datetime="2023-11-14T22:13:20+00:00"' in page
    assert ">2023-11-15 03:43:20 IST</time>" in page


def test_two_targets_of_one_number_and_two_kinds_are_told_apart(tmp_path: Path) -> None:
    found = device([(19.0, 0.7), (19.0, 0.8)])
    both = tuple(
        dataclasses.replace(target, target_ms=20.0, target=text)
        for target, text in zip(found.targets, ("", "p95:20"), strict=True)
    )
    results = artifacts_without_models(tmp_path, dataclasses.replace(found, targets=both))
    (shown,) = results.fleet
    assert [row.name for row in winner_rows(shown, found.rows)] == ["20 ms", "p95 20 ms"]
    metrics = [metric.name for metric in metrics_of(results) if metric.name.endswith("verified_ms")]
    assert len(metrics) == len(set(metrics)) == 2
    for target in shown.targets:
        comparison = ComparisonResult.model_construct(
            target_ms=target.target_ms, target=target.target, subnet=target.subnet
        )
        assert [each for each in shown.targets if is_about(comparison, each)] == [target]
