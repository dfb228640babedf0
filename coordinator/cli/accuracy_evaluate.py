"""`fleetnas accuracy evaluate`: many subnets, for an accuracy predictor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.fleet_protocol.choices import InterpreterName, Precision
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.supernet_export.evaluation.choices import CALIBRATION_LIMIT, Sampling
from fleetnas.supernet_export.output_files import check_file

if TYPE_CHECKING:
    from fleetnas.supernet_export.bundle import SupernetBundle
    from fleetnas.supernet_export.evaluation.image_source import ImageSource
    from fleetnas.supernet_export.evaluation.run import EvaluationRequest


@dataclass(frozen=True)
class DrawnSubnets:
    """Which subnets are evaluated."""

    subnets: Annotated[int, typer.Option("-n", "--subnets", metavar="N", min=1, help="Subnets, of all shards.")] = 1000
    sampling: Annotated[
        Sampling, typer.Option(help="Spread from the smallest to the largest, uniform over the space, or half of each.")
    ] = "both"
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Fixes which subnets.")] = 0
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="Every N-th subnet from the I-th on, counted from 0.")
    ] = "0/1"


@dataclass(frozen=True)
class ImageOptions:
    """Images to evaluate and to calibrate on."""

    images: options.Images = None
    calibration_images: options.SameToCalibrate = None
    calibration_count: Annotated[
        int,
        typer.Option(
            "--calibration-count",
            metavar="N",
            min=1,
            help="Most images that calibrate a subnet; a winner takes 2000, and fewer are faster.",
        ),
    ] = CALIBRATION_LIMIT
    some_classes: options.SomeClasses = False


@dataclass(frozen=True)
class WorkerOptions:
    """Where subnets are evaluated."""

    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="Worker processes (default: one per core).")
    ] = None
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="ADDRESS", help="Workers of a Dask cluster instead, tcp://HOST:8786."),
    ] = None
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="DIR", help="Where prepared images lie meanwhile (default: beside FILE; needs room)."
        ),
    ] = None


def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A .supernet file.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE", help="A .jsonl file, new or to be continued."),
    ],
    drawn: DrawnSubnets,
    where: WorkerOptions,
    folders: ImageOptions,
    runtime: Annotated[InterpreterName, typer.Option(help="What runs the files: .onnx, or .tflite.")] = "onnxruntime",
    precision: Annotated[Precision, typer.Option(help="Of the files.")] = "fp32",
) -> None:
    """Evaluate many subnets, for `fleetnas accuracy fit`.

    Every subnet is sliced, calibrated and emitted as it would ship. A run that was stopped continues when the same
    command is given again. A worker process that dies costs one subnet, which is evaluated again.
    """
    from fleetnas.fleet_protocol.cores import core_count
    from fleetnas.supernet_export.bundle import SupernetBundle
    from fleetnas.supernet_export.evaluation.run import EvaluationRequest
    from fleetnas.supernet_export.evaluation.sampling import parse_shard

    if where.scheduler is not None and (where.workers is not None or where.cache is not None):
        raise UsageError("with --scheduler the cluster has the workers; leave out --workers and --cache")
    shard = parse_shard(drawn.shard)
    opened = SupernetBundle.open(bundle)
    sources = _sources(opened, folders, output)
    request = EvaluationRequest(
        bundle=bundle,
        images=folders.images,
        calibration_images=folders.calibration_images,
        calibration_count=folders.calibration_count,
        some_classes=folders.some_classes,
        subnets=drawn.subnets,
        sampling=drawn.sampling,
        seed=drawn.seed,
        shard=shard,
        runtime=runtime,
        precision=precision,
        workers=where.workers or core_count(),
        scheduler=where.scheduler,
        cache=where.cache,
    )
    _run(request, opened, sources, output)


def _sources(bundle: SupernetBundle, folders: ImageOptions, output: Path) -> tuple[ImageSource, ImageSource]:
    """Return the images to calibrate and to evaluate on, all of them readable; check the output file before that."""
    from fleetnas.coordinator.app.images import checked_images
    from fleetnas.coordinator.app.request import ImageFolders
    from fleetnas.coordinator.cli.progress import image_progress

    given = (folders.images, folders.calibration_images)
    if not bundle.manifest.is_digits and None in given:
        raise UsageError(
            f"{bundle.path} is a supernet for {bundle.manifest.dataset}; give --images DIR to evaluate on and "
            "--calibration-images DIR, such as the training images, to calibrate on"
        )
    if folders.some_classes and given == (None, None):
        raise UsageError("--some-classes is about folders of images, and none is given; leave it out")
    check_file("--output", output, ".jsonl", strict=True)
    wanted = ImageFolders(folders.calibration_images, folders.images, some_classes=folders.some_classes)
    with image_progress() as progress:
        calibration, evaluation = checked_images(bundle, wanted, progress)
    assert calibration is not None
    assert evaluation is not None
    return calibration, evaluation


def _run(
    request: EvaluationRequest, bundle: SupernetBundle, sources: tuple[ImageSource, ImageSource], output: Path
) -> None:
    """Evaluate with progress, and print what the file holds then; exit with 1 if a subnet failed."""
    from fleetnas.coordinator.cli.progress import subnet_progress
    from fleetnas.supernet_export.evaluation.run import evaluate_subnets

    with subnet_progress() as progress:
        try:
            lines = evaluate_subnets(request, bundle, sources, output, progress)
        except (KeyboardInterrupt, FleetnasError) as error:
            if not isinstance(error, UsageError):
                typer.echo(f"{output} keeps all that was evaluated; the same command continues", err=True)
            raise
    evaluated = [line for line in lines if line.accuracy is not None]
    failed = [line for line in lines if line.failed is not None]
    if request.subnets > len(lines) and request.shard == (0, 1):
        typer.echo(f"{bundle.space.name} holds no more than {len(lines):,} subnets that were found by drawing")
    if evaluated:
        accuracies = [100 * (line.accuracy or 0) for line in evaluated]
        typer.echo(
            f"{output}: {len(evaluated):,} subnets, top-1 {min(accuracies):.2f} to {max(accuracies):.2f} % on "
            f"{len(sources[1]):,} images"
        )
    if failed:
        count = "1 subnet" if len(failed) == 1 else f"{len(failed):,} subnets"
        typer.echo(f"{count} failed, such as {failed[0].architecture.fingerprint}: {failed[0].failed}")
        raise typer.Exit(1)
