"""Options that several commands share, and checks of the options that a command line has."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleetnas.coordinator.cli.configuration import store_location
from fleetnas.coordinator.records.run_names import LATEST
from fleetnas.fleet_protocol.errors import UsageError

if TYPE_CHECKING:
    from fleetnas.coordinator.records.stored import RunRecord
    from fleetnas.coordinator.store.store import MeasurementStore

Store = Annotated[
    str | None,
    typer.Option("--store", metavar="FILE|URL", help="Where runs are kept (default: in the user's data folder)."),
]
RunName = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="Name of the new run, to find it by beside its id."),
]
#: How commands that take a run describe it.
RUN_HELP = "A run's id or name, the beginning of one, or `latest`, as `fleetnas runs` lists them."
#: The run of a command that only reads it.
ReadRun = Annotated[str, typer.Argument(metavar="[RUN]", help=RUN_HELP)]
Images = Annotated[
    Path | None,
    typer.Option("--images", metavar="DIR", help="Folder with a folder of images per class, to evaluate on."),
]
CalibrationImages = Annotated[
    Path | None,
    typer.Option(
        "--calibration-images", metavar="DIR", help="Folder with a folder of images per class, to calibrate on."
    ),
]
SameToCalibrate = Annotated[
    Path | None, typer.Option("--calibration-images", metavar="DIR", help="The same, to calibrate on.")
]
SomeClasses = Annotated[
    bool,
    typer.Option("--some-classes", help="The folders of images hold only some of the supernet's classes, by name."),
]
ProfileWinners = Annotated[
    bool,
    typer.Option(
        "--profile-winners",
        help="Time the layers of each winner on its device by the runtime's own profiler (onnxruntime), for report and "
        "card.",
    ),
]
Tracking = Annotated[
    str | None,
    typer.Option(
        "--track",
        metavar="mlflow:URI",
        help="Log the run at its end: parameters, metrics, results and models (a server's address, or a folder).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line instead of a view.")]


def given(context: typer.Context) -> dict[str, str]:
    """Options on the command line or in the environment: the parameter's name and the option, such as `--out`."""
    return {
        parameter.name: parameter.opts[-1]
        for parameter in context.command.params
        if parameter.param_type_name == "option"
        and parameter.name is not None
        and getattr(context.get_parameter_source(parameter.name), "name", "") in ("COMMANDLINE", "ENVIRONMENT")
    }


def refuse(context: typer.Context, useless: Collection[str], reason: str) -> None:
    """Refuse options that would change nothing, by their parameters' names.

    Raises:
        UsageError: the command line has one of them; the message is `reason`, and which to leave out.
    """
    found = [option for name, option in given(context).items() if name in useless]
    if found:
        raise UsageError(f"{reason}; leave out {', '.join(found)}")


def json_object(option: str, text: str) -> dict[str, Any]:
    """Parse an option's JSON object; `UsageError` where it is none."""
    try:
        found = json.loads(text.removeprefix("\ufeff"))
    except RecursionError:
        raise UsageError(f"{option} is nested too deeply; give an object such as {{}}") from None
    except ValueError as error:
        raise UsageError(f"{option} {text[:200]!r} is not JSON ({error}); give an object such as {{}}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{option} {text[:200]!r} is no JSON object; give one such as '{{\"width\": 1.2}}'")
    return found


def open_to_read(store: str | None) -> MeasurementStore:
    """Open the store of a command that only reads; tell on standard error where it cannot be written at all."""
    from fleetnas.coordinator.store.store import MeasurementStore

    opened = MeasurementStore.open(existing_store(store), to_read=True)
    if opened.read_only:
        typer.echo(
            f"the store {opened.url} can only be read here: its runs can be shown and exported, not resumed",
            err=True,
        )
    return opened


def run_to_read(store: MeasurementStore, run: str, fits: Callable[[RunRecord], bool] = lambda run: True) -> RunRecord:
    """Return the run that `run` names; tell on standard error which one is the newest of those that fit."""
    found = store.named_runs.find(run, fits)
    if run == LATEST:
        named = f" ({found.name})" if found.name is not None else ""
        typer.echo(f"the newest run: {found.run_id}{named}", err=True)
    return found


def existing_store(store: str | None) -> str:
    """Return the store asked for, the configured one or the default one.

    `UsageError` where a file was named that does not exist.
    """
    if store is not None and "://" not in store and not Path(store).exists():
        raise UsageError(f"there is no store {store}; check --store, or leave it out for the one in your data folder")
    return store_location(store)


def tracking_uri(text: str | None) -> str | None:
    """Return the URI of `--track`; None without one. `UsageError` where it names no tracker."""
    if text is None:
        return None
    from fleetnas.coordinator.app.tracking import parse_tracking

    return parse_tracking(text)
