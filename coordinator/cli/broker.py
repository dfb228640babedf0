"""`fleetnas broker`."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.command_classes import CommandApp
from fleetnas.coordinator.cli.security import register_broker
from fleetnas.fleet_protocol.addresses import host_and_port
from fleetnas.fleet_protocol.transports.base import DEFAULT_PORT


def register(app: typer.Typer) -> None:
    """Add the command, and those below it."""
    group = CommandApp(invoke_without_command=True)
    group.callback()(broker)
    register_broker(group)
    app.add_typer(group, name="broker")


def broker(
    context: typer.Context,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 for the whole network.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="0 takes a free one.")
    ] = DEFAULT_PORT,
) -> None:
    """Run the embedded MQTT broker until Ctrl-C.

    It is for one machine or a network that you trust, as it lets everybody in. For production, `init` writes the
    configuration of a mosquitto that does not.
    """
    if context.invoked_subcommand is not None:
        # The commands below have options of their own, which stand behind their names.
        options.refuse(
            context, ("host", "port"), f"they stand before `{context.invoked_subcommand}`, which does not take them"
        )
        return
    from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker

    stopped = threading.Event()
    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, lambda *_: stopped.set())
    with EmbeddedBroker(host, port) as running:
        typer.echo(f"broker listens on {host_and_port(host.strip('[]'), running.address.port)}; stop it with Ctrl-C")
        stopped.wait()
