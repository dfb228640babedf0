"""`fleetnas search`: chooses the kind of search, and refuses the options of the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.bounds import BoundOptions
from fleetnas.coordinator.cli.configuration import store_location
from fleetnas.coordinator.cli.connection import ConnectionOptions
from fleetnas.coordinator.cli.option_groups import command, names
from fleetnas.coordinator.cli.quantities import seconds
from fleetnas.coordinator.cli.search.baselines import BaselineOptions
from fleetnas.coordinator.cli.search.fleet import FleetOptions
from fleetnas.coordinator.cli.search.local import LocalOptions
from fleetnas.coordinator.cli.search.measuring import MeasuringOptions
from fleetnas.coordinator.cli.search.offline import IMAGES, SHARED, OfflineOptions, search_offline
from fleetnas.coordinator.cli.search.plan import PlanOptions
from fleetnas.coordinator.cli.search.portfolio import PortfolioOptions
from fleetnas.coordinator.records.run_names import LATEST
from fleetnas.fleet_protocol.errors import UsageError

if TYPE_CHECKING:
    from fleetnas.coordinator.app.request import NewRun, ResumedRun
    from fleetnas.coordinator.records.bounds import Bounds
    from fleetnas.coordinator.records.plan import CampaignPlan

_RERANK_ADVICE = "images choose among candidates only with --rerank K, which is not given: add it"
_DEFAULT_OUT = Path("fleetnas-out")


@dataclass(frozen=True)
class RunOptions:
    """The run, its files, and its metrics."""

    supernet: Annotated[
        Path | None, typer.Option("--supernet", metavar="FILE", help="The exported supernet, a .supernet file.")
    ] = None
    name: options.RunName = None
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="[RUN]", help="Go on with a stored run (default: the latest interrupted)."),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where results and winners' model files go (default: fleetnas-out; resumed: where they went).",
        ),
    ] = None
    calibration_images: options.CalibrationImages = None
    evaluation_images: Annotated[
        Path | None,
        typer.Option(
            "--evaluation-images",
            metavar="DIR",
            help="The same, to evaluate winners on; only reported, they decide nothing.",
        ),
    ] = None
    selection_images: Annotated[
        Path | None,
        typer.Option(
            "--selection-images",
            metavar="DIR",
            help="The same, to choose among the best candidates of each target (with --rerank).",
        ),
    ] = None
    some_classes: options.SomeClasses = False
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="TIME",
            parser=seconds("--timeout", 1),
            help="End after this time, such as 2h, with the winners verified so far; --resume goes on.",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say who would take part, how many measurements and how long; measure and store nothing."
        ),
    ] = False
    store: options.Store = None
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            metavar="PORT",
            min=0,
            max=65535,
            help="Serve Prometheus metrics there (see docs/monitoring.md).",
        ),
    ] = None
    metrics_address: Annotated[
        str, typer.Option("--metrics-address", metavar="ADDRESS", help="Where --metrics-port listens.")
    ] = "127.0.0.1"
    tracking: options.Tracking = None
    as_json: options.Json = False


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("search")(command(search))


def search(
    context: typer.Context,
    connection: ConnectionOptions,
    run: RunOptions,
    plan: PlanOptions,
    measuring: MeasuringOptions,
    bound: BoundOptions,
    against: BaselineOptions,
    fleet: FleetOptions,
    here: LocalOptions,
    offline: OfflineOptions,
    portfolio: PortfolioOptions,
) -> None:
    """Search the whole fleet by measuring on every device.

    It leaves a verified model per device setting and latency target.
    """
    from fleetnas.coordinator.app.request import ImageFolders, SearchRequest

    bounds = bound.bounds()
    if offline.offline:
        _search_offline(context, run, plan, bounds, offline)
        return
    _refuse_useless(context, run, plan, measuring, local=here.local)
    if not against.baseline:
        options.refuse(context, ("baseline_accuracy", "input_shape"), "these options are about a --baseline")
    portfolio.refuse_useless(context)
    agents = fleet.agents()
    new_plan = plan.plan(bounds, agents, measuring) if run.resume is None else None
    if new_plan is not None and against.baseline:
        new_plan = new_plan.with_baselines(against.baselines(run.supernet))
    local = here.device() if here.local else None
    store = store_location(run.store)
    resumed = None
    if new_plan is None:
        from fleetnas.coordinator.cli.search.resuming import claim_resumed

        which = run.resume or LATEST
        resumed = claim_resumed(context, store, which, kind="search", connection=connection, fleet=fleet, local=local)
    request = SearchRequest(
        store,
        resumed.devices_at if resumed is not None else local or fleet.access(connection),
        _chosen_run(run, new_plan, agents, resumed.run_id if resumed is not None else LATEST),
        out=None if run.dry_run else _DEFAULT_OUT if run.out is None and run.resume is None else run.out,
        images=ImageFolders(run.calibration_images, run.evaluation_images, run.selection_images, run.some_classes),
        metrics=(run.metrics_address, run.metrics_port) if run.metrics_port is not None else None,
        tracking_uri=options.tracking_uri(run.tracking),
        timeout_s=run.timeout,
        check_devices=portfolio.check_devices(),
    )
    if run.dry_run:
        from fleetnas.coordinator.cli.search.dry_run import print_dry_run

        raise typer.Exit(print_dry_run(request, as_json=run.as_json))
    from fleetnas.coordinator.cli.search.running import run_search

    claimed = resumed.store if resumed is not None else None
    if portfolio.models is not None:
        from fleetnas.coordinator.cli.search.portfolio import run_search_for_portfolio

        raise typer.Exit(run_search_for_portfolio(request, portfolio, as_json=run.as_json, store=claimed))
    raise typer.Exit(run_search(request, as_json=run.as_json, store=claimed))


def _search_offline(
    context: typer.Context, run: RunOptions, plan: PlanOptions, bounds: Bounds, offline: OfflineOptions
) -> None:
    from fleetnas.coordinator.app.request import ImageFolders

    unused = set(options.given(context)) - {*SHARED, *names(OfflineOptions), *names(BoundOptions)}
    options.refuse(context, unused, "--offline measures on no device")
    if not plan.rerank:
        options.refuse(context, IMAGES, _RERANK_ADVICE)
    images = ImageFolders(run.calibration_images, selection=run.selection_images)
    search_offline(offline, plan, bounds, images, run.out or _DEFAULT_OUT, as_json=run.as_json)


def _chosen_run(
    run: RunOptions, new_plan: CampaignPlan | None, agents: tuple[str, ...], resumed: str
) -> NewRun | ResumedRun:
    from fleetnas.coordinator.app.request import NewRun, ResumedRun

    if new_plan is None:
        return ResumedRun(resumed, run.supernet, agents)
    if run.supernet is None:
        raise UsageError("a new search needs --supernet and --targets; to go on with a stored run give --resume")
    return NewRun(run.supernet, new_plan, name=run.name)


def _refuse_useless(
    context: typer.Context, run: RunOptions, plan: PlanOptions, measuring: MeasuringOptions, *, local: bool
) -> None:
    """`UsageError` where an option was given that this kind of search on devices does not use."""
    options.refuse(context, names(OfflineOptions), "these options are for a search without a device (--offline)")
    if run.resume is None and run.calibration_images is None and run.evaluation_images is None:
        options.refuse(context, ("some_classes",), "--some-classes is about folders of images, and none is given")
    if local:
        fleets = (*names(ConnectionOptions), *names(FleetOptions), "wait_for", "no_pool", "verify_boards")
        options.refuse(context, fleets, "--local has neither broker nor fleet")
    else:
        options.refuse(
            context,
            names(LocalOptions),
            "these options are for a search on this device alone (--local), and agents of a fleet are told their "
            "settings by `fleetnas-agent run`",
        )
    if run.dry_run:
        # Options of the search that follows are taken, so that --dry-run can be added to its whole line.
        options.refuse(context, ("resume",), "--dry-run is about a new search")
    if run.metrics_port is None:
        options.refuse(context, ("metrics_address",), "metrics are served with --metrics-port alone")
    if run.resume is not None:
        kept = (*names(PlanOptions), *names(MeasuringOptions), *names(BoundOptions), *names(BaselineOptions), "name")
        options.refuse(context, kept, "a resumed run keeps what it began with")
        return
    if plan.no_pool:
        options.refuse(context, ("verify_boards",), "--no-pool makes no class of equal boards")
    if not plan.rerank:
        options.refuse(context, ("selection_images",), _RERANK_ADVICE)
    if plan.accuracy_floor is None:
        options.refuse(context, ("minimise",), "--minimise is for the subnet that keeps an --accuracy-floor: add it")
    if measuring.conditions != "cool":
        options.refuse(context, ("cool_for",), "only --conditions cool waits for a device to cool")
