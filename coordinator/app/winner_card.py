"""Rewrite a model card, and the model file beside it, with a model that was measured on the card's device setting."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from fleetnas.coordinator.records.plan import RunSettings
from fleetnas.coordinator.report.artifacts import (
    MODEL_SUFFIXES,
    REPORT_FILE,
    RESULTS_FILE,
    ReplacedModel,
    WinnerCard,
    read_results,
)
from fleetnas.coordinator.report.html import write_report
from fleetnas.coordinator.report.results import Results, TargetResult
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.error_text import first_fault
from fleetnas.fleet_protocol.errors import HashMismatchError, StoreError, UsageError
from fleetnas.supernet_export.output_files import check_file, write_atomically


def read_card(path: Path) -> WinnerCard:
    """Read a model card; `UsageError` where it is none."""
    try:
        return WinnerCard.model_validate_json(read_text(path))
    except ValidationError as error:
        reason = first_fault(error)
    except (OSError, UnicodeDecodeError) as error:
        reason = str(error)
    raise UsageError(
        f"{path} is no model card ({reason}); give the .json beside a model file of a search or of `fleetnas measure`"
    )


def check_card(settings: RunSettings) -> None:
    """Check the card that a run is to rewrite, before its first measurement.

    Raises:
        UsageError: it is no model card, it cannot be written, or the plan is not for its device setting and target.
    """
    if settings.card is None:
        return
    path, plan = Path(settings.card), settings.plan
    card = read_card(path)
    check_file("--card", path, ".json")
    if len(plan.architectures) != 1:
        raise UsageError(
            f"{path} is the card of one model, and {len(plan.architectures)} subnets are measured; give the one "
            "that is to take its place"
        )
    if settings.out is None:
        raise UsageError(f"{path} is rewritten from the files of a run; give the run a folder for them with --out")
    if plan.settings.labels != (card.runtime,) or plan.devices not in ((), (card.device,)):
        raise UsageError(
            f"{path} is the card of a model for {card.device}/{card.runtime}; measure on that setting alone"
        )
    if card.target_ms is not None and plan.target_ms != card.target_ms:
        raise UsageError(
            f"{path} is for a target of {card.target_ms:g} ms and {plan.targets} ms is asked for; leave out --target"
        )


def rewrite_card(path: Path, out: Path) -> str:
    """Rewrite a card and its model file from the results in `out`; returns a line on what was done.

    Each of the two files is replaced at once, the model first: whatever happens in between, the card's hash is that of
    its model, or it shows that the two differ. Nothing is changed where the target was not met.

    Raises:
        HashMismatchError: the measured model's file in `out` was altered.
        OSError: a file cannot be written.
    """
    before = read_card(path)
    found = _measured(read_results(out), before)
    if found is None or not found.met or found.model is None:
        reason = "its target was not met" if found is not None else "its device setting was not measured"
        return f"{path} is left as it was: {reason}"
    measured = read_card((out / found.model).with_suffix(".json"))
    model = (out / found.model).read_bytes()
    if hashlib.sha256(model).hexdigest() != measured.sha256:
        raise HashMismatchError(f"{out / found.model} is not the file that was measured; measure it again")
    target = path.with_name(path.stem + Path(found.model).suffix)
    replaced = ReplacedModel(
        run_id=before.run_id, sha256=before.sha256, verified_ms=before.verified_ms, accuracy=before.accuracy
    )
    card = measured.model_copy(update={"model": target.name, "replaces": replaced})
    write_atomically(target, model)
    write_atomically(path, card.model_dump_json(indent=2).encode() + b"\n")
    _remove_other(before, target)
    _note_in_results(path, before)
    return f"{path} is rewritten, and {target.name} beside it is the model that was measured"


def _remove_other(before: WinnerCard, target: Path) -> None:
    """Remove the model file that a card named, where it is another one beside it; a card may come from anywhere."""
    named = Path(before.model or "")
    if named.name == before.model != target.name and named.suffix in MODEL_SUFFIXES:
        (target.parent / named).unlink(missing_ok=True)


def _measured(results: Results, card: WinnerCard) -> TargetResult | None:
    """Return the result on the card's device setting; None where there is none."""
    for device in results.fleet:
        if (device.device, device.runtime) == (card.device, card.runtime) and device.targets:
            return device.targets[0]
    return None


def _note_in_results(path: Path, before: WinnerCard) -> None:
    """Have results and report of the card's own run tell that its model was replaced, where they are in their place."""
    directory = path.parent.parent.parent
    try:
        results = read_results(directory)
    except StoreError:
        return
    if results.run_id != before.run_id:
        return
    fleet = tuple(
        device.model_copy(update={"targets": tuple(_without_model(target, path, before) for target in device.targets)})
        if (device.device, device.runtime) == (before.device, before.runtime)
        else device
        for device in results.fleet
    )
    changed = results.model_copy(update={"fleet": fleet})
    write_atomically(directory / RESULTS_FILE, changed.model_dump_json(indent=2).encode() + b"\n")
    if (directory / REPORT_FILE).exists():
        write_report(directory)


def _without_model(target: TargetResult, path: Path, before: WinnerCard) -> TargetResult:
    if target.sha256 != before.sha256 or target.model is None or Path(target.model).stem != path.stem:
        return target
    note = f"its model was replaced by a later one: see {path.name}"
    return target.model_copy(
        update={"model": None, "model_bytes": None, "note": "; ".join(filter(None, (target.note, note)))}
    )
