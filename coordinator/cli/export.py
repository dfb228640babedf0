"""`fleetnas export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli import option_groups, options
from fleetnas.coordinator.cli.data_options import DataOptions
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.suggestions import did_you_mean
from fleetnas.supernet_export.checkpoints.published import PUBLISHED
from fleetnas.supernet_export.checkpoints.weights_choice import WeightsChoice
from fleetnas.supernet_export.output_files import check_file

if TYPE_CHECKING:
    from fleetnas.supernet_export.accuracy.model import AccuracyPredictor

_DIGITS = "digits"
_PANEL = "Checkpoint file"
_KNOWN = ", ".join((_DIGITS, *PUBLISHED))


@dataclass(frozen=True)
class FileOptions:
    """What a checkpoint file is."""

    space: Annotated[
        str | None,
        typer.Option("--space", metavar="NAME", help="Design space; `fleetnas inspect` tells.", rich_help_panel=_PANEL),
    ] = None
    options: Annotated[
        str | None,
        typer.Option(
            "--options", metavar="JSON", help="Its options, such as '{\"width\": 1.2}'.", rich_help_panel=_PANEL
        ),
    ] = None
    weights: Annotated[
        WeightsChoice | None,
        typer.Option("--weights", help="Plain weights, or their average, of a file with both.", rich_help_panel=_PANEL),
    ] = None
    trust_space: Annotated[
        bool,
        typer.Option(
            "--trust-space", help="Take --space although kernel transforms speak against it.", rich_help_panel=_PANEL
        ),
    ] = False
    accuracy: Annotated[
        Path | None,
        typer.Option(
            "--accuracy",
            metavar="FILE",
            help="Accuracy predictor to carry, .pth or as `accuracy fit` writes it.",
            rich_help_panel=_PANEL,
        ),
    ] = None


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(option_groups.command(export))


def export(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help=f"One of {_KNOWN}; or a checkpoint file, then with --space.")
    ],
    file: FileOptions,
    data: DataOptions,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The bundle to write (default: SOURCE.supernet, here)."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Published supernet: where downloads are kept.")
    ] = None,
) -> None:
    """Write a supernet bundle, for searches and agents.

    From the built-in supernet `digits`, from one that its authors published (downloaded, verified, with its accuracy
    predictor), or from your own once-for-all checkpoint, a .pth or .safetensors state dict. What its shapes do not show
    is assumed, and printed. Weights of `fleetnas train` say themselves what they are.
    """
    if source == _DIGITS or source in PUBLISHED:
        _refuse_beside_a_name(source, [*option_groups.given(file), *option_groups.given(data)])
        written = _written(output or Path(f"{source}.supernet"))
        if source == _DIGITS:
            _refuse_beside_a_name(source, [] if cache is None else ["--cache"])
            sha256 = _export_digits(written)
        else:
            sha256 = _export_published(source, written, cache)
    elif Path(source).is_file():
        if cache is not None:
            raise UsageError(f"--cache is for published supernets, and {source} is a file; leave it out")
        written = _written(output or Path(f"{Path(source).stem}.supernet"))
        sha256 = _export_file(Path(source), written, file, data)
    else:
        near = did_you_mean(source, (_DIGITS, *PUBLISHED))
        raise UsageError(
            f"{source!r} is neither a supernet known by name nor a file{near} "
            f"give one of {_KNOWN}, or the path of a checkpoint together with --space"
        )
    typer.echo(f"{written}: {written.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256}")


def _export_file(source: Path, output: Path, file: FileOptions, data: DataOptions) -> str:
    from fleetnas.supernet_export.checkpoint_export import CheckpointExport, export_own_checkpoint

    if source.suffix == ".supernet":
        raise UsageError(f"{source} is a bundle already; `fleetnas inspect {source}` describes it")
    request = CheckpointExport(
        checkpoint=source,
        space=file.space,
        options=options.json_object("--options", file.options or "{}"),
        dataset=data.dataset,
        class_names=data.class_names(),
        preprocessing=data.preprocessing_fields(),
        weights=file.weights,
        trust_space=file.trust_space,
        accuracy=None if file.accuracy is None else _predictor(file.accuracy),
        accuracy_source="" if file.accuracy is None else file.accuracy.name,
    )
    return export_own_checkpoint(request, output, tell=lambda line: typer.echo(f"{source}: {line}", err=True))


def _written(output: Path) -> Path:
    check_file("--output", output, ".supernet")
    return output


def _refuse_beside_a_name(source: str, useless: list[str]) -> None:
    if useless:
        raise UsageError(
            f"{source} is a supernet known by name, which {', '.join(useless)} cannot change; leave it out, or give "
            f"the path of a checkpoint (a file called {source} is ./{source})"
        )


def _export_digits(output: Path) -> str:
    from fleetnas.supernet_export.export import export_digits

    return export_digits(output)


def _export_published(name: str, output: Path, cache: Path | None) -> str:
    from fleetnas.coordinator.cli.progress import download_progress
    from fleetnas.supernet_export.export import export_published

    with download_progress(name) as progress:
        return export_published(name, output, cache=cache, progress=progress)


def _predictor(file: Path) -> AccuracyPredictor:
    from fleetnas.supernet_export.accuracy.model import AccuracyPredictor

    return AccuracyPredictor.from_pth(file) if file.suffix == ".pth" else AccuracyPredictor.load(file)
