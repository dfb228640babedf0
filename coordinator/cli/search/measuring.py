"""The options on how devices are waited for and measured; a run keeps them from its beginning on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleetnas.coordinator.cli.quantities import seconds
from fleetnas.fleet_protocol.choices import Condition

if TYPE_CHECKING:
    from fleetnas.fleet_protocol.messages import MeasurementProtocol

#: Cap of one measurement, seconds; a multiple of its least time where that is longer.
_LEAST_CAP_S, _CAP_FACTOR = 20.0, 2


@dataclass(frozen=True)
class MeasuringOptions:
    """Times, and the condition of a device."""

    wait_for: Annotated[
        int, typer.Option("--wait-for", metavar="N", min=1, help="Agents to wait for before it begins.")
    ] = 1
    grace: Annotated[
        float,
        typer.Option(
            "--grace", metavar="TIME", parser=seconds("--grace"), help="How long a lost device has to come back."
        ),
    ] = 60.0
    join: Annotated[
        float,
        typer.Option("--join", metavar="TIME", parser=seconds("--join", 1), help="How long to wait for the devices."),
    ] = 60.0
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline",
            metavar="TIME",
            parser=seconds("--deadline", 1),
            help="How long one measurement may take on a device, waits aside.",
        ),
    ] = 180.0
    warmup: Annotated[
        float,
        typer.Option("--warmup", metavar="TIME", parser=seconds("--warmup"), help="Warm-up of each measurement."),
    ] = 0.5
    min_time: Annotated[
        float,
        typer.Option(
            "--min-time", metavar="TIME", parser=seconds("--min-time"), help="Time of each measurement, at least."
        ),
    ] = 1.0
    min_runs: Annotated[
        int, typer.Option("--min-runs", metavar="N", min=3, help="Timed runs per measurement, at least.")
    ] = 50
    fixed_protocol: Annotated[
        bool,
        typer.Option(
            "--fixed-protocol",
            help="Measure every subnet for --warmup, --min-time and --min-runs: not for less where it only teaches the "
            "predictor, nor in several sessions where it decides a target.",
        ),
    ] = False
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
            metavar="TIME",
            parser=seconds("--cool-for"),
            help="With cool: how long a measurement may wait for its device to cool.",
        ),
    ] = 60.0

    def fields(self) -> dict[str, Any]:
        """Return the options as fields of a `CampaignPlan`."""
        return {
            "wait_for": self.wait_for,
            "join_s": self.join,
            "grace_s": self.grace,
            "deadline_s": self.deadline,
            "conditions": self.conditions,
            "cool_s": self.cool_for,
            "protocol": self._protocol(),
            "precision": "fixed" if self.fixed_protocol else "auto",
        }

    def _protocol(self) -> MeasurementProtocol:
        from fleetnas.fleet_protocol.messages import MeasurementProtocol

        return MeasurementProtocol(
            warmup_s=self.warmup,
            min_s=self.min_time,
            min_runs=self.min_runs,
            max_s=max(_LEAST_CAP_S, _CAP_FACTOR * self.min_time),
        )
