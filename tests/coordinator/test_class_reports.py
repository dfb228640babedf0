"""Class reports and warnings about accuracies in results, cards, report and summary."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rigs.command_line import fleetnas
from rigs.outcome_examples import artifacts, campaign_outcome, device_outcome

from fleetnas.coordinator.records.accuracy_order import accuracy_warnings, inversions
from fleetnas.coordinator.records.outcome import CampaignOutcome
from fleetnas.coordinator.report.class_tables import class_table, class_tables
from fleetnas.coordinator.report.conversion import class_report
from fleetnas.coordinator.report.html import render_report
from fleetnas.coordinator.report.results import Results
from fleetnas.coordinator.view.summary import print_summary
from fleetnas.supernet_export.evaluation.answers import ClassAnswers
from fleetnas.supernet_export.export import export_digits

NAMES = ("bark", "brick", "<b>grass</b>")


def answers(right: float, classes: int = 3, images: int = 600, seed: int = 0) -> ClassAnswers:
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    wrong = (labels + rng.integers(1, classes, images)) % classes
    return ClassAnswers.of(
        classes, labels.tolist(), np.where(rng.permutation(images) < right * images, labels, wrong).tolist()
    )


def outcome(shares: tuple[float, ...], part: str = "answers", classes: int = 3, names: bool = True) -> CampaignOutcome:
    """A run with one device setting, whose winners answer these shares of the images right, tightest target first."""
    device = device_outcome("board-a", targets_ms=tuple(float(2 + place) for place in range(len(shares))))
    targets = [
        dataclasses.replace(target, **{part: answers(share, classes, seed=place)})
        for place, (target, share) in enumerate(zip(device.targets, shares, strict=True))
    ]
    return dataclasses.replace(
        campaign_outcome(dataclasses.replace(device, targets=tuple(targets))), class_names=NAMES if names else None
    )


def told(of: CampaignOutcome) -> str:
    stream = io.StringIO()
    print_summary(Console(file=stream, width=400), of)
    return stream.getvalue()


@pytest.mark.parametrize("part", ["answers", "selection"])
def test_a_more_accurate_winner_of_a_tighter_target_is_told_everywhere(tmp_path: Path, part: str) -> None:
    found = outcome((0.90, 0.80, 0.95), part)
    (inversion,) = inversions(found.devices[0].targets)
    assert (inversion.tighter_ms, inversion.looser_ms, inversion.images) == (2.0, 3.0, 600)
    assert inversion.by_chance < 1e-4
    (warning,) = accuracy_warnings(found)
    assert "winner of 2 ms is more accurate than that of 3 ms" in warning
    assert "--selection-images DIR --rerank K" in warning
    assert warning in told(found)
    assert artifacts(tmp_path, found).accuracy_warnings == (warning,)
    assert "is more accurate than that of 3 ms" in render_report(tmp_path)
    reranked = dataclasses.replace(found, rerank=5)
    assert "more selection images" in accuracy_warnings(reranked)[0]


@pytest.mark.parametrize("shares", [(0.90, 0.89), (0.80, 0.90), (0.9,)])
def test_what_chance_explains_is_no_warning(shares: tuple[float, ...]) -> None:
    assert accuracy_warnings(outcome(shares)) == []


def test_winners_of_other_images_or_of_the_same_file_are_not_compared() -> None:
    device = outcome((0.95, 0.60)).devices[0]
    tighter, looser = device.targets
    assert inversions((tighter, looser))
    assert not inversions((tighter, dataclasses.replace(looser, architecture=tighter.architecture)))
    assert not inversions((tighter, dataclasses.replace(looser, answers=answers(0.6, images=599))))
    assert not inversions((tighter, dataclasses.replace(looser, answers=None, selection=answers(0.6))))
    assert not inversions((tighter, dataclasses.replace(looser, verified_ms=None)))


def test_selection_on_the_reported_images_is_told() -> None:
    found = dataclasses.replace(outcome((0.8, 0.9)), rerank=3, selected_on_reported=True)
    assert "selected on the reported images" in told(found)


def test_results_and_card_have_the_confusions_of_each_file_once(tmp_path: Path) -> None:
    found = outcome((0.8, 0.9))
    artifacts(tmp_path, found)
    results = Results.model_validate_json((tmp_path / "results.json").read_text())
    assert len(results.class_reports) == 2
    for target in found.devices[0].targets:
        assert target.sha256 is not None
        assert target.answers is not None
        report = results.class_reports[target.sha256]
        assert list(report.recall) == list(NAMES)
        dense = [[report.confusion[name].get(answer, 0) for answer in NAMES] for name in NAMES]
        assert np.array_equal(dense, target.answers.confusion)
        card = json.loads(next(tmp_path.rglob(f"{target.target_ms:g}ms.json")).read_text())
        assert card["class_report"] == report.model_dump(mode="json")


def test_evaluation_images_go_before_selection_images(tmp_path: Path) -> None:
    device = outcome((0.8,)).devices[0]
    (target,) = device.targets
    both = dataclasses.replace(target, selection=answers(0.95, images=300))
    found = campaign_outcome(dataclasses.replace(device, targets=(both,)))
    results = artifacts(tmp_path, found)
    ((report),) = results.class_reports.values()
    assert (report.part, report.images) == ("evaluation", 600)
    assert results.fleet[0].targets[0].selection_images == 300
    assert f"{100 * results.fleet[0].targets[0].selection_accuracy:.1f} %" in render_report(tmp_path)


@pytest.mark.parametrize("classes", [2, 20, 21, 1000])
def test_the_page_stays_readable_from_2_to_1000_classes(tmp_path: Path, classes: int) -> None:
    found = outcome((0.7, 0.8, 0.9), classes=classes, names=False)
    tables = class_tables(artifacts(tmp_path, found))
    assert len(tables) == 3
    page = render_report(tmp_path)
    assert len(page) < 900_000
    for table in tables:
        assert len(table.rows) == (classes if classes <= 20 else 12)
        assert len(table.pairs) <= 12
        assert f'id="classes-{table.sha256}"' in page
        if not table.has_matrix:
            assert f"The 12 worst of {classes} classes" in page
            worst = [row.recall for row in table.rows]
            assert worst == sorted(worst)  # type: ignore[type-var]


def test_the_page_tells_how_many_classes_have_images(tmp_path: Path) -> None:
    results = artifacts(tmp_path, outcome((0.7,), classes=30, names=False))
    ((sha256, report),) = results.class_reports.items()
    recall = {name: share if index < 5 else None for index, (name, share) in enumerate(report.recall.items())}
    table = class_table(sha256, report.model_copy(update={"recall": recall}))
    assert (table.classes, table.classes_with_images, len(table.rows)) == (30, 5, 5)


def test_names_of_classes_are_text_on_the_page(tmp_path: Path) -> None:
    artifacts(tmp_path, outcome((0.7,)))
    page = render_report(tmp_path)
    assert "<b>grass" not in page
    assert "&lt;b&gt;grass" in page


def test_a_class_without_images_has_no_recall() -> None:
    report = class_report(ClassAnswers.of(4, [0, 0, 1], [0, 2, 1]), "selection", None)
    assert report.recall == {"0": 0.5, "1": 1.0, "2": None, "3": None}
    assert report.confusion == {"0": {"0": 1, "2": 1}, "1": {"1": 1}}
    (first, *_) = class_table("ab", report).rows
    assert (first.taken_for, first.taken_for_images, first.images) == ("2", 1, 2)
    # Names that are not as many as the classes are another supernet's.
    assert class_report(ClassAnswers.of(4, [0], [0]), "selection", NAMES).recall.keys() == report.recall.keys()


def test_evaluate_prints_recall_per_class_and_its_json_the_confusions(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    export_digits(tmp_path / "digits.supernet")
    code, out, err = fleetnas(capsys, "evaluate", str(tmp_path / "digits.supernet"), "smallest")
    assert (code, err) == (0, "")
    assert "macro F1 0." in out
    assert len([line for line in out.splitlines() if line.startswith("  ") and "images" in line]) == 10
    code, out, _ = fleetnas(capsys, "evaluate", str(tmp_path / "digits.supernet"), "smallest", "--json")
    assert code == 0
    found = json.loads(out)
    right = sum(found["confusion"][name].get(name, 0) for name in found["recall"])
    assert right / found["accuracy_images"] == found["accuracy"]
    assert sum(sum(row.values()) for row in found["confusion"].values()) == found["accuracy_images"] == 600
    assert f"{found['macro_f1']:.4f}"
