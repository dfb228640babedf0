"""`fleetnas devices`."""

from __future__ import annotations

import datetime
import json
import secrets
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fleetnas.coordinator.cli import options
from fleetnas.device_profiles.plain_text import plain
from fleetnas.fleet_protocol.errors import UsageError

if TYPE_CHECKING:
    from fleetnas.coordinator.monitoring.fleet_observer import FleetObserver

_GATHER_S = 2.5  # a coordinator tells of its run every 2 s
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
    authority: Annotated[
        Path | None,
        typer.Option("--authority", metavar="DIR", help="Compare with who is enrolled there; also logs in with it."),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            "--wait", metavar="SECONDS", min=0.1, help="How long to listen; 35 hear every living agent's heartbeat."
        ),
    ] = _GATHER_S,
    distrust: Annotated[
        list[str] | None,
        typer.Option(
            "--distrust",
            metavar="NAME",
            help="Let searches that begin from now on learn nothing from what this device measured; may be repeated.",
        ),
    ] = None,
    trust: Annotated[
        list[str] | None, typer.Option("--trust", metavar="NAME", help="Take --distrust back; may be repeated.")
    ] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Who is in the fleet, when last seen, and why idle.

    With --distrust or --trust: whose measurements in the store teach other devices.
    """
    if distrust or trust:
        if any(option is not None for option in (broker, fleet, credentials, authority)):
            raise UsageError(
                "--distrust and --trust are about a store, not a fleet; leave out --broker, --fleet, --credentials and "
                "--authority"
            )
        _change_trust(distrust or [], trust or [], store, as_json)
        return
    if store is not None:
        raise UsageError("--store goes with --distrust or --trust; who is in the fleet is asked of the broker alone")
    from fleetnas.coordinator.monitoring.fleet_observer import FleetObserver
    from fleetnas.fleet_protocol.topics import Topics
    from fleetnas.fleet_protocol.transports.mqtt import MqttTransport

    if authority is not None and broker is None and credentials is None:
        credentials = authority / "coordinator.credentials"
    found_at = options.connection(
        broker, fleet, credentials, username, ca_file, certificate_file, key_file, password_file, watching=True
    )
    address = found_at.broker
    enrolled = _enrolled(authority) if authority is not None else None
    transport = MqttTransport(address, f"devices-{secrets.token_hex(4)}")
    fleet_observer = FleetObserver(Topics(found_at.fleet))
    try:
        fleet_observer.listen(transport, wait, time.monotonic, on_start=lambda: transport.wait_connected(_CONNECT_S))
    finally:
        transport.close()
    found = _rows(fleet_observer, enrolled, time.monotonic())
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
            soft_wrap=True,
        )
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("Device", "State", "Last seen", "Model and settings", "Why"):
        table.add_column(heading, overflow="fold", ratio=3 if heading == "Why" else None)
    for each in found:
        model = Text("\n".join((each["model"] or "?", *each["settings"])))
        texts = (each["device"], each["state"], _last_seen(each))
        table.add_row(*(Text(text) for text in texts), model, Text(plain(each["why"])))
    console.print(table)


def _change_trust(distrust: list[str], trust: list[str], store: str | None, as_json: bool) -> None:
    """Note in the store whose measurements teach others, and say whose do not."""
    from fleetnas.coordinator.store.store import MeasurementStore

    both = sorted({*distrust} & {*trust})
    if both:
        raise UsageError(f"{', '.join(both)} cannot be both distrusted and trusted; give one of the two options")
    opened = MeasurementStore.open(options.existing_store(store))
    try:
        opened.distrust(distrust, trust)
        left_out = sorted(opened.distrusted())
        url = opened.url
    finally:
        opened.close()
    if as_json:
        typer.echo(json.dumps({"store": url, "distrusted": left_out}))
    else:
        names = ", ".join(left_out) or "no device"
        typer.echo(f"new searches with the store {url} learn from all earlier measurements but those of: {names}")


def _last_seen(row: dict[str, Any]) -> str:
    if row["state"] == "absent":
        return "never"
    # Retained messages say what an agent was, not when.
    ago_s = row["last_seen_s_ago"]
    return "not since this command listens" if ago_s is None else f"{ago_s:.0f} s ago"


def _rows(fleet_observer: FleetObserver, enrolled: dict[str, str] | None, now_s: float) -> list[dict[str, Any]]:
    """One row for every agent that was heard of or is enrolled; `enrolled` says what is wrong with each login."""
    version = metadata.version("fleetnas")
    agents = fleet_observer.registry.agents
    rows = []
    for name in sorted({*agents, *fleet_observer.refused, *(enrolled or ())}):
        entry = agents.get(name)
        whys = []
        if enrolled is not None and name not in enrolled:
            whys.append("it is not enrolled, so no search should trust it: `fleetnas enroll`, or stop it")
        elif enrolled is not None and enrolled[name]:
            whys.append(enrolled[name])
        if entry is not None:
            whys.append(fleet_observer.explain(entry, version))
        elif name in fleet_observer.refused:
            whys.append(
                f"none of its messages can be read ({fleet_observer.refused[name]}): "
                "update the older of fleetnas-agent and this fleetnas"
            )
        elif not whys:
            whys.append(
                "enrolled, and never seen by this broker: start `fleetnas-agent run --credentials` on it; if it runs, "
                "`fleetnas-agent doctor` there tells what is in its way"
            )
        info = entry.info if entry is not None else None
        seen = entry.last_seen_s if entry is not None else None
        state = "unreadable" if name in fleet_observer.refused else "absent"
        if entry is not None:
            state = "duplicate" if entry.duplicate else entry.liveness
        rows.append(
            {
                "device": name,
                "state": state,
                "last_seen_s_ago": None if seen is None else round(now_s - seen, 1),
                "model": info.profile.model if info else None,
                "settings": [setting.label for setting in info.settings] if info else [],
                "temperature_c": entry.conditions.temperature_c if entry is not None else None,
                "why": "; ".join(whys),
            }
        )
    return rows


def _enrolled(folder: Path) -> dict[str, str]:
    """What is wrong with the login of every enrolled agent; empty where nothing is."""
    from fleetnas.coordinator.security import mosquitto
    from fleetnas.coordinator.security.authority import Authority

    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        name: f"its certificate expired on {login.expires:%Y-%m-%d}: `fleetnas enroll {name} --renew`"
        if login.expires is not None and login.expires <= now
        else ""
        for name, login in Authority.open(folder).register.enrolled.items()
        if name not in (mosquitto.COORDINATOR, mosquitto.WATCHER)
    }
