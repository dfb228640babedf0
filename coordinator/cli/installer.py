"""`fleetnas installer`, and the install line of `fleetnas broker` and `fleetnas enroll`."""

from __future__ import annotations

import contextlib
import secrets
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli.configuration import configured_value
from fleetnas.coordinator.cli.connection import ConnectionOptions
from fleetnas.coordinator.cli.option_groups import command
from fleetnas.fleet_protocol.errors import TransportError, UsageError
from fleetnas.fleet_protocol.transports.base import BrokerAddress

if TYPE_CHECKING:
    from fleetnas.coordinator.app.install_line import AgentSetup
    from fleetnas.coordinator.app.install_server import InstallServer, ServerIdentity

DEFAULT_INSTALL_PORT = 8730


@dataclass(frozen=True)
class InstallOptions:
    """Where the agent is served to devices, and what they install."""

    install_host: Annotated[
        str | None,
        typer.Option(
            "--install-host",
            metavar="ADDRESS",
            help="Where the agent is served to devices; 0.0.0.0 for the whole network.",
        ),
    ] = None
    install_port: Annotated[
        int | None,
        typer.Option(
            "--install-port",
            metavar="PORT",
            min=0,
            max=65535,
            help=f"Its port (default: {DEFAULT_INSTALL_PORT}, or a free one where that is taken).",
        ),
    ] = None
    advertise: Annotated[
        str | None,
        typer.Option(
            "--advertise", metavar="HOST", help="Name or address of this machine in the line (default: found out)."
        ),
    ] = None
    extras: Annotated[
        str | None,
        typer.Option("--extras", metavar="NAMES", help="What devices install, such as agent,litert (default: agent)."),
    ] = None
    index_url: Annotated[
        str | None,
        typer.Option(
            "--index-url", metavar="URL", help="Package index that devices use (default: the one pip is set to there)."
        ),
    ] = None

    def setup(self) -> AgentSetup:
        """Parse what devices install; `UsageError` where it cannot be used."""
        from fleetnas.coordinator.app.install_line import AgentSetup

        extras = self.extras or ""
        if not all(part.isalnum() and part.isascii() for part in extras.split(",")) and extras:
            raise UsageError(f"--extras {extras[:80]!r} is no list of extras; give such as agent,litert")
        index = configured_value("index_url")
        url = self.index_url or (index.value if index is not None else "")
        if url and (not url.startswith(("https://", "http://", "file://")) or not url.isprintable() or " " in url):
            raise UsageError(f"--index-url {url[:80]!r} is no URL; give such as https://pypi.example/simple")
        return AgentSetup(extras=extras, index_url=url)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("installer")(command(installer))


def installer(connection: ConnectionOptions, install: InstallOptions) -> None:
    """Serve this fleetnas to devices, until Ctrl-C.

    It prints a line to paste on a device, which installs the agent there or updates it. The agent joins the fleet of
    --broker, or the configured one; an agent with credentials keeps them.
    """
    from fleetnas.coordinator.app.reachable import addresses_for_devices, is_loopback

    at = connection.connection(read_only=True)
    broker, setup = at.broker, install.setup()
    host = install.install_host or "0.0.0.0"
    addresses = (install.advertise,) if install.advertise else addresses_for_devices(host)
    secured = at.credentials is not None
    if not secured and is_loopback(broker.host) and not (addresses and is_loopback(addresses[0])):
        raise UsageError(
            f"the broker {broker} is this machine's own loopback, which no other device reaches; give its address in "
            f"the network as --broker, such as {addresses[0] if addresses else '192.168.1.10'}, or --install-host "
            "127.0.0.1 for agents of this machine"
        )
    with serving(install, host, replace(setup, broker="" if secured else str(broker), fleet=at.fleet)):
        if secured:
            typer.echo(
                "agents of this fleet have credentials, and keep them; a new device gets its own, and its line, with "
                "`fleetnas enroll NAME --authority DIR --serve`"
            )
        wait_for_stop()


def wait_for_stop() -> None:
    """Wait for Ctrl-C or a service manager's stop."""
    stopped = threading.Event()
    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, lambda *_: stopped.set())
    stopped.wait()


@contextlib.contextmanager
def serving(
    install: InstallOptions,
    host: str,
    setup: AgentSetup,
    *,
    broker_port: int | None = None,
    identity: ServerIdentity | None = None,
    credentials: bytes | None = None,
) -> Iterator[None]:
    """Serve the agent, and print the line to paste on a device.

    Args:
        install: options of the command line.
        host: address to listen on.
        setup: configuration of the agents.
        broker_port: of the broker on this machine; None: `setup` has the broker.
        identity: certificate of the server; None: no TLS.
        credentials: content of one agent's credentials file, given once; with an `identity` alone.

    Raises:
        TransportError: the port is not available.
        UsageError: fleetnas is not installed here, or this machine has no address in a network.
    """
    from fleetnas.coordinator.app.install_line import install_files, install_line, install_script
    from fleetnas.coordinator.app.install_server import ServedFile
    from fleetnas.coordinator.app.own_wheel import own_wheel
    from fleetnas.coordinator.app.reachable import addresses_for_devices, is_loopback

    addresses = (install.advertise,) if install.advertise else addresses_for_devices(host)
    if not addresses:
        raise UsageError("this machine has no address in a network; give the one that devices reach with --advertise")
    if broker_port is not None:
        setup = replace(setup, broker=str(BrokerAddress(addresses[0], broker_port)))
    wheel = own_wheel()

    def tell(path: str, client: str) -> None:
        kind = "credentials" if path.startswith("/credentials/") else path.strip("/")
        typer.echo(f"{client} fetched {kind}")

    with _server(install, host, identity) as server:
        server.on_served(tell)
        url = server.url(addresses[0])
        script = install_script(setup, wheel, url)
        server.add(install_files(script, wheel))
        token = secrets.token_urlsafe(32) if credentials is not None else ""
        if credentials is not None:
            server.add([ServedFile(f"/credentials/{token}", credentials, once=True)])
        place = "on this machine" if is_loopback(addresses[0]) else "on a device"
        others = f" (this machine is also {', '.join(addresses[1:])}: --advertise)" if addresses[1:] else ""
        typer.echo(f"to install or update an agent, paste this line {place}{others}:")
        typer.echo(f"\n{install_line(url, script, token=token)}\n")
        typer.echo("options behind it: --run starts the agent, --service makes it a systemd service, --help lists all")
        yield


def _server(install: InstallOptions, host: str, identity: ServerIdentity | None) -> InstallServer:
    """Listen on the port asked for; without one on the usual one, or a free one where that is taken."""
    from fleetnas.coordinator.app.install_server import InstallServer

    if install.install_port is not None:
        return InstallServer((), host, install.install_port, identity=identity)
    try:
        return InstallServer((), host, DEFAULT_INSTALL_PORT, identity=identity)
    except TransportError:
        return InstallServer((), host, 0, identity=identity)
