"""`fleetnas devices`."""

from __future__ import annotations

import datetime
import json
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleetnas.coordinator.app.own_wheel import own_version
from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.connection import Connection, ConnectionOptions
from fleetnas.coordinator.cli.option_groups import command
from fleetnas.coordinator.cli.quantities import seconds
from fleetnas.coordinator.monitoring.versions import is_out_of_date
from fleetnas.device_profiles.plain_text import plain
from fleetnas.fleet_protocol.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from fleetnas.coordinator.monitoring.fleet_observer import FleetObserver

#: Default time to listen, seconds: a coordinator publishes its run every 2 s.
_GATHER_S = 2.5
#: Listening for longer than this receives a heartbeat of every living agent, seconds: they come every 30 s.
_HEARTBEAT_S = 32.0
_CONNECT_S = 10.0


@dataclass(frozen=True)
class TrustOptions:
    """Devices whose measurements teach others, or not; in a store."""

    distrust: Annotated[
        list[str] | None,
        typer.Option(
            "--distrust",
            metavar="NAME",
            help="Let searches that begin from now on learn nothing from what this device measured; may be repeated.",
        ),
    ] = None
    trust: Annotated[
        list[str] | None, typer.Option("--trust", metavar="NAME", help="Take --distrust back; may be repeated.")
    ] = None
    store: options.Store = None


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("devices")(command(devices))


def devices(
    connection: ConnectionOptions,
    trust: TrustOptions,
    authority: Annotated[
        Path | None,
        typer.Option("--authority", metavar="DIR", help="Compare with who is enrolled there; also logs in with it."),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            "--wait",
            metavar="TIME",
            parser=seconds("--wait", 0.1),
            help="How long to listen; 35s to receive every living agent's heartbeat.",
        ),
    ] = _GATHER_S,
    as_json: options.Json = False,
) -> None:
    """List the fleet's agents: when last seen, and why idle.

    With --distrust or --trust: choose the devices whose measurements in the store teach others.
    """
    if trust.distrust or trust.trust:
        fleet_options = (connection.broker, connection.fleet, connection.credentials, authority)
        if any(option is not None for option in fleet_options):
            raise UsageError(
                "--distrust and --trust are about a store, not a fleet; leave out --broker, --fleet, --credentials and "
                "--authority"
            )
        _change_trust(trust.distrust or [], trust.trust or [], trust.store, as_json)
        return
    if trust.store is not None:
        raise UsageError("--store goes with --distrust or --trust; who is in the fleet is asked of the broker alone")
    if authority is not None and not connection.names_a_broker:
        connection = replace(connection, credentials=authority / "coordinator.credentials")
    from fleetnas.coordinator.view.output import output_console

    found_at = connection.connection(read_only=True)
    enrolled = _enrolled(authority) if authority is not None else None
    found = fleet_rows(_observed(found_at, wait), enrolled, time.monotonic(), wait)
    if as_json:
        for each in found:
            typer.echo(json.dumps(each))
    elif found:
        console = output_console()
        console.print(table_of(found, console.width))
        retained = [each for each in found if each["state"] in ("ready", "busy") and each["last_seen_s_ago"] is None]
        if retained and wait <= _HEARTBEAT_S:
            typer.echo("states of agents not seen are the broker's memory; --wait 35 tells which of them are alive")
    else:
        output_console().print(
            f"no agent has ever announced itself in fleet {found_at.fleet!r} on {found_at.broker}; run on each device: "
            f"fleetnas-agent run --broker {found_at.broker} --fleet {found_at.fleet}",
            markup=False,
            soft_wrap=True,
        )


