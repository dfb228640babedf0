"""`fleetnas watch`."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.connection import Connection, ConnectionOptions, is_configured
from fleetnas.coordinator.cli.option_groups import command, names
from fleetnas.coordinator.records.run_names import LATEST
from fleetnas.fleet_protocol.errors import UsageError

if TYPE_CHECKING:
    from fleetnas.coordinator.monitoring.feed import Feed

_CONNECT_S, _GATHER_S = 10.0, 2.5
#: Interval between two looks at a store, and between two updates from a broker, seconds.
_STORE_EVERY_S, _BROKER_EVERY_S = 1.0, 0.25


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("watch")(command(watch))


def watch(
    context: typer.Context,
    connection: ConnectionOptions,
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help=f"{options.RUN_HELP} (default: the newest)")
    ] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Show a search that runs elsewhere, until it ends.

    From its store; from the broker with --broker, or where a broker is configured and the store has no such run. Ends
    as the search does: 0 where every target of every device was met, else 1.
    """
    from rich.console import Console

    from fleetnas.coordinator.monitoring.feed import follow
    from fleetnas.coordinator.records.statuses import RunStatus
    from fleetnas.coordinator.view.output import output_console
    from fleetnas.coordinator.view.view import make_view

    console = output_console()
    from_store = not connection.names_a_broker and (store is not None or not _is_at_configured_broker(run))
    if from_store:
        options.refuse(context, names(ConnectionOptions), "without --broker or --credentials a store is watched")
        feed = _from_store(store, run)
    elif store is not None:
        raise UsageError("watch either a store or what the broker tells; leave out --store, or --broker/--credentials")
    else:
        feed = _from_broker(run, connection.connection(read_only=True))
    view = make_view(console, as_json)
    complaints = Console(stderr=True, highlight=False)
    try:
        end = follow(
            feed,
            view,
            lambda missed: complaints.print(f"{missed} events were not received") if not console.is_terminal else None,
            _STORE_EVERY_S if from_store else _BROKER_EVERY_S,
        )
    finally:
        view.close()
        feed.close()
    if end is RunStatus.INTERRUPTED:
        complaints.print(f"run {feed.run_id} was interrupted; `fleetnas search --resume {feed.run_id}` goes on with it")
    raise typer.Exit(0 if end is RunStatus.COMPLETE else 1)


def _is_at_configured_broker(run: str | None) -> bool:
    """Whether a broker is configured, and the store has no such run; without `run`, none that is running."""
    if not is_configured():
        return False
    opened = options.open_to_read(None)
    try:
        found = opened.named_runs.find(run or LATEST)
    except UsageError:
        return True
    finally:
        opened.close()
    return run is None and found.status != "running"


def _from_store(store: str | None, run: str | None) -> Feed:
    from fleetnas.coordinator.app.search_history import SearchHistory
    from fleetnas.coordinator.monitoring.store_feed import StoreFeed

    opened = options.open_to_read(store)
    try:
        feed = StoreFeed(opened, opened.named_runs.find(run or LATEST).run_id)
        history = SearchHistory.of(opened, feed.plan, {record.device for record in opened.devices(feed.run_id)})
        feed.expect(lambda device, label: history.known(device, label).seconds, history.habits)
        return feed
    except BaseException:
        opened.close()
        raise


def _from_broker(run: str | None, found_at: Connection) -> Feed:
    from fleetnas.coordinator.monitoring.broker_feed import BrokerFeed, choose_run, runs_at_work
    from fleetnas.fleet_protocol.topics import Topics
    from fleetnas.fleet_protocol.transports.mqtt import MqttTransport

    topics = Topics(found_at.fleet)
    transport = MqttTransport(found_at.broker, f"watcher-{secrets.token_hex(4)}")
    try:
        transport.start()
        with found_at.told_origin():
            transport.wait_connected(_CONNECT_S)
        chosen = choose_run(runs_at_work(transport, topics, _GATHER_S), run, found_at.fleet)
        return BrokerFeed(transport, topics, chosen)
    except BaseException:
        transport.close()
        raise
