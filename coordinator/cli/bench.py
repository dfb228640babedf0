"""`fleetnas bench`: model files, measured on the devices of a fleet."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.connection import ConnectionOptions
from fleetnas.coordinator.cli.option_groups import command
from fleetnas.coordinator.cli.search.baselines import InputShapeTexts, shapes_of
from fleetnas.coordinator.cli.search.fleet import FleetOptions
from fleetnas.coordinator.cli.search.measuring import MeasuringOptions
from fleetnas.fleet_protocol.errors import UsageError

if TYPE_CHECKING:
    from fleetnas.coordinator.records.outcome import CampaignOutcome
    from fleetnas.coordinator.records.plan import CampaignPlan

#: A store in memory: what is measured is printed, and no run is kept.
_STORE = "sqlite://"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(command(bench))


def bench(
    context: typer.Context,
    model: Annotated[list[Path], typer.Argument(metavar="MODEL", help="Model files, .onnx or .tflite.")],
    *,
    connection: ConnectionOptions,
    fleet: FleetOptions,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--setting",
            metavar="SETTING",
            help="How models run, such as onnxruntime,threads=4; may be repeated (default: all that agents offer).",
        ),
    ] = None,
    input_shape: InputShapeTexts = None,
    measuring: MeasuringOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure model files on every device of a fleet.

    As a search measures: in a child process, in turns with reference models that show whether the device was slowed.
    Agents must run with --accept-models. Exit code 1: a file was not measured somewhere. On one device, without a
    fleet: `fleetnas-agent bench`.
    """
    from fleetnas.coordinator.app.request import NewRun, SearchRequest
    from fleetnas.coordinator.cli.bench_table import print_bench, report_of
    from fleetnas.coordinator.cli.search.running import run_plan
    from fleetnas.coordinator.view.output import output_console
    from fleetnas.coordinator.view.progress import ProgressView
    from fleetnas.supernet_export.export import export_digits

    options.refuse(context, ("mirror",), "model files travel through the broker")
    if measuring.conditions != "cool":
        options.refuse(context, ("cool_for",), "only --conditions cool waits for a device to cool")
    plan = _plan(model, shapes_of(input_shape), setting or [], fleet, measuring)
    access = fleet.access(connection)
    with tempfile.TemporaryDirectory(prefix="fleetnas-bench-") as folder:
        # Its smallest and largest subnets are the references.
        supernet = Path(folder, "references.supernet")
        export_digits(supernet)
        request = SearchRequest(_STORE, access, NewRun(supernet, plan))
        outcome = run_plan(request, as_json=as_json, view=ProgressView(sys.stderr))
    if as_json:
        typer.echo(json.dumps(report_of(outcome)))
    else:
        print_bench(output_console(), outcome)
    raise typer.Exit(0 if _all_measured(outcome) else 1)


def _plan(
    models: list[Path],
    shapes: dict[str, tuple[int, ...]],
    settings: list[str],
    fleet: FleetOptions,
    measuring: MeasuringOptions,
) -> CampaignPlan:
    from fleetnas.agent.runtimes.settings import parse_setting
    from fleetnas.coordinator.app.baselines import model_baseline
    from fleetnas.coordinator.records.plan import CampaignPlan
    from fleetnas.coordinator.records.setting_filter import SettingFilter
    from fleetnas.coordinator.records.targets import TargetRequest

    baselines = tuple(model_baseline(path, shapes) for path in dict.fromkeys(models))
    names = [each.name for each in baselines]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two models are called {twice}; rename one of them")
    return CampaignPlan(
        targets=TargetRequest(),
        baselines=baselines,
        prior="default",
        devices=fleet.agents(),
        settings=SettingFilter(labels=tuple(parse_setting(text).label for text in settings)),
        **measuring.fields(),
    )


def _all_measured(outcome: CampaignOutcome) -> bool:
    rows = [row for device in outcome.devices for row in device.baselines]
    return bool(rows) and all(row.measurement is not None for row in rows)
