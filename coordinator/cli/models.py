"""`fleetnas evaluate`, `fleetnas accuracy fit`, `fleetnas predictor evaluate`: models looked at without a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import ValidationError

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.progress import image_progress
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.output_files import check_file, write_atomically

_MODEL_SUFFIXES = {"onnxruntime": ".onnx", "litert": ".tflite"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("evaluate")(evaluate)
    accuracy = typer.Typer(help="Accuracy predictors.", no_args_is_help=True)
    accuracy.command("fit")(fit)
    accuracy.callback()(lambda: None)
    app.add_typer(accuracy, name="accuracy")
    predictor = typer.Typer(help="Latency predictors.", no_args_is_help=True)
    predictor.command("evaluate")(evaluate_predictor)
    predictor.callback()(lambda: None)
    app.add_typer(predictor, name="predictor")


def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A .supernet file.")],
    architecture: Annotated[
        str,
        typer.Argument(
            metavar="ARCHITECTURE", help="JSON with OFA's keys, a file of it, `smallest`, `largest` or `random:SEED`."
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="Folder with a folder of images per class, to evaluate on."),
    ] = None,
    calibration_images: Annotated[
        Path | None, typer.Option("--calibration-images", metavar="DIR", help="The same, to calibrate on.")
    ] = None,
    runtime: Annotated[
        Literal["onnxruntime", "litert"], typer.Option(help="What runs the file: an .onnx, or a .tflite.")
    ] = "onnxruntime",
    precision: Annotated[Literal["fp32", "int8"], typer.Option(help="Of the file.")] = "fp32",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Keep the file evaluated: .onnx or .tflite.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Slice, calibrate and evaluate one subnet.

    What is evaluated, on held-out images, is the very file that would ship.
    """
    import numpy as np
    from fleetnas.coordinator.app.assembly import image_sources

    from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder
    from fleetnas.fleet_protocol.architecture import Architecture
    from fleetnas.fleet_protocol.messages import RuntimeSetting
    from fleetnas.supernet_export.bundle import SupernetBundle

    opened = SupernetBundle.open(bundle)
    if architecture in ("smallest", "largest"):
        (chosen,) = opened.space.decode(getattr(opened.space, architecture)())
    elif architecture.startswith("random:") and architecture.removeprefix("random:").isdecimal():
        rng = np.random.default_rng(int(architecture.removeprefix("random:")))
        (chosen,) = opened.space.decode(opened.space.sample(1, rng))
    else:
        # A whole architecture is longer than a file's name may be.
        try:
            is_file = not architecture.lstrip().startswith("{") and Path(architecture).is_file()
            text = read_text(Path(architecture)) if is_file else architecture
            fields = json.loads(text)
            # A winner's card holds its architecture beside other things.
            chosen = Architecture.model_validate(fields.get("architecture", fields))
        except (OSError, ValueError, AttributeError) as error:
            raise UsageError(
                f"architecture {architecture[:80]!r} cannot be read ({_first_fault(error)}); give JSON with the "
                "keys ks, e, d and r, a file of it, `smallest`, `largest` or `random:SEED`"
            ) from None
    if images is None and opened.manifest.dataset != "digits":
        raise UsageError(f"{bundle} is a supernet for {opened.manifest.dataset}; give --images DIR")
    if output is not None:
        check_file("--output", output, _MODEL_SUFFIXES[runtime], strict=True)
    with image_progress() as progress:
        calibration, evaluation = image_sources(opened, calibration_images, images, progress)
    models = BundleWinnerBuilder(opened, calibration, evaluation)
    model = models.calibrate(chosen, RuntimeSetting(runtime=runtime, precision=precision))
    found = models.accuracy(model)
    assert found is not None
    file = models.file(model)
    genome = opened.space.encode([chosen])
    predictor = opened.accuracy_predictor()
    predicted = float(predictor.predict(opened.space.one_hot(genome))[0]) if predictor is not None else None
    macs, parameters = float(opened.space.macs(genome)[0]), float(opened.space.parameters(genome)[0])
    result = {
        "architecture": chosen.model_dump(mode="json"),
        "runtime": runtime,
        "precision": precision,
        "accuracy": found[0],
        "accuracy_images": found[1],
        "predicted_accuracy": predicted,
        "calibrated": calibration is not None,
        "macs": macs,
        "parameters": parameters,
        "bytes": len(file),
        "sha256": model.sha256,
    }
    lines = [f"{chosen.fingerprint}: top-1 {100 * found[0]:.2f} % on {found[1]:,} images ({runtime}, {precision})"]
    if predicted is not None:
        lines.append(f"predicted: {100 * predicted:.2f} %")
    if calibration is None:
        lines.append("not calibrated: give --calibration-images DIR for the accuracy that it can have")
    lines.append(f"{macs / 1e6:.1f} M MACs, {parameters / 1e6:.2f} M parameters, {len(file):,} bytes")
    typer.echo(json.dumps(result) if as_json else "\n".join(lines))
    if output is not None:  # last: a disk that is full by now costs the file alone
        write_atomically(output, file)


