"""`fleetnas search --dry-run`: the search that would begin now, on the terminal and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.output import output_console
from fleetnas.coordinator.view.tables import word_table

if TYPE_CHECKING:
    from fleetnas.coordinator.app.dry_run import DryRun
    from fleetnas.coordinator.app.request import SearchRequest


def print_dry_run(request: SearchRequest, *, as_json: bool) -> int:
    """Wait for the devices, print what a search would do, and return the exit code: 0."""
    from fleetnas.coordinator.app.dry_run import dry_run
    from fleetnas.coordinator.cli.progress import image_progress
    from fleetnas.coordinator.store.store import MeasurementStore

    # A store that does not exist yet tells nothing, and is not made.
    exists = "://" in request.store or Path(request.store).exists()
    store = MeasurementStore.open(request.store if exists else "sqlite://", to_read=exists)
    try:
        with image_progress() as progress:
            found = dry_run(
                request, store, image_progress=progress, waiting=lambda: typer.echo("waiting for devices", err=True)
            )
    finally:
        store.close()
    if as_json:
        typer.echo(json.dumps(fields_of(found)))
    else:
        _print(output_console(), found)
    return 0


def _print(console: Console, found: DryRun) -> None:
    headings = ("Device setting", "Model", "Measurements", "s each", "Verifications", "s each", "known by")
    rows = [
        (
            f"{each.device}/{each.setting}",
            wording.printable(each.model),
            f"{each.first:.0f}",
            f"{each.seconds.first:.1f}",
            f"{each.verifications:.0f}",
            f"{each.seconds.verification:.1f}",
            f"{each.known_measurements} earlier measurements" if each.known_measurements else "the protocol",
        )
        for each in found.settings
    ]
    console.print(word_table(headings, rows, console.width, right=headings[2:-1]))
    for line in _lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(found: DryRun) -> list[str]:
    settings = wording.count_of(len(found.settings), "device setting")
    lines = [
        f"{settings}, targets {found.targets} on each: about {found.measurements:.0f} measurements",
        f"about {wording.elapsed(found.time.expected)} ({wording.elapsed(found.time.least)} to "
        f"{wording.elapsed(found.time.most)})"
        + (f", of which {wording.elapsed(found.transfer_s)} send the bundle" if found.transfer_s >= 1 else ""),
    ]
    if found.space is not None:
        of = "the subnets" if found.space.counted else f"{found.space.subnets:,} random subnets"
        lines.append(f"{100 * found.space.share:.3g} % of {of} have {found.bounds}")
    lines += [f"{name} takes no part: {wording.printable(reason)}" for name, reason in found.left_out]
    lines += [wording.printable(note) for note in found.notes]
    return [*lines, "nothing was measured or stored; leave out --dry-run to begin"]


def fields_of(found: DryRun) -> dict[str, Any]:
    """Return a dry run as JSON's types. Times are seconds."""
    return {
        "settings": [
            {
                "device": each.device,
                "model": each.model,
                "setting": each.setting,
                "measurements": each.first,
                "verifications": each.verifications,
                "measurement_s": each.seconds.first,
                "verification_s": each.seconds.verification,
                "known_measurements": each.known_measurements,
            }
            for each in found.settings
        ],
        "left_out": [{"device": name, "reason": reason} for name, reason in found.left_out],
        "targets": found.targets,
        "targets_each": found.targets_each,
        "measurements": found.measurements,
        "expected_s": found.time.expected,
        "least_s": found.time.least,
        "most_s": found.time.most,
        "transfer_s": found.transfer_s,
        "bounds": found.bounds.given(),
        "within_bounds": None
        if found.space is None
        else {"share": found.space.share, "subnets": found.space.subnets, "all": found.space.counted},
        "notes": list(found.notes),
    }
