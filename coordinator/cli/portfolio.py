"""`fleetnas portfolio`: few subnets for all devices and targets of a search."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.configuration import store_location
from fleetnas.coordinator.cli.connection import ConnectionOptions
from fleetnas.coordinator.cli.option_groups import command, names
from fleetnas.coordinator.cli.search.fleet import DeliveryOptions
from fleetnas.coordinator.records.run_names import LATEST
from fleetnas.fleet_protocol.errors import UsageError

if TYPE_CHECKING:
    from fleetnas.coordinator.app.portfolio import PortfolioProblem, RunPortfolio
    from fleetnas.coordinator.app.request import FleetAccess
    from fleetnas.coordinator.records.plan import RunSettings


@dataclass(frozen=True)
class ChoiceOptions:
    """What is chosen, and where it goes."""

    models: Annotated[int, typer.Option("--models", metavar="K", min=1, help="Subnets at most.")]
    worst_case: Annotated[
        bool,
        typer.Option(
            "--worst-case",
            help="Choose by the target that loses most against its own best subnet, not by the mean accuracy.",
        ),
    ] = False
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="FILE", help='JSON such as {"pi4": 20, "phone/litert_cpu_4t_fp32": 0.5}; others 1.'
        ),
    ] = None
    verify: Annotated[
        bool, typer.Option("--verify", help="Measure the chosen subnets on the devices, and choose again on a miss.")
    ] = False
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the choice and the curve, JSON.")
    ] = None
    store: options.Store = None
    as_json: options.Json = False

    def weights_of_file(self) -> dict[str, float]:
        """Read the weights; `UsageError` unless the file is an object of numbers above 0, no name twice."""
        if self.weights is None:
            return {}
        from fleetnas.coordinator.app.portfolio import parse_weights
        from fleetnas.device_profiles.text_files import read_text

        return parse_weights(f"--weights {self.weights}", read_text(self.weights))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("portfolio")(command(portfolio))


def portfolio(
    context: typer.Context,
    run: options.ReadRun = LATEST,
    *,
    choice: ChoiceOptions,
    connection: ConnectionOptions,
    delivery: DeliveryOptions,
) -> None:
    """Choose few subnets for all targets of a search.

    Each target is served by the most accurate chosen subnet that meets it on its device. Without --verify nothing is
    measured: the choice rests on what the search measured, and on predictions. Exit code 1: a target is not served, or
    with --verify not verified.
    """
    from fleetnas.coordinator.cli.portfolio_table import print_portfolio, report_of
    from fleetnas.coordinator.view.output import output_console
    from fleetnas.supernet_export.output_files import check_file, write_atomically

    if not choice.verify:
        options.refuse(
            context, (*names(ConnectionOptions), *names(DeliveryOptions)), "only --verify measures on devices"
        )
    access = delivery.access(connection) if choice.verify else None
    if choice.output is not None:
        check_file("--output", choice.output, ".json")
    run_id, settings, problem = _problem(run, choice)

    def choose() -> RunPortfolio:
        return problem.choose(choice.models, worst_case=choice.worst_case)

    found = _verified(choice, settings, problem, choose, access) if access is not None else choose()
    curve = problem.curve()
    bound = problem.bound(found, choice.models, worst_case=choice.worst_case)
    report = report_of(run_id, found, curve, bound)
    if choice.output is not None:
        write_atomically(choice.output, json.dumps(report, indent=2).encode() + b"\n")
    if choice.as_json:
        typer.echo(json.dumps(report))
    else:
        print_portfolio(output_console(), found, curve, bound)
        if not choice.verify:
            typer.echo("nothing was measured for this choice; add --verify --broker HOST to verify it on the devices")
    raise typer.Exit(0 if found.is_served(verified=choice.verify) else 1)


def _problem(run: str, choice: ChoiceOptions) -> tuple[str, RunSettings, PortfolioProblem]:
    """Find and read the run, and predict all candidates on its device settings."""
    from fleetnas.coordinator.app.portfolio import open_portfolio
    from fleetnas.coordinator.cli.progress import setting_progress
    from fleetnas.coordinator.records.plan import is_search, settings_of
    from fleetnas.coordinator.search.problem import PredictedAccuracy
    from fleetnas.supernet_export.bundle import SupernetBundle

    weights = choice.weights_of_file()
    opened = options.open_to_read(choice.store)
    try:
        found = options.run_to_read(opened, run, is_search)
        settings = settings_of(found)
        bundle = SupernetBundle.open(settings.supernet_path)
        predictor = bundle.accuracy_predictor()
        if predictor is None:
            raise UsageError(f"{bundle.path} holds no accuracy predictor, so no subnet is known to be better")
        accuracy = PredictedAccuracy(bundle.space, predictor)
        with setting_progress() as progress:
            return found.run_id, settings, open_portfolio(opened, found.run_id, accuracy, weights, progress)
    finally:
        opened.close()


def _verified(
    choice: ChoiceOptions,
    settings: RunSettings,
    problem: PortfolioProblem,
    choose: Callable[[], RunPortfolio],
    access: FleetAccess,
) -> RunPortfolio:
    from fleetnas.coordinator.app.portfolio_verification import verified_portfolio
    from fleetnas.coordinator.app.request import ImageFolders, NewRun, SearchRequest
    from fleetnas.coordinator.cli.search.running import run_plan
    from fleetnas.coordinator.records.outcome import CampaignOutcome
    from fleetnas.coordinator.records.plan import CampaignPlan

    calibration = Path(settings.calibration_images) if settings.calibration_images is not None else None

    def measure(plan: CampaignPlan) -> CampaignOutcome:
        request = SearchRequest(
            store_location(choice.store),
            access,
            NewRun(Path(settings.supernet_path), plan),
            images=ImageFolders(calibration, some_classes=settings.some_classes),
        )
        return run_plan(request, as_json=choice.as_json)

    return verified_portfolio(problem, choose, measure, settings.plan.protocol)
