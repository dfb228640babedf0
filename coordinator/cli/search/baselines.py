"""The options on networks that are measured beside the winners."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.fleet_protocol.errors import UsageError

if TYPE_CHECKING:
    from fleetnas.coordinator.records.baselines import Baseline
    from fleetnas.fleet_protocol.architecture import Architecture

InputShapeTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="[NAME=]SHAPE",
        help="Shape of an input that a model file leaves open, such as 1x3x224x224; may be repeated, with names.",
    ),
]


@dataclass(frozen=True)
class BaselineOptions:
    """Networks that the user has already."""

    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            metavar="NAME|FILE",
            help="Measure this beside the winners: largest, smallest, an architecture (.json), or a model file (.onnx, "
            ".tflite; on agents that run with --accept-models). May be repeated.",
        ),
    ] = None
    baseline_accuracy: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline-accuracy",
            metavar="[FILE=]PERCENT",
            help="Top-1 of a model file, such as 76.1 (default: evaluated on --evaluation-images where it fits them).",
        ),
    ] = None
    input_shape: InputShapeTexts = None

    def baselines(self, supernet: Path | None) -> tuple[Baseline, ...]:
        """Read the baselines; `UsageError` where one cannot be used, before anything is measured."""
        if not self.baseline:
            return ()
        from fleetnas.coordinator.app.baselines import choose_baselines
        from fleetnas.coordinator.cli.architectures import parse_architecture
        from fleetnas.supernet_export.bundle import SupernetBundle

        def parse(text: str) -> Architecture:
            if supernet is None:
                raise UsageError(f"--baseline {text[:80]} is a subnet, and no --supernet is given")
            return parse_architecture(SupernetBundle.open(supernet).space, text)

        return choose_baselines(self.baseline, shapes_of(self.input_shape), self._accuracies(), parse)

    def _accuracies(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for text in self.baseline_accuracy or ():
            name, _, number = text.rpartition("=")
            try:
                percent = float(number)
            except ValueError:
                percent = -1.0
            if not 0 <= percent <= 100:
                raise UsageError(f"--baseline-accuracy {text[:80]!r} is no percentage; give one such as 76.1")
            if name in found:
                raise UsageError(f"--baseline-accuracy is given twice for {name or 'the model file'}")
            found[name] = percent / 100
        return found


def shapes_of(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Parse shapes by the name of their input; `UsageError` where one is none, or an input has two."""
    from fleetnas.agent.runtimes.input_shapes import parse_input_shape

    found: dict[str, tuple[int, ...]] = {}
    for text in texts or ():
        try:
            name, shape = parse_input_shape(text)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"--input-shape {error}") from None
        if name in found:
            raise UsageError("--input-shape names an input twice; give each input one shape, as NAME=SHAPE")
        found[name] = shape
    return found
