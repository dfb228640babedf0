"""A portfolio on the terminal, and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from fleetnas.coordinator.app.portfolio import PortfolioBound, RunPortfolio, Service
from fleetnas.coordinator.records.targets import target_name
from fleetnas.coordinator.search.portfolio import Portfolio
from fleetnas.coordinator.view.tables import word_table
from fleetnas.coordinator.view.wording import count_of

#: Points of the curve that are shown: beyond, models add little.
_SHOWN = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def print_portfolio(
    console: Console, portfolio: RunPortfolio, curve: Sequence[Portfolio], bound: PortfolioBound
) -> None:
    """Print every target with the subnet that serves it, and accuracy by the number of models."""
    headings = ("Device setting", "Target", "Subnet", "ms", "known", "Top-1", "own winner")
    numbers = ("Target", "ms", "Top-1", "own winner")
    console.print(word_table(headings, map(_cells, portfolio.services), console.width, numbers))
    mean, own = _percent(portfolio.mean_accuracy), _percent(portfolio.winners_accuracy)
    console.print(
        f"{count_of(len(portfolio.architectures), 'model')} for {count_of(len(portfolio.services), 'target')}: mean "
        f"predicted top-1 {mean}; the search's own {count_of(portfolio.winners, 'winner')}: {own}",
        highlight=False,
    )
    if bound.mean_accuracy is not None and portfolio.mean_accuracy is not None:
        gap = 100.0 * (bound.mean_accuracy - portfolio.mean_accuracy)
        console.print(
            f"no choice of as many models has a mean above {_percent(bound.mean_accuracy)}: this one is within "
            f"{max(gap, 0.0):.2f} points of the best",
            highlight=False,
        )
    if bound.least_loss is not None:
        console.print(
            f"the worst-served target loses {100 * bound.greatest_loss:.2f} points against its own best subnet; no "
            f"choice of as many models keeps that below {100 * bound.least_loss:.2f}",
            highlight=False,
        )
    shown = [(n, point) for n, point in enumerate(curve, 1) if n in _SHOWN or n == len(curve)]
    line = ", ".join(
        f"{n}: {_percent(point.mean_accuracy)}"
        + (f" ({point.served} of {len(portfolio.services)} served)" if point.served < len(portfolio.services) else "")
        for n, point in shown
    )
    console.print(f"mean top-1 by number of models: {line}", highlight=False)


def _cells(service: Service) -> tuple[str, ...]:
    demand = service.demand
    own = demand.outcome.predicted_accuracy if demand.outcome.met else None
    named = (f"{demand.device}/{demand.setting}", target_name(demand.target_ms, ""))
    if service.architecture is None or service.latency_ms is None:
        return (*named, "none is likely to meet it", "", "", "", _percent(own))
    return (
        *named,
        service.architecture.fingerprint,
        f"{service.latency_ms:.4g}",
        service.known_by,
        _percent(service.accuracy),
        _percent(own),
    )


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def report_of(
    run_id: str, portfolio: RunPortfolio, curve: Sequence[Portfolio], bound: PortfolioBound
) -> dict[str, Any]:
    """Return the portfolio as JSON's types; accuracies are fractions, latencies milliseconds."""
    return {
        "run_id": run_id,
        "mean_accuracy": portfolio.mean_accuracy,
        "bound": {
            "mean_accuracy": bound.mean_accuracy,
            "greatest_loss": bound.greatest_loss,
            "least_loss": bound.least_loss,
        },
        "winners": portfolio.winners,
        "winners_mean_accuracy": portfolio.winners_accuracy,
        "models": [architecture.model_dump(mode="json") for architecture in portfolio.architectures],
        "served": [
            {
                "device": service.demand.device,
                "setting": service.demand.setting,
                "target_ms": service.demand.target_ms,
                "weight": service.demand.weight,
                "subnet": service.architecture.fingerprint if service.architecture is not None else None,
                "accuracy": service.accuracy,
                "latency_ms": service.latency_ms,
                "known_by": service.known_by if service.architecture is not None else None,
            }
            for service in portfolio.services
        ],
        "curve": [
            {
                "models": len(point.chosen),
                "mean_accuracy": point.mean_accuracy,
                "served": point.served,
                "greatest_loss": point.greatest_loss,
            }
            for point in curve
        ],
    }
