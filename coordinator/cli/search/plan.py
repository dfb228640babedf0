"""The options that make a campaign's plan; a run keeps them from its beginning on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from pydantic import ValidationError

from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.plan import CampaignPlan, PriorChoice
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.fleet_protocol.error_text import first_fault
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import Condition, MeasurementProtocol

_MOST_INITIAL_DESIGN = 10
#: Cap of one measurement, seconds; a multiple of its least time where that is longer.
_LEAST_CAP_S, _CAP_FACTOR = 20.0, 2


@dataclass(frozen=True)
class PlanOptions:
    """Targets, strategy, budget, and the way devices are waited for and measured."""

    targets: Annotated[
        TargetRequest | None,
        typer.Option(
            "--targets",
            metavar="MS,...|auto:N",
            parser=TargetRequest.parse,
            help="Latency targets in ms, or auto:N for N per device setting.",
        ),
    ] = None
    wait_for: Annotated[
        int, typer.Option("--wait-for", metavar="N", min=1, help="Agents to wait for before it begins.")
    ] = 1
    budget: Annotated[
        int, typer.Option("--budget", metavar="N", min=3, help="Measurements per device setting before verification.")
    ] = 40
    strategy: Annotated[
        Strategy,
        typer.Option(
            "--strategy", metavar="NAME", help="bottom-up, top-down, joint, independent, or exhaustive (small spaces)."
        ),
    ] = Strategy.BOTTOM_UP
    rerank: Annotated[
        int,
        typer.Option(
            "--rerank",
            metavar="K",
            min=0,
            max=1000,
            help="Choose each winner among the K best candidates by their accuracy on --selection-images (default: "
            "by predicted accuracy).",
        ),
    ] = 0
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of all random choices.")] = 0
    prior: Annotated[
        PriorChoice,
        typer.Option(
            "--prior", metavar="NAME", help="learned (from the store's earlier runs, where they are enough) or default."
        ),
    ] = "learned"
    prior_without: Annotated[
        str | None,
        typer.Option(
            "--prior-without",
            metavar="NAME,...",
            help="Agents from whose earlier runs nothing is learned (always: `fleetnas devices --distrust`).",
        ),
    ] = None
    grace: Annotated[
        float, typer.Option("--grace", metavar="S", min=0, help="Seconds that a lost device has to come back.")
    ] = 60.0
    join: Annotated[float, typer.Option("--join", metavar="S", min=1, help="Seconds to wait for the devices.")] = 60.0
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline", metavar="S", min=1, help="Seconds that one measurement may take on a device, waits aside."
        ),
    ] = 180.0
    warmup: Annotated[
        float, typer.Option("--warmup", metavar="S", min=0, help="Seconds of warm-up per measurement.")
    ] = 0.5
    min_time: Annotated[
        float, typer.Option("--min-time", metavar="S", min=0, help="Seconds timed per measurement, at least.")
    ] = 1.0
    min_runs: Annotated[
        int, typer.Option("--min-runs", metavar="N", min=3, help="Timed runs per measurement, at least.")
    ] = 50
    conditions: Annotated[
        Condition,
        typer.Option(
            "--conditions",
            metavar="NAME",
            help="as-is; sustained (warm the device up until its speed is steady, for products that work all day); "
            "or cool (wait for the device to cool). See docs/measuring.md.",
        ),
    ] = "as-is"
    cool_for: Annotated[
        float,
        typer.Option(
            "--cool-for",
            metavar="S",
            min=0,
            help="With cool: seconds that a measurement may wait for its device to cool.",
        ),
    ] = 60.0

    def plan(self, bounds: Bounds, devices: tuple[str, ...]) -> CampaignPlan:
        """Make the plan of a new run; `UsageError` names the option that cannot be used."""
        if self.prior_without is not None and self.prior == "default":
            raise UsageError(
                "--prior-without is for a learned prior, and --prior default learns from nobody; leave it out"
            )
        if self.targets is None:
            raise UsageError("a new search needs --targets, such as --targets 20,30 or --targets auto:4")
        try:
            return CampaignPlan(
                targets=self.targets,
                strategy=self.strategy,
                bounds=bounds,
                budget=self.budget,
                initial_design=min(_MOST_INITIAL_DESIGN, self.budget),
                rerank=self.rerank,
                seed=self.seed,
                prior=self.prior,
                prior_without=agent_names(self.prior_without, "--prior-without"),
                devices=devices,
                wait_for=self.wait_for,
                join_s=self.join,
                grace_s=self.grace,
                deadline_s=self.deadline,
                conditions=self.conditions,
                cool_s=self.cool_for,
                protocol=self._protocol(),
            )
        except ValidationError as error:
            fault = first_fault(error, with_value=True)
            raise UsageError(f"no search can be planned with {fault}; give another value to its option") from None

    def _protocol(self) -> MeasurementProtocol:
        return MeasurementProtocol(
            warmup_s=self.warmup,
            min_s=self.min_time,
            min_runs=self.min_runs,
            max_s=max(_LEAST_CAP_S, _CAP_FACTOR * self.min_time),
        )


def agent_names(text: str | None, option: str) -> tuple[str, ...]:
    """Parse agents' names, separated by commas; `UsageError` where there is none."""
    if text is None:
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError(f"{option} {text!r} names nobody; give agents such as pi4,pi5, or leave it out")
    return names
