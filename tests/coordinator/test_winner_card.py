"""A rewritten card: it describes the model beside it, whatever was measured."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from rigs.outcome_examples import artifacts, campaign_outcome, device_outcome, model_of

from fleetnas.coordinator.app.winner_card import check_card, read_card, rewrite_card
from fleetnas.coordinator.records.outcome import DeviceOutcome
from fleetnas.coordinator.records.plan import CampaignPlan, RunSettings
from fleetnas.coordinator.records.setting_filter import SettingFilter
from fleetnas.coordinator.report.artifacts import REPORT_FILE, ArtifactFolder, read_results
from fleetnas.coordinator.report.html import write_report
from fleetnas.fleet_protocol.errors import HashMismatchError, UsageError

TUNED = b"a model that was trained on" * 20
DEVICE = device_outcome("board-a", targets_ms=(2.0, 5.0))


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """The card of the looser target of a search."""
    artifacts(tmp_path / "search", campaign_outcome(DEVICE))
    return tmp_path / "search" / "board-a" / DEVICE.setting.label / "5ms.json"


def measure(folder: Path, *, met: bool = True, device: DeviceOutcome = DEVICE) -> Path:
    """What `fleetnas measure` leaves in `folder` of one subnet."""
    target = device.targets[-1]
    assert target.architecture is not None
    measured = replace(
        target,
        verified_ms=4.0 if met else 6.0,
        typical_ms=None,
        accuracy=0.875,
        sha256=hashlib.sha256(TUNED).hexdigest() if met else None,
        reason="" if met else "over the target",
        subnet=target.architecture.fingerprint,
    )
    outcome = replace(campaign_outcome(replace(device, targets=(measured,), targets_asked=1)), run_id="run-0002")
    artifacts_of = ArtifactFolder(folder)
    if met:
        artifacts_of.add_winner(outcome.devices[0], measured, TUNED)
    artifacts_of.write(outcome)
    return folder


def test_card_and_model_are_those_of_what_was_measured(card: Path, tmp_path: Path) -> None:
    search = tmp_path / "search"
    write_report(search)
    before = read_card(card)
    line = rewrite_card(card, measure(tmp_path / "measured"))
    assert str(card) in line
    after = read_card(card)
    assert after.model == "5ms.onnx"
    assert (card.parent / after.model).read_bytes() == TUNED
    assert (after.run_id, after.verified_ms, after.accuracy) == ("run-0002", 4.0, 0.875)
    assert after.sha256 == hashlib.sha256(TUNED).hexdigest()
    assert after.replaces is not None
    assert (after.replaces.run_id, after.replaces.sha256) == (before.run_id, before.sha256)
    kept, changed = read_results(search).fleet[0].targets
    assert kept.model is not None
    assert (changed.model, changed.model_bytes, changed.sha256) == (None, None, before.sha256)
    assert changed.note.endswith("its model was replaced by a later one: see 5ms.json")
    assert "replaced by a later one" in (search / REPORT_FILE).read_text()


@pytest.mark.parametrize(("named", "stays"), [("../other.onnx", True), ("notes.txt", True), ("5ms.tflite", False)])
def test_only_a_model_file_beside_a_card_is_replaced(card: Path, tmp_path: Path, named: str, stays: bool) -> None:
    card.write_text(read_card(card).model_copy(update={"model": named}).model_dump_json())
    other = card.parent / named
    other.write_bytes(b"content")
    rewrite_card(card, measure(tmp_path / "measured"))
    assert other.exists() is stays
    assert read_card(card).model == "5ms.onnx"


def test_it_can_be_rewritten_again(card: Path, tmp_path: Path) -> None:
    measured = measure(tmp_path / "measured")
    rewrite_card(card, measured)
    once = read_card(card)
    rewrite_card(card, measured)
    assert read_card(card).sha256 == once.sha256
    assert len(list(card.parent.glob("5ms.*"))) == 2


@pytest.mark.parametrize(
    ("met", "device", "words"),
    [
        (False, DEVICE, "its target was not met"),
        (True, replace(DEVICE, device="board-b"), "its device setting was not measured"),
    ],
)
def test_what_is_no_verified_model_of_its_setting_changes_nothing(
    card: Path, tmp_path: Path, met: bool, device: DeviceOutcome, words: str
) -> None:
    before = card.read_bytes(), (tmp_path / "search" / "results.json").read_bytes()
    assert words in rewrite_card(card, measure(tmp_path / "measured", met=met, device=device))
    assert (card.read_bytes(), (tmp_path / "search" / "results.json").read_bytes()) == before
    assert card.with_suffix(".onnx").read_bytes() == model_of("board-a", 5.0)


def test_a_measured_file_that_was_altered_changes_nothing(card: Path, tmp_path: Path) -> None:
    before = card.read_bytes()
    measured = measure(tmp_path / "measured")
    (model,) = measured.glob("*/*/*.onnx")
    model.write_bytes(b"something else")
    with pytest.raises(HashMismatchError, match="not the file that was measured"):
        rewrite_card(card, measured)
    assert card.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": SettingFilter(labels=("onnxruntime_cpu_4t_fp32",))}, "measure on that setting alone"),
        ({"devices": ("board-b",)}, "measure on that setting alone"),
        ({"targets": "7"}, "leave out --target"),
        ({"architectures": 2}, "2 subnets are measured"),
        ({"out": None}, "--out"),
        ({"card": "results.json"}, "is no model card"),
    ],
)
def test_a_card_that_the_run_is_not_for_is_refused(
    card: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    subnets = tuple(row.architecture for row in DEVICE.rows[:2])
    asked = {
        "targets": "5",
        "devices": ("board-a",),
        "settings": SettingFilter(labels=(DEVICE.setting.label,)),
        **{name: value for name, value in changes.items() if name not in ("out", "card", "architectures")},
    }
    plan = CampaignPlan(architectures=subnets[: int(str(changes.get("architectures", 1)))], **asked)  # type: ignore[arg-type]
    path = card if "card" not in changes else tmp_path / "search" / str(changes["card"])
    settings = RunSettings(
        plan=plan,
        supernet_path="tuned.supernet",
        design_space="digits",
        source="trained",
        card=str(path),
        out=None if "out" in changes else str(tmp_path / "measured"),
    )
    with pytest.raises(UsageError, match=words):
        check_card(settings)
