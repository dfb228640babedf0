"""`fleetnas devices`."""

from __future__ import annotations

import json
import secrets
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from coordinator.cli import options

_GATHER_S = 2.0
_CONNECT_S = 10.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("devices")(devices)


def devices(
    broker: options.Broker = None,
    fleet: options.Fleet = None,
    credentials: options.CredentialsFile = None,
    username: options.Username = None,
    password_file: options.PasswordFile = None,
    ca_file: options.CaFile = None,
    certificate_file: options.CertificateFile = None,
    key_file: options.KeyFile = None,
    wait: Annotated[
        float, typer.Option("--wait", min=0.1, help="Seconds to listen; 35 hear every living agent's heartbeat.")
    ] = _GATHER_S,
    as_json: options.Json = False,
) -> None:
    """Who is in the fleet, when it was last seen, and why it is idle."""
    from coordinator.fleet.registry import AgentEntry, FleetRegistry
    from coordinator.fleet.roll_call import listen
    from fleet_protocol.mqtt import MqttTransport
    from fleet_protocol.topics import Topics

    found_at = options.connection(
        broker, fleet, credentials, username, ca_file, certificate_file, key_file, password_file
    )
    address = found_at.broker
    transport = MqttTransport(address, f"devices-{secrets.token_hex(4)}")
    registry = FleetRegistry()
    try:
        listen(
            transport,
            Topics(found_at.fleet),
            registry,
            wait,
            time.monotonic,
            on_start=lambda: transport.wait_connected(_CONNECT_S),
        )
    finally:
        transport.close()

    def describe(entry: AgentEntry) -> dict[str, Any]:
        seen = None if entry.last_seen_s is None else time.monotonic() - entry.last_seen_s
        info = entry.info
        return {
            "device": entry.name,
            "state": "duplicate" if entry.duplicate else entry.liveness,
            "last_seen_s_ago": None if seen is None else round(seen, 1),
            "model": info.profile.model if info else None,
            "settings": [setting.label for setting in info.settings] if info else [],
            "temperature_c": entry.conditions.temperature_c,
            "why": entry.idle_reason(),
        }

    found = [describe(registry.agents[name]) for name in sorted(registry.agents)]
    if as_json:
        for each in found:
            typer.echo(json.dumps(each))
        return
    console = Console()
    if not found:
        console.print(
            f"no agent has ever announced itself in fleet {found_at.fleet!r} on {address}; run on each device: "
            f"fleetnas-agent run --broker {address} --fleet {found_at.fleet}",
            markup=False,
        )
        return
    table = Table(pad_edge=False)
    for heading in ("Device", "State", "Last seen", "Model", "Settings", "Why"):
        table.add_column(heading, overflow="fold")
    for each in found:
        ago = each["last_seen_s_ago"]
        # Retained messages say what an agent was, not when.
        seen = "not since this command listens" if ago is None else f"{ago:.0f} s ago"
        table.add_row(
            each["device"], each["state"], seen, each["model"] or "?", "\n".join(each["settings"]) or "?", each["why"]
        )
    console.print(table)
