"""`fleetnas export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.progress import download_progress
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.checkpoints.published import PUBLISHED
from fleetnas.supernet_export.output_files import check_file

if TYPE_CHECKING:
    from fleetnas.supernet_export.accuracy.model import AccuracyPredictor

_DIGITS = "digits"
_KNOWN = ", ".join((_DIGITS, *PUBLISHED))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help=f"One of {_KNOWN}; or a checkpoint file, then with --space.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The bundle to write (default: SOURCE.supernet, here)."),
    ] = None,
    space: Annotated[
        str | None, typer.Option("--space", metavar="NAME", help="Checkpoint file: its design space.")
    ] = None,
    space_options: Annotated[
        str | None,
        typer.Option("--options", metavar="JSON", help="Checkpoint file: its options, such as '{\"width\": 1.2}'."),
    ] = None,
    accuracy: Annotated[
        Path | None,
        typer.Option(
            "--accuracy",
            metavar="FILE",
            help="Checkpoint file: accuracy predictor to carry, .pth or as `accuracy fit` writes it.",
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Published supernet: where downloads are kept.")
    ] = None,
) -> None:
    """Write a supernet bundle, for searches and agents.

    From the built-in supernet `digits`, from one that its authors published (downloaded, verified, with its accuracy
    predictor), or from your own once-for-all checkpoint, a .pth or .safetensors state dict.
    """
    if source == _DIGITS or source in PUBLISHED:
        _refuse_beside_a_name(source, {"--space": space, "--options": space_options, "--accuracy": accuracy})
        written = _written(output or Path(f"{source}.supernet"))
        if source == _DIGITS:
            _refuse_beside_a_name(source, {"--cache": cache})
            sha256 = _export_digits(written)
        else:
            sha256 = _export_published(source, written, cache)
    elif Path(source).is_file():
        if cache is not None:
            raise UsageError(f"--cache is for published supernets, and {source} is a file; leave it out")
        written = _written(output or Path(f"{Path(source).stem}.supernet"))
        sha256 = _export_checkpoint(Path(source), written, space, space_options, accuracy)
    else:
        raise UsageError(
            f"{source!r} is neither a supernet known by name nor a file: give one of {_KNOWN}, or the path of a "
            "checkpoint together with --space"
        )
    typer.echo(f"{written}: {written.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256}")


def _written(output: Path) -> Path:
    check_file("--output", output, ".supernet")
    return output


def _refuse_beside_a_name(source: str, given: dict[str, Any]) -> None:
    useless = [option for option, value in given.items() if value is not None]
    if useless:
        raise UsageError(
            f"{source} is a supernet known by name, which {', '.join(useless)} cannot change; leave it out, or give "
            f"the path of a checkpoint (a file called {source} is ./{source})"
        )


def _export_digits(output: Path) -> str:
    from fleetnas.supernet_export.export import export_digits

    return export_digits(output)


def _export_published(name: str, output: Path, cache: Path | None) -> str:
    from fleetnas.supernet_export.export import export_published

    with download_progress(name) as progress:
        return export_published(name, output, cache=cache, progress=progress)


def _export_checkpoint(
    checkpoint: Path, output: Path, space: str | None, space_options: str | None, accuracy: Path | None
) -> str:
    from fleetnas.supernet_export.export import export_checkpoint
    from fleetnas.supernet_export.spaces.registry import make_space, space_names

    if space is None:
        raise UsageError(
            f"{checkpoint} is a checkpoint, and does not say of which design space: give --space with one of "
            f"{', '.join(space_names())}"
        )
    return export_checkpoint(
        checkpoint,
        make_space(space, options.json_object("--options", space_options or "{}")),
        output,
        accuracy=_predictor(accuracy) if accuracy is not None else None,
        accuracy_source=accuracy.name if accuracy is not None else "",
        on_read=lambda where: typer.echo(f"{checkpoint}: {where}", err=True),
    )


def _predictor(file: Path) -> AccuracyPredictor:
    from fleetnas.supernet_export.accuracy.model import AccuracyPredictor

    return AccuracyPredictor.from_pth(file) if file.suffix == ".pth" else AccuracyPredictor.load(file)
