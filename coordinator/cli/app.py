"""The application: the list of all commands, each of which its own module registers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fleetnas.coordinator.cli.command_classes import CommandApp
from fleetnas.coordinator.cli.configuration import choose_file
from fleetnas.coordinator.cli.lazy import CommandEntry, LazyGroup

#: By titles, as the help lists them: summary (the first sentence of the command's help), and title.
COMMANDS = {
    "demo": CommandEntry("demo", "Search three settings of this machine: 2 to 4 minutes.", "Try it"),
    "train": CommandEntry("train", "Train a supernet on your own images, one folder per class.", "Supernets"),
    "export": CommandEntry("export", "Write a supernet bundle, for searches and agents.", "Supernets"),
    "inspect": CommandEntry("inspect", "Say what a checkpoint or a bundle is.", "Supernets"),
    "accuracy": CommandEntry("accuracy", "Accuracy of subnets: evaluate many, fit a predictor.", "Supernets"),
    "evaluate": CommandEntry("evaluate", "Slice, calibrate and evaluate one subnet.", "Supernets"),
    "finetune": CommandEntry("finetune", "Fine-tune one subnet, and write it as a bundle of its own.", "Supernets"),
    "search": CommandEntry("search.command", "Search the whole fleet by measuring on every device.", "On devices"),
    "measure": CommandEntry("measure", "Measure and verify given subnets on devices.", "On devices"),
    "bench": CommandEntry("bench", "Measure model files on every device of a fleet.", "On devices"),
    "portfolio": CommandEntry("portfolio", "Choose few subnets for all targets of a search.", "On devices"),
    "watch": CommandEntry("watch", "Show a search that runs elsewhere, until it ends.", "Runs and results"),
    "dashboard": CommandEntry(
        "dashboard", "Show the runs of a store in a browser, live, until Ctrl-C.", "Runs and results"
    ),
    "runs": CommandEntry("runs", "List every run in the store, oldest first.", "Runs and results"),
    "results": CommandEntry("runs", "Show the results of a run, ended or not.", "Runs and results"),
    "export-data": CommandEntry("export_data", "Write the stored measurements, one row each.", "Runs and results"),
    "export-latency": CommandEntry("export_latency", "Write the latencies of a device as files.", "Runs and results"),
    "predictor": CommandEntry(
        "predictor", "Latency predictors: evaluate them on stored measurements.", "Runs and results"
    ),
    "broker": CommandEntry("broker", "Run the embedded MQTT broker until Ctrl-C.", "The fleet"),
    "installer": CommandEntry("installer", "Serve this fleetnas to devices, until Ctrl-C.", "The fleet"),
    "devices": CommandEntry("devices", "List the fleet's agents: when last seen, and why idle.", "The fleet"),
    "mirror": CommandEntry("mirror", "Put a supernet into a folder of a web server, for agents.", "The fleet"),
    "enroll": CommandEntry("security", "Issue one agent's credentials, as a single file.", "The fleet"),
    "revoke": CommandEntry("security", "Shut an agent out of the fleet.", "The fleet"),
    "sign": CommandEntry("security", "Sign a file that is fetched another way.", "The fleet"),
    "verify": CommandEntry("security", "Check a file against the coordinator's signature.", "The fleet"),
}
#: Of the callbacks of typer's completion, which look at no parameter.
_PARAMETER: Any = None


class FleetnasGroup(LazyGroup):
    """All commands."""

    entries = COMMANDS


app = CommandApp(
    name="fleetnas",
    help="Trains a once-for-all supernet on your images, or takes a published one, and searches it for the best subnet "
    "of every device, by measuring on the devices.",
    epilog="`fleetnas demo` needs no board and no images. `fleetnas COMMAND --help` describes a command.",
    cls=FleetnasGroup,
    no_args_is_help=True,
)


def complain(text: str) -> None:
    """Print one error message on standard error."""
    coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    mark = "\033[1;31merror:\033[0m" if coloured else "error:"
    sys.stderr.write(f"{mark} {text}\n")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"fleetnas {metadata.version('fleetnas')}")
        raise typer.Exit


def _install_completion(context: typer.Context, wanted: bool) -> None:
    if wanted:
        from typer import completion

        completion.install_callback(context, _PARAMETER, True)


def _show_completion(context: typer.Context, wanted: bool) -> None:
    if wanted:
        from typer import completion

        completion.show_callback(context, _PARAMETER, True)


@app.callback()
def _fleetnas(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Settings of all commands (default: $FLEETNAS_CONFIG, else ~/.config/fleetnas/fleetnas.toml, else "
            "/etc/fleetnas/fleetnas.toml).",
        ),
    ] = None,
    install_completion: Annotated[
        bool,
        typer.Option(
            "--install-completion",
            callback=_install_completion,
            is_eager=True,
            help="Let this shell complete commands, options and names of runs (bash, zsh, fish, PowerShell).",
        ),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option(
            "--show-completion",
            callback=_show_completion,
            is_eager=True,
            help="Print the shell's script for that, to install it another way.",
        ),
    ] = False,
) -> None:
    del version, install_completion, show_completion
    choose_file(config)
