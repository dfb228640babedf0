"""The portfolio at the end of a search: chosen by what was measured, verified on the same fleet, written beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetnas.coordinator.app.portfolio import PortfolioBound, PortfolioProblem, RunPortfolio, open_portfolio
from fleetnas.coordinator.app.portfolio_verification import verified_portfolio
from fleetnas.coordinator.app.request import ImageFolders, NewRun, SearchRequest
from fleetnas.coordinator.records.outcome import CampaignOutcome
from fleetnas.coordinator.records.plan import CampaignPlan, RunSettings, settings_of
from fleetnas.coordinator.report.html import write_report
from fleetnas.coordinator.report.portfolio_section import CURVE_FILE, PORTFOLIO_FILE, curve_picture
from fleetnas.coordinator.search.portfolio import Portfolio
from fleetnas.coordinator.search.problem import PredictedAccuracy
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.output_files import write_atomically

ReportOf = Callable[[str, RunPortfolio, Sequence[Portfolio], PortfolioBound], dict[str, Any]]


@dataclass(frozen=True)
class ChosenAtEnd:
    """The portfolio of a search that has just ended."""

    portfolio: RunPortfolio
    curve: Sequence[Portfolio]
    bound: PortfolioBound
    report: dict[str, Any]
    file: Path | None
    """`portfolio.json` in the folder of results; None where the search has no folder."""
    trouble: str = ""
    """Reason why verification ended early; empty where it did not."""


def open_run_portfolio(
    request: SearchRequest, run_id: str, weights: Mapping[str, float], progress: Callable[[int, int], None]
) -> PortfolioProblem:
    """Read a stored search, and predict all candidates on its device settings.

    `UsageError` where its bundle has no accuracy predictor; and as `open_portfolio`.
    """
    store = MeasurementStore.open(request.store)
    try:
        bundle = SupernetBundle.open(settings_of(store.run(run_id)).supernet_path)
        predictor = bundle.accuracy_predictor()
        if predictor is None:
            raise UsageError(f"{bundle.path} holds no accuracy predictor, so no subnet is known to be better")
        return open_portfolio(store, run_id, PredictedAccuracy(bundle.space, predictor), weights, progress)
    finally:
        store.close()


def choose_at_end(
    request: SearchRequest,
    run_id: str,
    problem: PortfolioProblem,
    models: int,
    *,
    worst_case: bool,
    measure: Callable[[SearchRequest], CampaignOutcome],
    report_of: ReportOf,
) -> ChosenAtEnd:
    """Choose at most `models` subnets, verify them on the fleet of the search, and write the choice beside its results.

    `measure` runs a request that measures given subnets. What it cannot measure stays unverified in the choice.
    """
    settings = _settings(request, run_id)

    def run(plan: CampaignPlan) -> CampaignOutcome:
        return measure(_measurement(request, settings, plan))

    def choose() -> RunPortfolio:
        return problem.choose(models, worst_case=worst_case)

    trouble = ""
    try:
        found = verified_portfolio(problem, choose, run, settings.plan.protocol)
    except FleetnasError as error:  # the search has its results; a device that has gone must not hide the choice
        found, trouble = choose(), one_line(error)
    curve, bound = problem.curve(), problem.bound(found, models, worst_case=worst_case)
    report = report_of(run_id, found, curve, bound)
    file = None
    if settings.out is not None:
        out = Path(settings.out)
        file = out / PORTFOLIO_FILE
        write_atomically(file, json.dumps(report, indent=2).encode() + b"\n")
        write_atomically(out / CURVE_FILE, curve_picture(report["curve"], len(report["models"])).encode())
        write_report(out)
    return ChosenAtEnd(found, curve, bound, report, file, trouble)


def _settings(request: SearchRequest, run_id: str) -> RunSettings:
    store = MeasurementStore.open(request.store)
    try:
        return settings_of(store.run(run_id))
    finally:
        store.close()


def _measurement(request: SearchRequest, settings: RunSettings, plan: CampaignPlan) -> SearchRequest:
    """Make the request of a verification on the fleet of a search."""
    calibration = Path(settings.calibration_images) if settings.calibration_images is not None else None
    timing = {
        name: getattr(settings.plan, name) for name in ("join_s", "grace_s", "deadline_s", "conditions", "cool_s")
    }
    return SearchRequest(
        request.store,
        request.devices_at,
        NewRun(Path(settings.supernet_path), plan.model_copy(update=timing)),
        images=ImageFolders(calibration, some_classes=settings.some_classes),
    )