def _observed(found_at: Connection, wait_s: float) -> FleetObserver:
    """Listen to a fleet for `wait_s` seconds."""
    from fleetnas.coordinator.monitoring.fleet_observer import FleetObserver
    from fleetnas.fleet_protocol.topics import Topics
    from fleetnas.fleet_protocol.transports.mqtt import MqttTransport

    transport = MqttTransport(found_at.broker, f"devices-{secrets.token_hex(4)}")
    observer = FleetObserver(Topics(found_at.fleet))
    try:
        with found_at.told_origin():
            observer.listen(transport, wait_s, time.monotonic, on_start=lambda: transport.wait_connected(_CONNECT_S))
    finally:
        transport.close()
    return observer


def table_of(rows: list[dict[str, Any]], width: int) -> Table:
    """Lay out the agents in `width` cells."""
    from fleetnas.coordinator.view.tables import word_table

    return word_table(
        ("Device", "State", "Last seen", "Model and settings", "Why"),
        (
            (
                each["device"],
                each["state"],
                _last_seen(each),
                "\n".join((each["model"] or "?", *each["settings"], *_names(each))),
                plain(each["why"]),
            )
            for each in rows
        ),
        width,
    )


def _names(row: dict[str, Any]) -> list[str]:
    """Describe the tags of an agent, and its class of equal boards."""
    tags = [f"tags: {', '.join(row['tags'])}"] if row["tags"] else []
    return [*tags, f"one of {len(row['equal_boards'])} equal boards"] if row["equal_boards"] else tags


def _change_trust(distrust: list[str], trust: list[str], store: str | None, as_json: bool) -> None:
    """Store the devices whose measurements teach others, and print those whose do not."""
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
    # Retained messages tell an agent's last state, not its time.
    ago_s = row["last_seen_s_ago"]
    return "not since this command listens" if ago_s is None else f"{ago_s:.0f} s ago"


def fleet_rows(
    fleet_observer: FleetObserver, enrolled: dict[str, str] | None, now_s: float, listened_s: float
) -> list[dict[str, Any]]:
    """Make a row for every agent that sent a message or is enrolled.

    Args:
        fleet_observer: of the fleet, after it has listened.
        enrolled: the fault of each enrolled agent's login; None: not compared.
        now_s: the observer's clock, seconds.
        listened_s: duration of listening, seconds. An agent that is silent for longer than a heartbeat is `silent`,
            whatever state the broker retains of it.
    """
    from fleetnas.coordinator.records.equal_boards import classes_of

    version = own_version()
    agents = fleet_observer.registry.agents
    equal = classes_of(entry.info for entry in agents.values() if entry.info is not None)
    rows = []
    for name in sorted({*agents, *fleet_observer.refused, *(enrolled or ())}):
        entry = agents.get(name)
        whys = []
        if enrolled is not None and name not in enrolled:
            whys.append("it is not enrolled, so no search should trust it: `fleetnas enroll`, or stop it")
        elif enrolled is not None and enrolled[name]:
            whys.append(enrolled[name])
        silent = listened_s > _HEARTBEAT_S and entry is not None and entry.usable and entry.last_seen_s is None
        if silent:
            whys.append(
                f"the broker remembers it, and it sent no heartbeat for {listened_s:g} s; start fleetnas-agent on the "
                "device"
            )
        elif entry is not None:
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
            state = "silent" if silent else "duplicate" if entry.duplicate else entry.liveness
        rows.append(
            {
                "device": name,
                "state": state,
                "last_seen_s_ago": None if seen is None else round(now_s - seen, 1),
                "model": info.profile.model if info else None,
                "settings": [setting.label for setting in info.settings] if info else [],
                "version": info.versions.get("fleetnas") if info else None,
                "out_of_date": info is not None and is_out_of_date(info, version),
                "tags": list(info.tags) if info else [],
                "equal_boards": list(equal.get(name, ())),
                "temperature_c": entry.conditions.temperature_c if entry is not None else None,
                "why": "; ".join(whys),
            }
        )
    return rows


def _enrolled(folder: Path) -> dict[str, str]:
    """Find the fault of every enrolled agent's login; empty where there is none."""
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
