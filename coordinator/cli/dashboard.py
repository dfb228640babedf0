"""`fleetnas dashboard`."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.connection import Connection, ConnectionOptions
from fleetnas.coordinator.cli.option_groups import command, names
from fleetnas.fleet_protocol.errors import MissingDependencyError
from fleetnas.fleet_protocol.installing import install_extra

if TYPE_CHECKING:
    from fleetnas.coordinator.dashboard.figures import CurvePoint
    from fleetnas.coordinator.dashboard.published_runs import LiveRuns

DEFAULT_PORT = 8650
_CONNECT_S = 10.0


@dataclass(frozen=True)
class ServingOptions:
    """Where the dashboard listens, and who may read it."""

    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Where to listen; 0.0.0.0 for the network, with a token.",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="0 takes a free one.")] = (
        DEFAULT_PORT
    )
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host", metavar="NAME", help="A host name under which browsers reach it; may be repeated."
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Ask for the token in this file (default: a new one, beyond this machine).",
        ),
    ] = None


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dashboard")(command(dashboard))


def dashboard(
    context: typer.Context,
    serving: ServingOptions,
    connection: ConnectionOptions,
    store: options.Store = None,
) -> None:
    """Show the runs of a store in a browser, live, until Ctrl-C.

    It only reads. With --broker or --credentials, runs at work are shown as their coordinators publish them. On another
    address than this machine's own, the printed link holds a token, which each browser needs once.
    """
    _check_installed()
    from fleetnas.coordinator.app.garbage import rarer_garbage_collection
    from fleetnas.coordinator.dashboard.access import is_loopback, new_token
    from fleetnas.coordinator.dashboard.application import Access, build_application
    from fleetnas.coordinator.dashboard.curve_process import CurveProcess
    from fleetnas.coordinator.dashboard.pages import Sources
    from fleetnas.coordinator.dashboard.portfolio_jobs import PortfolioJobs
    from fleetnas.coordinator.dashboard.run_list import RunList
    from fleetnas.coordinator.dashboard.run_reader import RunReaders
    from fleetnas.coordinator.dashboard.server import listen, serve

    found_at = None
    if connection.broker is None and connection.credentials is None:
        options.refuse(context, names(ConnectionOptions), "without --broker or --credentials the store alone is read")
    else:
        found_at = connection.connection(read_only=True)
    token = _token_of(serving.token_file)
    if token is None and not is_loopback(serving.host):
        token = new_token()
    with contextlib.ExitStack() as stack:
        opened = options.open_to_read(store)
        stack.callback(opened.close)
        listener = stack.enter_context(contextlib.closing(listen(serving.host, serving.port)))
        live = stack.enter_context(_live_runs(found_at)) if found_at is not None else None
        curves = stack.enter_context(contextlib.closing(CurveProcess()))
        sources = Sources(
            RunReaders(opened, live),
            RunList(opened, live),
            PortfolioJobs(curves, partial(_curve_of, options.existing_store(store))),
        )
        port = int(listener.getsockname()[1])
        access = Access(serving.host, port, tuple(serving.allow_host or ()), token)
        application = build_application(sources, opened.url, access)
        # Reading ten thousand measurements takes half as long so.
        stack.enter_context(rarer_garbage_collection())
        serve(application, listener, lambda: _announce(opened.url, access.host, port, token))


def _check_installed() -> None:
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise MissingDependencyError(
                f"the dashboard needs {package}, which is not installed; run: {install_extra('dashboard')}"
            )


def _token_of(file: Path | None) -> str | None:
    from fleetnas.coordinator.dashboard.access import checked_token
    from fleetnas.device_profiles.text_files import read_text
    from fleetnas.fleet_protocol.errors import UsageError

    if file is None:
        return None
    try:
        text = read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the token file {file} cannot be read: {error}; check --token-file") from error
    return checked_token(text, f"--token-file {file}")


def _announce(store: str, host: str, port: int, token: str | None) -> None:
    """Print the link; standard output is no log, and nothing else repeats the token."""
    from fleetnas.fleet_protocol.addresses import host_and_port

    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    link = f"http://{host_and_port(shown, port)}/" + (f"?token={token}" if token is not None else "")
    typer.echo(f"dashboard of {store}: {link}")
    if shown != host.strip("[]"):
        typer.echo("from other machines: the same link with this machine's address in it")
    if token is not None:
        typer.echo("the connection is not encrypted: use it in a network that you trust, or through `ssh -L`")
    typer.echo("stop it with Ctrl-C")


@contextlib.contextmanager
def _live_runs(found_at: Connection) -> Iterator[LiveRuns]:
    from fleetnas.coordinator.dashboard.published_runs import LiveRuns
    from fleetnas.fleet_protocol.topics import Topics
    from fleetnas.fleet_protocol.transports.mqtt import MqttTransport

    transport = MqttTransport(found_at.broker, f"dashboard-{secrets.token_hex(4)}")
    live = LiveRuns(transport, Topics(found_at.fleet))
    try:
        transport.start()
        transport.wait_connected(_CONNECT_S)
        live.start()
        yield live
    finally:
        live.close()


def _curve_of(store: str, run_id: str) -> tuple[Sequence[CurvePoint], int]:
    """Compute the portfolio's curve of a run; in a process of its own."""
    from fleetnas.coordinator.app.portfolio_curve import stored_curve
    from fleetnas.coordinator.dashboard.figures import CurvePoint

    portfolios, targets = stored_curve(store, run_id)
    return [CurvePoint(len(each.chosen), each.mean_accuracy, each.served) for each in portfolios], targets
