"""`fleetnas broker`."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.command_classes import CommandApp
from fleetnas.coordinator.cli.installer import InstallOptions, serving, wait_for_stop
from fleetnas.coordinator.cli.option_groups import command, names
from fleetnas.coordinator.cli.security import register_broker
from fleetnas.fleet_protocol.addresses import host_and_port
from fleetnas.fleet_protocol.errors import TransportError, UsageError
from fleetnas.fleet_protocol.transports.base import DEFAULT_PORT


def register(app: typer.Typer) -> None:
    """Add the command, and those below it."""
    group = CommandApp(invoke_without_command=True)
    group.callback()(command(broker))
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
    *,
    installer: Annotated[
        bool, typer.Option(help="Serve the agent too, and print a line that installs it on a device.")
    ] = True,
    install: InstallOptions,
) -> None:
    """Run the embedded MQTT broker until Ctrl-C.

    It is for one machine or a network that you trust, as it lets everybody in. For production, `init` writes the
    configuration of a mosquitto that does not. The printed line installs this fleetnas' agent on the device where it is
    pasted, or updates it.
    """
    if context.invoked_subcommand is not None:
        # The commands below have options of their own, which stand behind their names.
        options.refuse(
            context,
            ("host", "port", "installer", *names(InstallOptions)),
            f"they stand before `{context.invoked_subcommand}`, which does not take them",
        )
        return
    if not installer:
        options.refuse(context, names(InstallOptions), "--no-installer serves no agent")
    from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker

    setup = install.setup()
    with EmbeddedBroker(host, port) as running, contextlib.ExitStack() as also:
        broker_port = running.address.port
        typer.echo(f"broker listens on {host_and_port(host.strip('[]'), broker_port)}; stop it with Ctrl-C")
        if installer:
            try:
                also.enter_context(serving(install, install.install_host or host, setup, broker_port=broker_port))
            except (TransportError, UsageError) as error:
                # The broker is what was asked for.
                typer.echo(f"no line to install agents can be given: {error}", err=True)
        wait_for_stop()
