"""A search without any device: a latency table and an accuracy model in, winners and the Pareto front out."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fleetnas.coordinator.records.bounds import Bounds, subnet_costs
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.search.block_table import no_table, read_block_table, table_resolutions
from fleetnas.coordinator.search.engine import EngineSettings, SearchResult, search
from fleetnas.coordinator.search.guided import GuidedSettings
from fleetnas.coordinator.search.latency import TableLatency
from fleetnas.coordinator.search.predictor_file import (
    latency_of,
    predictor_file_of,
    read_predictor_file,
    space_of,
)
from fleetnas.coordinator.search.problem import AccuracyModel, Problem, TabularAccuracy, check_targets
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.evaluation.answers import ClassAnswers
from fleetnas.supernet_export.evaluation.evaluated_subnets import read_evaluated
from fleetnas.supernet_export.output_files import write_atomically
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.registry import make_space

if TYPE_CHECKING:
    from rich.console import Group

#: Options that a table may have been measured under, tried in this order where the user names none.
_WIDTHS: Mapping[str, tuple[float, ...]] = {
    "ofa-mbv3": (1.0, 1.2),
    "compofa": (1.0, 1.2),
    "compofa-elastic": (1.0, 1.2),
    "ofa-proxyless": (1.3, 1.0),
}
_DEFAULT_SPACE = "ofa-mbv3"
#: Targets that are searched beside the ones asked for.
_FRONT_TARGETS = 12
#: Points of the front that the terminal shows at most.
_FRONT_ROWS = 12


@dataclass(frozen=True)
class OfflineRequest:
    """One offline search."""

    space: str | None  #: registered name of the design space; None: the predictor file's, else ofa-mbv3
    latency_table: Path  #: predictor file or its folder, folder of `<resolution>_lookup_table.yaml`, or one YAML file
    accuracy: Path  #: `.pth`, `.supernet`, `.safetensors` (fitted), `.csv` or `.jsonl` (known values)
    targets_ms: tuple[float, ...]
    options: Mapping[str, Any] | None = None  #: of the space; None: those that the table was measured under
    strategy: Strategy = Strategy.JOINT
    engine: EngineSettings = field(default_factory=GuidedSettings)
    bounds: Bounds = field(default_factory=Bounds)
    seed: int = 0


@dataclass(frozen=True)
class OfflineOutcome:
    """Result of an offline search."""

    request: OfflineRequest
    space: DesignSpace
    result: SearchResult
    selection: tuple[ClassAnswers, ...] = ()
    """Of each winner to selection images, where these chose among the candidates."""

    def to_json(self) -> dict[str, Any]:
        """Winners and front, JSON-serialisable; latencies in milliseconds, accuracies as fractions."""
        result, space = self.result, self.space
        front = zip(
            space.decode(result.front_genomes),
            result.front_top1.tolist(),
            result.front_latency_ms.tolist(),
            strict=True,
        )
        return {
            "space": space.name,
            "options": dict(space.options),
            "latency_table": str(self.request.latency_table),
            "accuracy": str(self.request.accuracy),
            "strategy": result.strategy.value,
            "engine": self.request.engine.name,
            "seed": self.request.seed,
            "bounds": self.request.bounds.given(),
            "evaluations": result.evaluations,
            "targets": [
                {
                    "target_ms": winner.target_ms,
                    "predicted_ms": winner.latency_ms,
                    "accuracy": winner.accuracy,
                    **{name: float(cost[0]) for name, cost in subnet_costs(space, winner.genome[None]).items()},
                    "architecture": winner.architecture.model_dump(mode="json"),
                    **(
                        {"selection_accuracy": chosen_by.accuracy, "selection_images": chosen_by.images}
                        if chosen_by is not None
                        else {}
                    ),
                }
                for winner, chosen_by in zip(result.winners, self._selection, strict=True)
            ],
            "front": [
                {"predicted_ms": ms, "accuracy": top1, "architecture": architecture.model_dump(mode="json")}
                for architecture, top1, ms in front
            ],
        }

    @property
    def _selection(self) -> Sequence[ClassAnswers | None]:
        return self.selection or [None] * len(self.result.winners)


def search_offline(request: OfflineRequest) -> OfflineOutcome:
    """Run the search; raises the errors of `search`, `read_latency` and `load_accuracy`."""
    space = _space(request)
    targets = check_targets(request.targets_ms)
    accuracy = load_accuracy(request.accuracy, space)
    latency = read_latency(request.latency_table, space)
    problem = Problem(space, accuracy, latency, request.bounds)
    result = search(
        problem,
        [*targets, *_front_targets(problem, max(targets))],
        rng=np.random.default_rng(request.seed),
        strategy=request.strategy,
        engine=request.engine,
    )
    return OfflineOutcome(request, space, replace(result, winners=result.winners[: len(targets)]))


def _front_targets(problem: Problem, slowest_ms: float) -> list[float]:
    """Targets from the fastest subnet on, for a fuller front; none where all that can win is evaluated anyway."""
    fastest_ms = problem.fastest()[1]
    whole = isinstance(problem.accuracy, TabularAccuracy) and problem.accuracy.candidates is not None
    if whole or not fastest_ms < slowest_ms:
        return []
    return [float(ms) for ms in np.linspace(fastest_ms, slowest_ms, _FRONT_TARGETS)]


def load_accuracy(path: Path, space: DesignSpace) -> AccuracyModel | AccuracyPredictor:
    """The accuracy model in a file, by its suffix: `.pth`, `.supernet`, `.safetensors`, `.csv` or `.jsonl`."""
    if path.suffix in (".csv", ".jsonl"):
        return TabularAccuracy(*read_evaluated(path, space))
    if path.suffix == ".supernet":
        predictor = SupernetBundle.open(path).accuracy_predictor()
        if predictor is None:
            raise UsageError(
                f"{path} holds no accuracy predictor; put one into it with `fleetnas accuracy fit`, or give --accuracy "
                "another file"
            )
    elif path.suffix == ".safetensors":
        predictor = AccuracyPredictor.load(path)
    else:
        predictor = AccuracyPredictor.from_pth(path)
    predictor.check_space(space, f"the accuracy predictor in {path}")
    return predictor


def read_latency(path: Path, space: DesignSpace) -> TableLatency:
    """Read the latency model of a space: a predictor file, or block latency tables.

    Raises:
        UsageError: the path is neither, or is of another space.
    """
    file = predictor_file_of(path)
    if file is not None:
        return latency_of(read_predictor_file(file), space, file)
    return read_block_table(path, _mbconv(space))


def _space(request: OfflineRequest) -> DesignSpace:
    """The space under the given options, of the predictor file, or under the first ones that the table covers."""
    file = predictor_file_of(request.latency_table)
    if file is not None and request.options is None:
        found = space_of(read_predictor_file(file), file)
        if request.space not in (None, found.name):
            raise UsageError(f"{file} is of {found.name}, not of {request.space}; leave out --space")
        return found
    name = request.space or _DEFAULT_SPACE
    if request.options is not None:
        return make_space(name, request.options)
    plain = make_space(name)  # a name that is mistyped is told before what is in the folder
    covered = table_resolutions(request.latency_table)
    if not covered:
        raise UsageError(no_table(request.latency_table))
    resolutions = [r for r in covered if r % 16 == 0] or covered
    failures: list[UsageError] = []
    for width in _WIDTHS.get(name, ()):
        space = _mbconv(make_space(name, {"width": width, "resolutions": resolutions}))
        try:
            read_block_table(request.latency_table, space)
        except UsageError as failure:
            failures.append(failure)
        else:
            return space
    if failures:
        raise failures[0]
    return _mbconv(plain)


def _mbconv(space: DesignSpace) -> MBConvSpace:
    if not isinstance(space, MBConvSpace):
        raise UsageError(
            f"there is no block latency table for {space.name}: search it on devices, or take another space"
        )
    return space


def offline_table(outcome: OfflineOutcome) -> Group:
    """The winners and the Pareto front, for the terminal."""
    from rich.console import Group
    from rich.table import Table

    space, result = outcome.space, outcome.result
    by = f"{result.strategy}, {outcome.request.engine.name} engine"
    # Numbers are never broken: all columns but the last fit into 60 cells.
    winners = Table(
        title=f"{space.name}, {by}: the best subnet predicted within each target",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in ("target\nms", "predicted\nms", "top-1\n%", "MMACs", "M\nweights", "peak\nMiB", "file\nMB"):
        winners.add_column(name, justify="right", no_wrap=True)
    if outcome.selection:
        winners.add_column("selection\n%", justify="right", no_wrap=True)
    winners.add_column("depths, resolution", overflow="fold")
    for place, winner in enumerate(result.winners):
        costs = {name: float(cost[0]) for name, cost in subnet_costs(space, winner.genome[None]).items()}
        winners.add_row(
            f"{winner.target_ms:g}",
            f"{winner.latency_ms:.2f}",
            f"{100 * winner.accuracy:.2f}",
            f"{costs['macs'] / 1e6:.0f}",
            f"{costs['parameters'] / 1e6:.2f}",
            f"{costs['peak_activation_bytes'] / 2**20:.1f}",
            f"{costs['model_bytes'] / 1e6:.1f}",
            *(f"{100 * answers.accuracy:.2f}" for answers in outcome.selection[place : place + 1]),
            f"{'-'.join(map(str, winner.architecture.d))} at {winner.architecture.r}",
        )
    if outcome.request.bounds.given():
        winners.caption = f"every winner has {outcome.request.bounds}"
    points = len(result.front_top1)
    front = Table(title=f"Pareto front: {points} subnets, of {result.evaluations:,} evaluated")
    front.add_column("predicted ms", justify="right")
    front.add_column("predicted top-1 %", justify="right")
    for i in np.unique(np.linspace(0, points - 1, min(points, _FRONT_ROWS)).round().astype(int)):
        front.add_row(f"{result.front_latency_ms[i]:.2f}", f"{100 * result.front_top1[i]:.2f}")
    return Group(winners, front)


def write_offline(outcome: OfflineOutcome, folder: Path) -> tuple[Path, Path]:
    """Write `search.json` and `search.png` into the folder; returns their paths."""
    text, picture = folder / "search.json", folder / "search.png"
    write_atomically(text, json.dumps(outcome.to_json(), indent=2).encode() + b"\n")
    draw_fronts({outcome.space.name: outcome.result}, picture)
    return text, picture


def draw_fronts(results: Mapping[str, SearchResult], path: Path, title: str = "") -> None:
    """Draw Pareto fronts, one line per named result, with their winners marked; the suffix of `path` is the format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, result in results.items():
        (line,) = axes.step(result.front_latency_ms, 100 * result.front_top1, where="post", label=name, linewidth=1)
        best: Sequence[Any] = result.winners
        axes.plot(
            [w.latency_ms for w in best], [100 * w.accuracy for w in best], "o", color=line.get_color(), markersize=4
        )
    axes.set_xlabel("predicted latency, ms")
    axes.set_ylabel("predicted top-1, %")
    axes.set_title(title or "Pareto front; dots: the winner of each target", loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    if len(results) > 1:
        axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix(".") or "png", dpi=150)
    write_atomically(path, picture.getvalue())