def _first_fault(error: OSError | ValueError | AttributeError) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}"
    return "it is no JSON, and no such file exists" if isinstance(error, json.JSONDecodeError) else str(error)


def fit(
    samples: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Evaluated subnets: a .csv (ks, e, d, r, top1_percent), or .jsonl of `evaluate --json`.",
        ),
    ],
    space: Annotated[str, typer.Option("--space", metavar="NAME", help="Their design space.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The predictor, a .safetensors file.")],
    space_options: Annotated[str, typer.Option("--options", metavar="JSON", help="The space's options.")] = "{}",
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Fixes which are held out.")] = 0,
) -> None:
    """Fit an accuracy predictor to evaluated subnets.

    Some are held out, to say how well it predicts others.
    """
    import numpy as np

    from fleetnas.supernet_export.accuracy.fit import fit_accuracy, read_evaluated
    from fleetnas.supernet_export.spaces.registry import make_space

    made = make_space(space, options.json_object("--options", space_options))
    check_file("--output", output, ".safetensors", strict=True)
    genomes, top1 = read_evaluated(samples, made)
    predictor = fit_accuracy(made, genomes, top1, np.random.default_rng(seed))
    found = predictor.held_out
    assert found is not None
    typer.echo(
        f"fitted to {found.samples} of {len(genomes)} evaluated subnets\n"
        f"on the other {found.held_out}, held out: rank correlation {found.spearman:.3f}, "
        f"mean error {found.mae_percent:.2f} points, root-mean-square error {found.rmse_percent:.2f} points"
    )
    predictor.save(output)
    typer.echo(f"{output}: the predictor")


def evaluate_predictor(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Measured latencies: .npz, .json, or .csv as `export-data` writes it."),
    ],
    samples: Annotated[
        str, typer.Option("--samples", metavar="N,...", help="How many measurements of a new device.")
    ] = "10,20,50",
    draws: Annotated[int, typer.Option("--draws", metavar="N", min=1, help="Random choices of these.")] = 5,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Fixes these choices.")] = 0,
) -> None:
    """How well a few measurements predict a new device.

    Each device in turn is the new one; the latency predictor learns its prior from the others.
    """
    from fleetnas.coordinator.predictors.evaluation.dataset import read_latency_data
    from fleetnas.coordinator.predictors.evaluation.studies import leave_family_out, table_lines

    try:
        counts = tuple(int(part) for part in samples.split(","))
    except ValueError:
        raise UsageError(f"--samples {samples!r} are not numbers; give such as 10,20,50") from None
    rows = leave_family_out(
        read_latency_data(data),
        samples=counts,
        draws=draws,
        seed=seed,
        progress=lambda setting: typer.echo(f"{setting} ...", err=True),
    )
    for line in table_lines(rows):
        typer.echo(line)
