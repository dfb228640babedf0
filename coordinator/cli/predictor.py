"""`fleetnas predictor evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fleetnas.coordinator.cli.command_classes import CommandApp
from fleetnas.coordinator.cli.option_groups import command
from fleetnas.coordinator.records.method_names import MethodName
from fleetnas.fleet_protocol.errors import UsageError


@dataclass(frozen=True)
class MethodOptions:
    """The method, and its hardware parameters."""

    method: Annotated[
        MethodName,
        typer.Option(
            "--method",
            metavar="NAME",
            help="bayesian (used by searches); hardware (the same, its prior moved by hardware parameters); or a "
            "baseline: fine-tuned (another device's network), block-table, rescaled-table (another device's), macs.",
        ),
    ] = "bayesian"
    parameters: Annotated[
        Path | None,
        typer.Option(
            "--parameters",
            metavar="FILE",
            help="Of hardware: JSON, parameters per setting, as `export-data --parameters` writes it.",
        ),
    ] = None


def register(app: typer.Typer) -> None:
    """Add the command."""
    group = CommandApp(help="Latency predictors: evaluate them on stored measurements.", no_args_is_help=True)
    group.command("evaluate")(command(evaluate))
    group.callback()(lambda: None)
    app.add_typer(group, name="predictor")


def evaluate(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Measured latencies: .npz, .json, or .csv as `export-data` writes it."),
    ],
    method: MethodOptions,
    samples: Annotated[
        str, typer.Option("--samples", metavar="N,...", help="How many measurements of a new device.")
    ] = "10,20,50",
    draws: Annotated[int, typer.Option("--draws", metavar="N", min=1, help="Random choices of these.")] = 5,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Fixes these choices.")] = 0,
) -> None:
    """Evaluate how well a few measurements predict a new device.

    Each device in turn is the new one; the method learns from the other devices.
    """
    from fleetnas.coordinator.predictors.evaluation.dataset import read_hardware, read_latency_data
    from fleetnas.coordinator.predictors.evaluation.methods import method_factory
    from fleetnas.coordinator.predictors.evaluation.studies import leave_family_out, table_lines

    if method.parameters is not None and method.method != "hardware":
        raise UsageError("only --method hardware uses hardware parameters; leave out --parameters")
    rows = leave_family_out(
        read_latency_data(data),
        method_factory(method.method, read_hardware(method.parameters) if method.parameters is not None else None),
        samples=_counts(samples),
        draws=draws,
        seed=seed,
        progress=lambda setting: typer.echo(f"{setting} ...", err=True),
    )
    for line in table_lines(rows):
        typer.echo(line)


def _counts(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"--samples {text!r} are not numbers; give such as 10,20,50")
    return tuple(int(part) for part in parts)
