"""`fleetnas finetune`: train one subnet on, and write it as a bundle of its own."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.architectures import ARCHITECTURE_HELP, parse_architecture
from fleetnas.coordinator.cli.option_groups import command
from fleetnas.device_profiles.plain_text import plain
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.output_files import check_file
from fleetnas.supernet_export.training.choices import ForwardPrecision
from fleetnas.supernet_export.training.fine_tuning_recipe import FineTuningRecipe
from fleetnas.supernet_export.training.fine_tuning_state import check_unfinished, is_unfinished

if TYPE_CHECKING:
    from fleetnas.coordinator.report.artifacts import WinnerCard
    from fleetnas.supernet_export.bundle import SupernetBundle
    from fleetnas.supernet_export.training.fine_tuning import FineTuned, FineTuningRequest

_DEFAULT = FineTuningRecipe()
#: Parameters that change nothing where nothing is trained.
_OF_TRAINING = ("learning_rate", "batch_size", "precision", "seed", "teacher", "resume")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("finetune")(command(finetune))


@dataclass(frozen=True)
class RecipeOptions:
    """How the subnet is trained."""

    epochs: Annotated[
        int, typer.Option(min=0, max=10_000, help="Times that every image is seen; 0 only calibrates and cuts out.")
    ] = _DEFAULT.epochs
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", metavar="RATE", min=1e-8, max=10, help="At its peak.")
    ] = _DEFAULT.learning_rate
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=2, max=65_536, help="Images per step.")
    ] = _DEFAULT.batch_size
    precision: Annotated[
        ForwardPrecision, typer.Option(help="Arithmetic of the training; bf16 and fp16 pay on GPUs.")
    ] = _DEFAULT.precision
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the order and the distortions.")] = _DEFAULT.seed
    threads: Annotated[
        int,
        typer.Option(min=1, max=1024, metavar="N", help="Processor threads; another number gives other weights."),
    ] = _DEFAULT.threads

    def recipe(self) -> FineTuningRecipe:
        """Return the recipe."""
        return FineTuningRecipe(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            precision=self.precision,
            seed=self.seed,
            threads=self.threads,
        )


def finetune(
    *,
    context: typer.Context,
    architecture: Annotated[str, typer.Argument(metavar="CARD|ARCHITECTURE", help=ARCHITECTURE_HELP)],
    bundle: Annotated[
        Path, typer.Option("--bundle", metavar="BUNDLE", help="The .supernet file that the subnet is cut out of.")
    ],
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="Folder with a folder of images per class, to train on."),
    ] = None,
    val: Annotated[
        Path | None, typer.Option("--val", metavar="DIR", help="The same, to compare accuracies before and after.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The bundle to write, a .supernet file.")
    ],
    teacher: Annotated[
        str,
        typer.Option(metavar="largest|none|BUNDLE", help="The largest subnet of BUNDLE, or of another .supernet file."),
    ] = "largest",
    recipe: RecipeOptions,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted training of FILE; give the same other options.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Fine-tune one subnet, and write it as a bundle of its own.

    The subnet, such as a winner, learns from labels and from a frozen teacher. Its bundle works like any other:
    `evaluate`, `measure` and `search` take it, agents build the same files from it. Needs torch, of the
    extra `train`.
    """
    if recipe.epochs == 0:
        options.refuse(context, _OF_TRAINING, "without epochs nothing is trained")
    check_file("--output", output, ".supernet", strict=True)
    check_unfinished(output, resume=resume)
    request = _request(architecture, recipe.recipe(), bundle, images, val, teacher, output)
    from fleetnas.supernet_export.training.requirements import require_torch

    require_torch("fine-tuning")
    from fleetnas.coordinator.cli.fine_tuning_view import fine_tuning_view
    from fleetnas.supernet_export.training.fine_tuning import fine_tune

    try:
        with fine_tuning_view(quiet=as_json) as events:
            found = fine_tune(request, events, resume=resume)
    except KeyboardInterrupt:
        if is_unfinished(output):
            typer.echo("interrupted: give the same command with --resume to go on from the last saved step", err=True)
        else:
            typer.echo("interrupted before a step was saved: give the same command to start again", err=True)
        raise
    if as_json:
        typer.echo(json.dumps(_json(request, found)))
    else:
        for line in _lines(request, found, architecture):
            typer.echo(line)


