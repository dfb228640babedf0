"""`fleetnas export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.progress import download_progress

Output = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The bundle to write.")]


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="Write a supernet bundle: what `search` takes and agents fetch.", no_args_is_help=True)
    group.command("digits")(digits)
    group.command("published")(published)
    group.command("checkpoint")(checkpoint)
    app.add_typer(group, name="export")


def digits(output: Output = Path("digits.supernet")) -> None:
    """The built-in supernet, pretrained on scikit-learn's handwritten digits."""
    from supernet_export.export import export_digits

    _report(output, export_digits(output))


def published(
    name: Annotated[str, typer.Argument(help="Such as ofa-mbv3-w1.0; an unknown name lists the known ones.")],
    output: Output,
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="Where downloads are kept.")] = None,
) -> None:
    """A supernet that its authors published: downloaded, verified, exported with its accuracy predictor."""
    from supernet_export.export import export_published

    with download_progress(name) as progress:
        sha256 = export_published(name, output, cache=cache, progress=progress)
    _report(output, sha256)


def checkpoint(
    file: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A .pth or .safetensors state dict.")],
    space: Annotated[str, typer.Option("--space", help="Its design space; an unknown name lists the known ones.")],
    output: Output,
    space_options: Annotated[
        str, typer.Option("--options", metavar="JSON", help="The space's options, such as '{\"width\": 1.2}'.")
    ] = "{}",
    accuracy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Accuracy predictor: .pth, or as `accuracy fit` writes it.")
    ] = None,
) -> None:
    """Your own once-for-all checkpoint of a known design space."""
    from fleet_protocol.errors import UsageError
    from supernet_export.accuracy import AccuracyPredictor
    from supernet_export.export import export_checkpoint
    from supernet_export.spaces.registry import make_space

    try:
        options = json.loads(space_options)
    except ValueError as error:
        raise UsageError(f"--options {space_options!r} is not JSON ({error}); give an object such as {{}}") from None
    predictor = None
    if accuracy is not None:
        load = AccuracyPredictor.from_pth if accuracy.suffix == ".pth" else AccuracyPredictor.load
        predictor = load(accuracy)
    sha256 = export_checkpoint(
        file,
        make_space(space, options),
        output,
        accuracy=predictor,
        accuracy_source=accuracy.name if accuracy is not None else "",
    )
    _report(output, sha256)


def _report(output: Path, sha256: str) -> None:
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256}")
