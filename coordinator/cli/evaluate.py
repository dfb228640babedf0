"""`fleetnas evaluate`: one subnet, without a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.architectures import ARCHITECTURE_HELP, parse_architecture
from fleetnas.fleet_protocol.choices import InterpreterName, Precision
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.output_files import check_file, write_atomically

if TYPE_CHECKING:
    from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder
    from fleetnas.fleet_protocol.architecture import Architecture
    from fleetnas.fleet_protocol.messages import RuntimeSetting
    from fleetnas.supernet_export.bundle import SupernetBundle

#: Classes up to which all are listed; of more, the worst ones.
_MOST_CLASSES, _WORST_CLASSES = 20, 10
_MODEL_SUFFIXES = {"onnxruntime": ".onnx", "litert": ".tflite"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A .supernet file.")],
    architecture: Annotated[
        str,
        typer.Argument(metavar="ARCHITECTURE", help=ARCHITECTURE_HELP),
    ],
    images: options.Images = None,
    calibration_images: options.SameToCalibrate = None,
    some_classes: options.SomeClasses = False,
    runtime: Annotated[
        InterpreterName, typer.Option(help="What runs the file: an .onnx, or a .tflite.")
    ] = "onnxruntime",
    precision: Annotated[Precision, typer.Option(help="Of the file.")] = "fp32",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Keep the file evaluated: .onnx or .tflite.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Slice, calibrate and evaluate one subnet.

    The evaluated file, on held-out images, is the very file that would ship.
    """
    from fleetnas.coordinator.app.images import checked_images
    from fleetnas.coordinator.app.request import ImageFolders
    from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder
    from fleetnas.coordinator.cli.progress import image_progress
    from fleetnas.fleet_protocol.messages import RuntimeSetting
    from fleetnas.supernet_export.bundle import SupernetBundle

    opened = SupernetBundle.open(bundle)
    chosen = parse_architecture(opened.space, architecture)
    if images is None and not opened.manifest.is_digits:
        raise UsageError(f"{bundle} is a supernet for {opened.manifest.dataset}; give --images DIR")
    if some_classes and images is None and calibration_images is None:
        raise UsageError("--some-classes is about folders of images, and none is given; leave it out")
    if output is not None:
        check_file("--output", output, _MODEL_SUFFIXES[runtime], strict=True)
    with image_progress() as progress:
        sources = checked_images(opened, ImageFolders(calibration_images, images, some_classes=some_classes), progress)
    models = BundleWinnerBuilder(opened, *sources)
    setting = RuntimeSetting(runtime=runtime, precision=precision)
    result, file = _evaluated(opened, models, chosen, setting, calibrated=sources[0] is not None)
    typer.echo(json.dumps(result) if as_json else "\n".join(_lines(chosen, result)))
    if output is not None:  # last: a disk that is full by now costs the file alone
        write_atomically(output, file)


def _evaluated(
    bundle: SupernetBundle,
    models: BundleWinnerBuilder,
    chosen: Architecture,
    setting: RuntimeSetting,
    *,
    calibrated: bool,
) -> tuple[dict[str, Any], bytes]:
    """Build and evaluate a subnet's file; returns the figures as `--json` prints them, and the file."""
    from fleetnas.coordinator.report.conversion import class_report
    from fleetnas.supernet_export.evaluation.evaluation_file import supernet_digest

    model = models.calibrate(chosen, setting)
    found = models.answers(model, "evaluation")
    assert found is not None
    report = class_report(found, "evaluation", bundle.manifest.class_names)
    file, space = models.file(model), bundle.space
    genome = space.encode([chosen])
    predictor = bundle.accuracy_predictor()
    result = {
        "architecture": chosen.model_dump(mode="json"),
        "supernet_digest": supernet_digest(bundle),
        "runtime": setting.runtime,
        "precision": setting.precision,
        "accuracy": found.accuracy,
        "accuracy_images": found.images,
        "macro_f1": report.macro_f1,
        "recall": report.recall,
        "confusion": report.confusion,
        "predicted_accuracy": float(predictor.predict(space.one_hot(genome))[0]) if predictor is not None else None,
        "calibrated": calibrated,
        "macs": float(space.macs(genome)[0]),
        "parameters": float(space.parameters(genome)[0]),
        "bytes": len(file),
        "sha256": model.sha256,
    }
    return result, file


def _lines(chosen: Architecture, result: dict[str, Any]) -> list[str]:
    """Format the figures for the terminal."""
    by = f"{result['accuracy_images']:,} images ({result['runtime']}, {result['precision']})"
    lines = [f"{chosen.fingerprint}: top-1 {100 * result['accuracy']:.2f} % on {by}"]
    lines += _class_lines(result)
    if result["predicted_accuracy"] is not None:
        lines.append(f"predicted: {100 * result['predicted_accuracy']:.2f} %")
    if not result["calibrated"]:
        lines.append("not calibrated: give --calibration-images DIR for the accuracy that it can have")
    macs, parameters = result["macs"] / 1e6, result["parameters"] / 1e6
    lines.append(f"{macs:.1f} M MACs, {parameters:.2f} M parameters, {result['bytes']:,} bytes")
    return lines


def _class_lines(result: dict[str, Any]) -> list[str]:
    """Format macro F1 and the recall of each class, or with many classes of the worst ones, worst first."""
    known = [(recall, name) for name, recall in result["recall"].items() if recall is not None]
    shown = known if len(known) <= _MOST_CLASSES else sorted(known)[:_WORST_CLASSES]
    of = "recall" if shown is known else f"recall of the {len(shown)} worst of {len(known)} classes"
    lines = [f"macro F1 {result['macro_f1']:.4f}; {of}:"]
    for recall, name in shown:
        answers = result["confusion"][name]
        wrong = {answer: images for answer, images in answers.items() if answer != name}
        most = max(wrong, key=lambda answer: wrong[answer], default=None)
        taken = f", most often taken for {most} ({wrong[most]})" if most is not None else ""
        lines.append(f"  {name}: {100 * recall:.1f} % of {sum(answers.values()):,} images{taken}")
    without = len(result["recall"]) - len(known)
    return [*lines, f"  {without:,} classes have no images here"] if without else lines