def _request(
    architecture: str,
    recipe: FineTuningRecipe,
    bundle: Path,
    images: Path | None,
    val: Path | None,
    teacher: str,
    output: Path,
) -> FineTuningRequest:
    """Open what the command line names; `UsageError` where the images are missing."""
    from fleetnas.supernet_export.bundle import SupernetBundle
    from fleetnas.supernet_export.training.fine_tuning import FineTuningRequest

    opened = SupernetBundle.open(bundle)
    if images is None and not opened.manifest.is_digits:
        raise UsageError(f"{bundle} is a supernet for {opened.manifest.dataset}; give --images DIR to train on")
    chosen = parse_architecture(opened.space, architecture)
    _note_another_supernet(architecture, opened)
    return FineTuningRequest(
        bundle=opened,
        architecture=chosen,
        images=images,
        validation=val,
        teacher=_teacher(opened, teacher),
        output=output,
        recipe=recipe,
    )


def _card_fields(text: str) -> tuple[str, str] | None:
    """Return name and SHA-256 of the supernet that a model card names; None where the text names no card."""
    try:
        supernet = json.loads(read_text(Path(text)))["supernet"]
        return str(supernet["name"]), str(supernet["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note_another_supernet(architecture: str, bundle: SupernetBundle) -> None:
    """Tell on standard error where a model card is of another supernet's subnet."""
    found = _card_fields(architecture)
    if found is None:
        return
    name, sha256 = found
    if sha256 != bundle.sha256:
        typer.echo(
            f"note: the card is of a subnet of {plain(name)[:100]}, SHA-256 {plain(sha256)[:12]}..., and its "
            f"architecture is taken from {bundle.path}, SHA-256 {bundle.sha256[:12]}...",
            err=True,
        )


def _teacher(bundle: SupernetBundle, text: str) -> SupernetBundle | None:
    from fleetnas.supernet_export.bundle import SupernetBundle

    if text == "none":
        return None
    if text != "largest":
        if not Path(text).exists():
            raise UsageError(f"--teacher {text} is neither largest nor none, and there is no such file; correct it")
        return SupernetBundle.open(Path(text))
    if bundle.space.size == 1:
        raise UsageError(
            f"{bundle.path} holds one network, which cannot teach itself: give --teacher with the supernet's bundle, "
            "or none for labels alone"
        )
    return bundle


def _card(architecture: str) -> WinnerCard | None:
    """Read the model card that the architecture came from; None where it came from elsewhere."""
    from fleetnas.coordinator.app.winner_card import read_card

    try:
        return read_card(Path(architecture)) if Path(architecture).suffix == ".json" else None
    except UsageError:
        return None


def _lines(request: FineTuningRequest, found: FineTuned, architecture: str) -> list[str]:
    """Format the result for people, with the command that comes next."""
    lines = []
    if found.before is not None and found.after is not None:
        lines.append(f"top-1 before {100 * found.before:.2f} %, after {100 * found.after:.2f} %")
        if found.after < found.before:
            lines.append("it is less accurate than before: try a lower --learning-rate, or more images")
    else:
        lines.append("no accuracy is known without --val, and a search of this bundle needs one; `measure` does not")
    output = request.output
    lines.append(f"{output}: {output.stat().st_size / 1e6:.1f} MB, SHA-256 {found.sha256}")
    command = ["fleetnas", "measure", str(output)]
    card = _card(architecture)
    if card is not None:
        command += ["--card", architecture]
        if card.setting.precision == "int8" and request.images is not None:
            command += ["--calibration-images", str(request.images)]
    command.append("--local")
    lines.append(f"next, measure it on devices (--broker ADDRESS in place of --local): {shlex.join(command)}")
    return lines


def _json(request: FineTuningRequest, found: FineTuned) -> dict[str, object]:
    return {
        "architecture": request.architecture.model_dump(mode="json"),
        "accuracy_before": found.before,
        "accuracy": found.after,
        "teacher_accuracy": found.teacher,
        "epochs": request.recipe.epochs,
        "bytes": request.output.stat().st_size,
        "sha256": found.sha256,
    }
