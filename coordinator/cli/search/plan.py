"""The options that make a campaign's plan; a run keeps them from its beginning on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.search.measuring import MeasuringOptions
from fleetnas.coordinator.records.prior_choice import PriorChoice
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.records.target_kinds import Minimised, accuracy_floor
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.fleet_protocol.errors import UsageError

if TYPE_CHECKING:
    from fleetnas.coordinator.records.bounds import Bounds
    from fleetnas.coordinator.records.plan import CampaignPlan

_MOST_INITIAL_DESIGN = 10


@dataclass(frozen=True)
class PlanOptions:
    """Targets, strategy, budget and prior."""

    targets: Annotated[
        TargetRequest | None,
        typer.Option(
            "--targets",
            metavar="MS,...|auto:N",
            parser=TargetRequest.parse,
            help="Latency targets in ms, auto:N for N per device setting, p95:33 (a percentile of run times), fps:30, "
            "energy:5mJ; any of them together. See docs/targets.md.",
        ),
    ] = None
    targets_file: Annotated[
        Path | None,
        typer.Option(
            "--targets-file",
            metavar="FILE",
            help="Targets and bounds of single devices, patterns or tags (TOML or JSON), in place of --targets there.",
        ),
    ] = None
    accuracy_floor: Annotated[
        float | None,
        typer.Option(
            "--accuracy-floor",
            metavar="PERCENT",
            help="Find the fastest subnet that keeps this predicted top-1 accuracy, such as 75.",
        ),
    ] = None
    minimise: Annotated[
        Minimised,
        typer.Option("--minimise", metavar="NAME", help="With --accuracy-floor: latency, energy or parameters."),
    ] = "latency"
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
    profile_winners: options.ProfileWinners = False

    no_pool: Annotated[
        bool,
        typer.Option(
            "--no-pool",
            help="Search every board by itself: equal boards are one device otherwise (see docs/pooling.md).",
        ),
    ] = False
    verify_boards: Annotated[
        int | None,
        typer.Option(
            "--verify-boards",
            metavar="M",
            min=1,
            help="Boards of a class of equal ones that verify each target, drawn at random (default: all).",
        ),
    ] = None

    def plan(self, bounds: Bounds, devices: tuple[str, ...], measuring: MeasuringOptions) -> CampaignPlan:
        """Make the plan of a new run; `UsageError` names the option that cannot be used."""
        from fleetnas.coordinator.cli.search.targets_file import read_targets_file
        from fleetnas.coordinator.records.plan import CampaignPlan

        if self.prior_without is not None and self.prior == "default":
            raise UsageError(
                "--prior-without is for a learned prior, and --prior default learns from nobody; leave it out"
            )
        targets = self.targets or TargetRequest()
        if self.accuracy_floor is not None:
            targets = targets.with_target(accuracy_floor(self.accuracy_floor, self.minimise))
        of_devices = read_targets_file(self.targets_file) if self.targets_file is not None else ()
        if not targets.count and not of_devices:
            raise UsageError(
                "a new search needs --targets, such as --targets 20,30 or --targets auto:4, or --accuracy-floor or "
                "--targets-file"
            )
        return CampaignPlan(
            targets=targets,
            device_targets=of_devices,
            strategy=self.strategy,
            bounds=bounds,
            budget=self.budget,
            initial_design=min(_MOST_INITIAL_DESIGN, self.budget),
            rerank=self.rerank,
            seed=self.seed,
            prior=self.prior,
            prior_without=agent_names(self.prior_without, "--prior-without"),
            devices=devices,
            profile_winners=self.profile_winners,
            pool=not self.no_pool,
            verify_boards=self.verify_boards,
            **measuring.fields(),
        )


def agent_names(text: str | None, option: str) -> tuple[str, ...]:
    """Parse agents' names, separated by commas; `UsageError` where there is none."""
    if text is None:
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError(f"{option} {text!r} names nobody; give agents such as pi4,pi5, or leave it out")
    return names
