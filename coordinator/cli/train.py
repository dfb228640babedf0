"""`fleetnas train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleetnas.coordinator.cli import options
from fleetnas.fleet_protocol.errors import MissingDependencyError, UsageError
from fleetnas.fleet_protocol.installing import install_extra
from fleetnas.supernet_export.training.choices import ClassWeights, OptimizerName, Precision, Schedule

if TYPE_CHECKING:
    from fleetnas.supernet_export.training.run_settings import TrainSettings

#: Options that change how a training runs, and not its weights: a resumed training may have others.
_HABITS = {"out", "resume", "workers", "checkpoint_minutes", "checkpoint_steps", "cache"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train")(train)


def train(
    context: typer.Context,
    images: Annotated[
        Path | None,
        typer.Argument(metavar="DATA/train", help="Images to train on, one folder per class, named like the class."),
    ] = None,
    val: Annotated[
        Path | None,
        typer.Option("--val", metavar="DIR", help="Images to validate on, in folders of the same names; needed."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="New folder for checkpoints, logs, weights and the bundle."),
    ] = Path("run"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the training in --out; its options need not be repeated. Give folders of images that moved.",
        ),
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME|FILE|DIR",
            help="Begin with these weights: a published supernet such as ofa-mbv3-w1.0, a checkpoint, a bundle, or the "
            "--out of another training.",
        ),
    ] = None,
    space: Annotated[
        str | None, typer.Option("--space", metavar="NAME", help="Design space (default: that of --from, or mbconv).")
    ] = None,
    space_options: Annotated[
        str | None,
        typer.Option("--options", metavar="JSON|@FILE", help="The space's options, such as '{\"aspect\": [2, 3]}'."),
    ] = None,
    resolutions: Annotated[
        str | None, typer.Option(metavar="LIST", help="The space's resolutions in pixels, such as 96,128,160.")
    ] = None,
    kernels: Annotated[str | None, typer.Option(metavar="LIST", help="The space's kernel sizes, such as 3,5.")] = None,
    expands: Annotated[str | None, typer.Option(metavar="LIST", help="Its expand ratios, such as 3,4,6.")] = None,
    depths: Annotated[str | None, typer.Option(metavar="LIST", help="Its depths of a stage, such as 2,3,4.")] = None,
    width: Annotated[float | None, typer.Option(help="Its width multiplier, such as 0.5.")] = None,
    channels: Annotated[int | None, typer.Option(help="Channels of an image: 1 (grey) or 3 (RGB).")] = None,
    fit: Annotated[
        str | None,
        typer.Option(metavar="crop|squash|letterbox", help="How images of another shape are fitted (default: crop)."),
    ] = None,
    schedule: Annotated[
        Schedule | None,
        typer.Option(
            help="sandwich: largest, smallest and random subnets in every step. progressive: OFA's progressive "
            "shrinking. compound: CompOFA's, over subnets whose expand ratio is tied to depth (default: sandwich)."
        ),
    ] = None,
    subnets: Annotated[int | None, typer.Option(help="Random subnets in each step (default: 2).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of all phases together (default: 30).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images of a step, of all processes (default: 64).")] = None,
    optimizer: Annotated[
        OptimizerName | None, typer.Option(help="sgd: with Nesterov's momentum (default: adamw).")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest (default: 0.003; of sgd 0.1).")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of weights (default: 0.01; of sgd 0.00003).")] = None,
    warm_up: Annotated[
        float | None, typer.Option(help="Part of each phase in which the learning rate rises (default: 0.05).")
    ] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Between 0 and 1 (default: 0.1).")] = None,
    class_weights: Annotated[
        ClassWeights | None,
        typer.Option(help="balanced: rare classes weigh more in the loss (default: none)."),
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of the gradients (default: 5).")] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="Decay of the moving average of the weights, which is exported; 0: none (default: 0.999)."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="in-place|frozen|FILE|DIR",
            help="Smaller subnets learn from the largest as it learns, as it was after its own phase, or from another "
            "network of the same space and classes (default: in-place).",
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Of the arithmetic; fp16 on GPUs, fp64 for comparisons (default: fp32)."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all random choices (default: 0).")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of the arithmetic in each process; another number changes the last bits.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, max=256, help="Processes that prepare images (default: all cores but one).")
    ] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0, help="Minutes between checkpoints within an epoch; each epoch ends with one.")
    ] = 2.0,
    checkpoint_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps between checkpoints within an epoch, in place of minutes.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Where downloads of published supernets are kept.")
    ] = None,
) -> None:
    """Train a supernet on your own images, one folder per class.

    Ends with a bundle for `accuracy evaluate`, searches and agents, and with weights under once-for-all's names.
    Start it with `torchrun` or `accelerate launch` to train on several GPUs or machines.
    """
    fields: dict[str, Any] = {
        "train": images if images is None else images.absolute(),
        "val": val if val is None else val.absolute(),
        "source": _absolute(source),
        "space": space,
        "options": None if space_options is None else _json_or_file(space_options),
        "resolutions": _numbers("--resolutions", resolutions, int),
        "kernels": _numbers("--kernels", kernels, int),
        "expands": _numbers("--expands", expands, float),
        "depths": _numbers("--depths", depths, int),
        "width": width,
        "channels": channels,
        "fit": fit,
        "schedule": schedule,
        "subnets": subnets,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warm_up": warm_up,
        "label_smoothing": label_smoothing,
        "class_weights": class_weights,
        "clip_norm": clip_norm,
        "ema": ema,
        "teacher": teacher if teacher in (None, "in-place", "frozen") else _absolute(teacher),
        "precision": precision,
        "seed": seed,
        "threads": threads,
    }
    try:
        from fleetnas.supernet_export.training.run import Habits, TrainingStopped, train_supernet
    except ImportError as error:
        raise MissingDependencyError(
            f"training needs {error.name or 'torch'}, which is not installed; run: {install_extra('train')}"
        ) from error
    from fleetnas.coordinator.cli.train_view import shown_training

    settings = _settings(fields, out, resume=resume)
    habits = Habits(workers, checkpoint_minutes, checkpoint_steps, cache)
    try:
        with shown_training(settings) as view:
            result = train_supernet(settings, out, view, resume=resume, habits=habits)
    except TrainingStopped as stopped:
        typer.echo(str(stopped))
        raise typer.Exit(128 + stopped.signum) from None
    if not result.sha256:  # another process than the first
        return
    typer.echo(f"{result.bundle}: {result.bundle.stat().st_size / 1e6:.1f} MB, SHA-256 {result.sha256}")
    typer.echo(
        f"next: fleetnas accuracy evaluate {result.bundle} --images {settings.val} --calibration-images "
        f"{settings.train} -n 200 -o {out / 'evaluated.jsonl'}"
    )


def _settings(fields: dict[str, Any], out: Path, *, resume: bool) -> TrainSettings:
    """Return the settings of the command line, or those of the training to resume, which must not differ."""
    from fleetnas.supernet_export.training.checkpoint import RunFolder
    from fleetnas.supernet_export.training.run_settings import checked_settings

    given = {name for name, value in fields.items() if value is not None}
    if resume:
        stored = RunFolder(out).settings()
        wanted = checked_settings(**{**stored.model_dump(), **{name: fields[name] for name in given}})
        # The folders may have moved; the training compares the images in them with those that it began with.
        folders = {"train", "val"} & given
        other = wanted.differing(stored, given - folders)
        if other:
            raise UsageError(
                f"the training in {out} has other options: {', '.join(other)}; leave them out, or begin a new training "
                "in another folder"
            )
        return stored.model_copy(update={name: getattr(wanted, name) for name in folders})
    for name, wanted_option in (("train", "the folder of training images, DATA/train"), ("val", "--val DIR")):
        if fields[name] is None:
            raise UsageError(f"give {wanted_option}; a training that was interrupted goes on with --resume --out DIR")
    return checked_settings(**fields)


def _absolute(source: str | None) -> str | None:
    """Return a path that holds from every folder; other names as they are."""
    return str(Path(source).absolute()) if source is not None and Path(source).exists() else source


def _numbers(option: str, text: str | None, kind: type[int] | type[float]) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        example = "96,128,160" if kind is int else "3,4,6"
        raise UsageError(f"{option} {text!r} is no list of numbers; give one such as {example}") from None


def _json_or_file(text: str) -> dict[str, Any]:
    from fleetnas.device_profiles.text_files import read_text

    if text.startswith("@"):
        path = Path(text[1:])
        if not path.is_file():
            raise UsageError(f"--options {text} names no file; check its path")
        text = read_text(path)
    return options.json_object("--options", text)
