"""`fleetnas inspect`: what a checkpoint or a bundle is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleetnas.coordinator.cli import options
from fleetnas.supernet_export.checkpoints.weights_choice import WeightsChoice

if TYPE_CHECKING:
    from fleetnas.supernet_export.inspection import Inspection

#: Class names that are shown, of many.
_MOST_NAMES = 8


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(inspect)


def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A checkpoint (.pth, .safetensors), or a .supernet bundle.")
    ],
    weights: Annotated[
        WeightsChoice | None,
        typer.Option("--weights", help="Checkpoint with both: the plain weights, or their moving average."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Say what a checkpoint or a bundle is.

    It also prints the command that exports a checkpoint. A checkpoint's design space is recognised by the shapes of its
    tensors; what these do not show, such as the smaller choices that were trained, is listed. Nothing in the file is
    executed, and torch is not needed.
    """
    from fleetnas.supernet_export.inspection import inspect_file

    found = inspect_file(file, weights)
    typer.echo(found.json() if as_json else "\n".join(_lines(found)))


def _lines(found: Inspection) -> list[str]:
    kind = {"bundle": "a supernet bundle", "trained": "weights of a training run", "checkpoint": "a checkpoint"}
    lines = [f"{found.file}: {kind[found.kind]}, {found.where}"]
    rows: list[tuple[str, Any]] = [("design space", found.space or "not recognised")]
    rows += [(f"option {name}", value) for name, value in found.options.items()]
    rows += [(name.replace("_", " "), value) for name, value in found.facts.items()]
    width = max(len(name) for name, _ in rows)
    lines += [f"  {name:<{width}}  {_text(value)}" for name, value in rows]
    for title, sentences in (
        ("fits as well", found.others),
        ("assumed, as shapes do not show it", found.assumed),
        ("only you know", found.missing),
    ):
        if sentences:
            lines += [f"{title}:", *(f"  {sentence}" for sentence in sentences)]
    if found.command is not None:
        lines += ["export it with:", f"  {found.command}"]
    return lines


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        shown = ", ".join(_text(inner) for inner in value[:_MOST_NAMES])
        more = f" and {len(value) - _MOST_NAMES} more" if len(value) > _MOST_NAMES else ""
        return shown + more if value else "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
