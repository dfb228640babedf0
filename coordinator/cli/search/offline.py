"""A search without a device: its options, and its output."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fleetnas.coordinator.cli.search.plan import PlanOptions
from fleetnas.fleet_protocol.errors import UsageError

if TYPE_CHECKING:
    from fleetnas.coordinator.app.request import ImageFolders
    from fleetnas.coordinator.records.bounds import Bounds

#: Parameters of images, which an offline search uses with `rerank`.
IMAGES = ("selection_images", "calibration_images")
#: Parameters of other groups that an offline search uses.
SHARED = ("targets", "strategy", "seed", "out", "as_json", "rerank", *IMAGES)
#: Islands of the guided engine: an offline search is done once, and may take longer.
_ISLANDS = 4


@dataclass(frozen=True)
class OfflineOptions:
    """Design space, latency table, accuracy model and engine."""

    offline: Annotated[
        bool, typer.Option("--offline", help="No device: by a latency table alone. Nothing is measured or verified.")
    ] = False
    space: Annotated[
        str | None,
        typer.Option(
            "--space", metavar="NAME", help="Offline: the design space (default: the predictor's, else ofa-mbv3)."
        ),
    ] = None
    latency_table: Annotated[
        Path | None,
        typer.Option(
            "--latency-table",
            metavar="DIR|FILE",
            help="Offline: what `fleetnas export-latency` wrote, or block latency tables.",
        ),
    ] = None
    accuracy: Annotated[
        Path | None, typer.Option("--accuracy", metavar="FILE", help="Offline: accuracy predictor, or known values.")
    ] = None
    engine: Annotated[
        Literal["guided", "evolution"],
        typer.Option(
            "--engine",
            metavar="NAME",
            help="Offline: guided (solves for its offspring), or evolution (OFA's, the papers' baseline; slower).",
        ),
    ] = "guided"


def search_offline(
    options: OfflineOptions, plan: PlanOptions, bounds: Bounds, images: ImageFolders, out: Path, *, as_json: bool
) -> None:
    """Search by a latency table, print the winners, and write `search.json` and `search.png` into `out`.

    Where the plan has candidates to choose among, selection images choose.
    """
    from fleetnas.coordinator.app.images import selection_warnings
    from fleetnas.coordinator.app.offline_selection import OfflineSelection
    from fleetnas.coordinator.cli.progress import candidate_progress, image_progress
    from fleetnas.coordinator.search import offline
    from fleetnas.coordinator.search.evolution import EvolutionSettings
    from fleetnas.coordinator.search.guided import GuidedSettings
    from fleetnas.coordinator.view.output import output_console
    from fleetnas.supernet_export.output_files import check_folder

    targets_ms = plan.targets.fixed_ms if plan.targets is not None and not plan.targets.others else ()
    if not targets_ms or options.latency_table is None or options.accuracy is None:
        raise UsageError(
            "an offline search needs --targets in milliseconds, --latency-table and --accuracy; give all three"
        )
    check_folder("--out", out)
    selection = None
    if plan.rerank:
        with image_progress() as progress:
            selection = OfflineSelection(options.accuracy, images, plan.rerank, progress)
    outcome = offline.search_offline(
        offline.OfflineRequest(
            options.space,
            options.latency_table,
            options.accuracy,
            targets_ms,
            strategy=plan.strategy,
            engine=EvolutionSettings() if options.engine == "evolution" else GuidedSettings(islands=_ISLANDS),
            bounds=bounds,
            seed=plan.seed,
        )
    )
    if selection is not None:
        for warning in selection_warnings(images):
            typer.echo(warning, err=True)
        with candidate_progress() as progress:
            outcome = selection.choose(outcome, progress)
    if as_json:
        typer.echo(json.dumps(outcome.to_json()))
    else:
        output_console().print(offline.offline_table(outcome))
    written = offline.write_offline(outcome, out)
    typer.echo(f"written: {', '.join(str(path) for path in written)}", err=as_json)
