"""Read the baselines that a user names, and measure them beside the search of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

from pydantic import ValidationError

from fleetnas.agent.runtimes.input_shapes import Shape, choose_shapes
from fleetnas.agent.runtimes.sent_model import check_model, format_of
from fleetnas.coordinator.app.run_choice import ChosenRun
from fleetnas.coordinator.campaign.baseline_measurer import BaselineMeasurer
from fleetnas.coordinator.campaign.baseline_row import Preparation
from fleetnas.coordinator.campaign.campaign import Campaign
from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder, WinnerBuilder
from fleetnas.coordinator.records.baselines import MAX_NAME_LENGTH, Baseline, BaselineFile
from fleetnas.coordinator.records.clocks import Clocks
from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.search.problem import PredictedAccuracy
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.error_text import first_fault, reason_of
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.orders import MAX_MODEL_BYTES, ModelFormat, ModelReference
from fleetnas.supernet_export.bundle import SupernetBundle

_READ_BYTES = 1 << 20


def model_baseline(path: Path, shapes: Mapping[str, Shape], accuracy: float | None = None) -> Baseline:
    """Read and check a model file; `accuracy` is its top-1, a fraction, where the user knows it.

    `shapes` are the chosen input shapes by name, as `choose_shapes` takes them.

    Raises:
        UsageError: it is no model file that agents can be sent, or leaves an input's sides open.
    """
    form = format_of(path)
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MAX_MODEL_BYTES else b""
    except OSError as error:
        raise UsageError(f"the model {path} cannot be read: {reason_of(error)}; check its path") from None
    if size > MAX_MODEL_BYTES:
        raise UsageError(
            f"{path.name} has {size / 1e6:,.0f} MB, and agents are sent model files of at most "
            f"{MAX_MODEL_BYTES / 1e6:,.0f} MB; make it smaller, or measure it with `fleetnas-agent bench` on the device"
        )
    declared = check_model(path.name, content, form)
    try:
        chosen = choose_shapes(declared, shapes)
    except UsageError as error:
        raise UsageError(f"{path.name}: {error}") from None
    # Inputs whose sides are all given need no shape, whatever their names are.
    asked = {each.name: chosen[each.name] for each in declared if None in each.sides}
    fields = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "format": form, "input_shapes": asked}
    try:
        reference = ModelReference.model_validate(fields)
        return Baseline(
            name=path.name[-MAX_NAME_LENGTH:],
            file=BaselineFile(path=str(path.absolute()), reference=reference),
            accuracy=accuracy,
        )
    except ValidationError as error:
        raise UsageError(f"{path.name} cannot be sent: {first_fault(error)}; rename its inputs or the file") from None


def choose_baselines(
    texts: Sequence[str],
    shapes: Mapping[str, Shape],
    accuracies: Mapping[str, float],
    parse: Callable[[str], Architecture],
) -> tuple[Baseline, ...]:
    """Read the baselines of a command line: model files by their suffix, subnets by `parse`.

    `accuracies` are those of model files, fractions, by name; the empty name stands for the only model file.

    Raises:
        UsageError: one cannot be used, two have one name, or an accuracy is for none of them.
    """
    files = {text: Path(text) for text in texts if Path(text).suffix.lower() in (".onnx", ".tflite")}
    if "" in accuracies and len(files) != 1:
        raise UsageError(
            f"--baseline-accuracy without a name is for the one model file, and there are {len(files)}; give "
            "NAME=PERCENT, such as model.onnx=76.1"
        )
    names = {path.name for path in files.values()}
    unknown = sorted(set(accuracies) - names - {""})
    if unknown:
        known = ", ".join(sorted(names)) or "none"
        raise UsageError(f"--baseline-accuracy names {unknown[0]}, which is no model file of --baseline ({known})")
    if shapes and not files:
        raise UsageError("--input-shape is for model files, and no --baseline is one; leave it out")
    found = [
        model_baseline(files[text], shapes, accuracies.get(files[text].name, accuracies.get("")))
        if text in files
        else _subnet(text, parse)
        for text in dict.fromkeys(texts)
    ]
    twice = sorted({each.name for each in found if [one.name for one in found].count(each.name) > 1})
    if twice:
        raise UsageError(f"two baselines are called {twice[0]}; rename one of the files")
    return tuple(found)


def _subnet(text: str, parse: Callable[[str], Architecture]) -> Baseline:
    path = Path(text) if not text.lstrip().startswith("{") else None
    if path is not None and path.suffix and path.suffix.lower() != ".json" and path.is_file():
        raise UsageError(
            f"--baseline {path.name} is neither a model file (.onnx, .tflite) nor an architecture (.json); convert it"
        )
    architecture = parse(text)
    name = path.stem if path is not None else architecture.fingerprint
    return Baseline(name=name[-MAX_NAME_LENGTH:], architecture=architecture)


def check_baseline_files(run: ChosenRun) -> None:
    """Check that the model files of a run are those that it began with; `UsageError` names one that is not."""
    for baseline in run.settings.plan.baselines:
        if baseline.file is None:
            continue
        path, sha256 = Path(baseline.file.path), baseline.file.reference.sha256
        if _hash(path) != sha256:
            raise UsageError(
                f"baseline {baseline.name} of run {run.run_id} is the file with SHA-256 {sha256}, and {path} is "
                "another one now, or gone; bring that file back"
            )


def open_baselines(
    campaign: Campaign,
    run: ChosenRun,
    store: MeasurementStore,
    models: WinnerBuilder,
    executor: Executor,
    clocks: Clocks,
    accuracy: PredictedAccuracy | None,
    emit: Callable[[Event], None],
) -> BaselineMeasurer | None:
    """Have the baselines of a run measured on the campaign's connection; None where it has none."""
    baselines = run.settings.plan.baselines
    if not baselines:
        return None
    for baseline in baselines:
        if baseline.file is not None:
            campaign.connection.blobs.add_file(Path(baseline.file.path), baseline.file.reference.sha256)

    def predict(baseline: Baseline) -> float | None:
        if accuracy is None or baseline.architecture is None:
            return None
        return float(accuracy.predict(accuracy.space.encode([baseline.architecture]))[0])

    def evaluate_file(baseline: Baseline) -> tuple[float, int] | None:
        if baseline.file is None or not isinstance(models, BundleWinnerBuilder):
            return None
        return _evaluate(baseline.file, run.bundle, models)

    preparation = Preparation(models, executor, predict, evaluate_file)
    return BaselineMeasurer(campaign, store.baselines, preparation, clocks, emit=emit)


def _evaluate(file: BaselineFile, bundle: SupernetBundle, models: BundleWinnerBuilder) -> tuple[float, int] | None:
    """Evaluate a model file on the run's evaluation images; None where its input or its classes do not fit."""
    path, reference = Path(file.path), file.reference
    content = path.read_bytes()
    inputs = check_model(path.name, content, reference.format)
    shapes = choose_shapes(inputs, reference.input_shapes)
    size = _picture_size(next(iter(shapes.values())), reference.format) if len(shapes) == 1 else None
    if size is None or size[0] != bundle.manifest.preprocessing.channels:
        return None
    height, width = size[1:]
    if bundle.space.input_size(height) != (height, width):
        return None
    return models.accuracy_of_file(content, height)


def _picture_size(shape: Shape, form: ModelFormat) -> tuple[int, int, int] | None:
    """Return channels, height and width of an input of one picture; None where it is none."""
    if len(shape) != 4 or shape[0] != 1:
        return None
    first, second, third = shape[1:]
    return (first, second, third) if form == "onnx" else (third, first, second)


def _hash(path: Path) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()
