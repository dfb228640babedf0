"""The portfolio at the end of a search: its options, and the run that chooses and verifies it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.suggestions import did_you_mean

if TYPE_CHECKING:
    from fleetnas.coordinator.app.request import SearchRequest
    from fleetnas.coordinator.store.store import MeasurementStore


@dataclass(frozen=True)
class PortfolioOptions:
    """How many subnets are chosen for the whole fleet, and by what."""

    models: Annotated[
        int | None,
        typer.Option(
            "--models", metavar="K", min=1, help="At the end, choose and verify K subnets that serve all targets."
        ),
    ] = None
    worst_case: Annotated[
        bool, typer.Option("--worst-case", help="With --models: by the target that loses most, not by the mean.")
    ] = False
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="FILE", help='With --models: weights of devices, JSON such as {"pi4": 20}; others 1.'
        ),
    ] = None

    def refuse_useless(self, context: typer.Context) -> None:
        """`UsageError` where an option says how to choose, and nothing is chosen."""
        if self.models is None:
            options.refuse(context, ("worst_case", "weights"), "these options are about --models K, which is not given")

    def weights_of_file(self) -> dict[str, float]:
        """Read the weights; `UsageError` unless the file is an object of numbers above 0, no name twice."""
        if self.weights is None:
            return {}
        from fleetnas.coordinator.app.portfolio import parse_weights
        from fleetnas.device_profiles.text_files import read_text

        return parse_weights(f"--weights {self.weights}", read_text(self.weights))

    def check_devices(self) -> Callable[[Collection[str]], None]:
        """Return the check of the weights against the devices that take part, before any of them measures."""
        weights = self.weights_of_file()

        def check(names: Collection[str]) -> None:
            unknown = sorted(set(weights) - set(names))
            if unknown:
                near = did_you_mean(unknown[0], sorted(names))
                raise UsageError(
                    f"--weights {self.weights} names {', '.join(unknown)[:200]}{near} there are "
                    f"{', '.join(sorted(names))[:400]}: correct the file, or start those agents"
                )

        return check


def run_search_for_portfolio(
    request: SearchRequest, chosen: PortfolioOptions, *, as_json: bool, store: MeasurementStore | None = None
) -> int:
    """Run a search, then choose and verify a portfolio on the same fleet; returns the exit code.

    0: every target is served by a verified subnet of the portfolio.
    """
    from fleetnas.coordinator.app.search_portfolio import choose_at_end, open_run_portfolio
    from fleetnas.coordinator.cli.portfolio_table import print_portfolio, report_of
    from fleetnas.coordinator.cli.progress import setting_progress
    from fleetnas.coordinator.cli.search.running import EXIT_CODES, run_plan, search_once
    from fleetnas.coordinator.records.statuses import RunStatus
    from fleetnas.coordinator.view.output import output_console

    ended = search_once(request, as_json=as_json, store=store)
    if ended.deleted:
        return ended.exit_code
    if ended.status in (RunStatus.INTERRUPTED, RunStatus.FAILED) or ended.timed_out:
        reason = "the search did not end by itself" if ended.timed_out else f"the search ended {ended.status}"
        typer.echo(f"no portfolio: {reason}; choose one later with `fleetnas portfolio {ended.run_id}`", err=as_json)
        return EXIT_CODES[ended.status]
    assert chosen.models is not None
    with setting_progress() as progress:
        problem = open_run_portfolio(request, ended.run_id, chosen.weights_of_file(), progress)
    found = choose_at_end(
        request,
        ended.run_id,
        problem,
        chosen.models,
        worst_case=chosen.worst_case,
        measure=lambda measured: run_plan(measured, as_json=as_json),
        report_of=report_of,
    )
    if found.trouble:
        verify = f"fleetnas portfolio {ended.run_id} --models {chosen.models} --verify"
        typer.echo(f"the portfolio is not verified: {found.trouble}. Verify it later with: {verify}", err=True)
    if as_json:
        import json

        typer.echo(json.dumps({"event": "portfolio", **found.report}))
    else:
        print_portfolio(output_console(), found.portfolio, found.curve, found.bound)
        if found.file is not None:
            typer.echo(f"portfolio: {found.file}")
    return 0 if found.portfolio.is_served(verified=True) else 1
