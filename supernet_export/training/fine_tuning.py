"""Fine-tune one subnet of a supernet and write it as a bundle of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import TrainingError, UsageError
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.cutting import fixed_space, predicted_accuracy, write_network
from fleetnas.supernet_export.evaluation.image_folder import ImageFolder
from fleetnas.supernet_export.graph import Graph
from fleetnas.supernet_export.slicing.subnet import slice_subnet
from fleetnas.supernet_export.training.distillation_batches import (
    DigitsBatches,
    DistillationBatches,
    FolderBatches,
)
from fleetnas.supernet_export.training.fine_tuner import FineTuner
from fleetnas.supernet_export.training.fine_tuning_recipe import FineTuningRecipe
from fleetnas.supernet_export.training.fine_tuning_state import FineTuningState
from fleetnas.supernet_export.training.fine_tuning_step import FineTuningStep
from fleetnas.supernet_export.training.network_images import NetworkImages


@dataclass(frozen=True)
class FineTuningRequest:
    """One subnet to train on, and the bundle to write."""

    bundle: SupernetBundle
    architecture: Architecture
    #: Folders with one folder per class; None for the built-in digits, and for no validation.
    images: Path | None
    validation: Path | None
    #: A supernet whose largest subnet teaches; None: labels alone.
    teacher: SupernetBundle | None
    output: Path
    recipe: FineTuningRecipe = field(default_factory=FineTuningRecipe)


@dataclass(frozen=True)
class FineTuned:
    """The result; accuracies are top-1 of exported fp32 files on the validation images, fractions."""

    sha256: str  #: of the bundle
    before: float | None
    after: float | None
    teacher: float | None


class FineTuningEvents:
    """What happens in a fine-tuning; this one ignores all of it."""

    def begins(self, task: str, images: int) -> None:
        """Take note of a task, such as `calibrating the teacher`, over a number of images."""

    def progresses(self, images: int) -> None:
        """Take note of images that the task has done since the last call."""

    def scored(self, network: str, accuracy: float) -> None:
        """Take note of a top-1 accuracy, a fraction, of `the subnet`, `the teacher` or `the fine-tuned subnet`."""

    def trains(self, epochs: int, steps: int, done: int) -> None:
        """Take note that training begins: epochs, the steps of each, and steps that were done before."""

    def trained(self, step: FineTuningStep) -> None:
        """Take note of a step of the training."""


def fine_tune(request: FineTuningRequest, events: FineTuningEvents, *, resume: bool = False) -> FineTuned:
    """Train a subnet by itself and write its bundle; with `resume`, continue an interrupted training.

    Its batch-norm statistics are re-estimated at the end on the training images, like those of every winner, so that
    the bundle's network is the one that its model files compute. Without epochs it is calibrated and cut out.

    Raises:
        ArchitectureError: the architecture is not in the bundle's space.
        TrainingError: the loss is not finite.
        UsageError: images are missing or cannot be read, the teacher has other classes, or the training that should be
            resumed is another one.
        OSError: a file cannot be written.
    """
    return _FineTuning(request, events).run(resume=resume)


class _FineTuning:
    def __init__(self, request: FineTuningRequest, events: FineTuningEvents) -> None:
        self._request, self._events = request, events
        bundle = request.bundle
        architecture = fixed_space(bundle.space, request.architecture).architecture
        self._student = NetworkImages.open(bundle, architecture, request.images, request.validation)
        self._teacher = None
        if request.teacher is not None and request.recipe.epochs:
            _check_teacher(bundle, request.teacher)
            (largest,) = request.teacher.space.decode(request.teacher.space.largest())
            self._teacher = NetworkImages.open(request.teacher, largest, request.images, request.validation)
        self._batches = self._training_batches()
        if len(self._batches.labels) < 2:
            raise UsageError(f"{request.images} holds one image; a training needs two at least, and better hundreds")

    def run(self, *, resume: bool) -> FineTuned:
        state = FineTuningState(self._request.output, self._settings())
        with state.claimed():
            return self._finished(state, resume)

    def _finished(self, state: FineTuningState, resume: bool) -> FineTuned:
        request, student = self._request, self._student
        saved = state.load() if resume and state.path.exists() else None
        self._check_images()
        scores: dict[str, float | None] = dict(saved["scores"]) if saved is not None else {}
        graph = self._calibrated(student, slice_subnet(request.bundle, student.architecture), "the subnet")
        self._score(scores, student, graph, "the subnet")
        after = scores["the subnet"]
        if request.recipe.epochs:
            teacher = None
            if self._teacher is not None:
                teacher = slice_subnet(self._teacher.bundle, self._teacher.architecture)
                teacher = self._calibrated(self._teacher, teacher, "the teacher")
                self._score(scores, self._teacher, teacher, "the teacher")
            trained = self._trained(graph, teacher, state, saved, scores)
            graph = self._calibrated(student, trained, "the fine-tuned subnet")
            self._score(scores, student, graph, "the fine-tuned subnet")
            after = scores["the fine-tuned subnet"]
        # What the supernet's predictor says holds for the supernet's own weights alone.
        accuracy = None if request.recipe.epochs else predicted_accuracy(request.bundle, student.architecture)
        if after is not None and student.validation is not None:
            name = request.validation or "the digits' test part"
            accuracy = after, f"evaluated on {len(student.validation):,} images of {name}"
        sha256 = write_network(
            request.bundle, student.architecture, graph, request.output, origin=self._origin(), accuracy=accuracy
        )
        state.remove()
        return FineTuned(sha256, scores["the subnet"], after, scores.get("the teacher"))

    def _trained(
        self,
        graph: Graph,
        teacher: Graph | None,
        state: FineTuningState,
        saved: dict[str, Any] | None,
        scores: dict[str, float | None],
    ) -> Graph:
        tuner = FineTuner(graph, teacher, self._batches, self._request.recipe)
        if saved is not None:
            tuner.restore(saved)

        def after_step(step: FineTuningStep) -> None:
            self._events.trained(step)
            if step.ends_epoch or state.wants_saving():
                state.save(tuner.state() | {"scores": scores})

        self._events.trains(self._request.recipe.epochs, self._batches.steps, tuner.steps_done)
        try:
            tuner.run(after_step)
        except TrainingError:
            state.remove()  # it would diverge again
            raise
        return tuner.graph()

    def _check_images(self) -> None:
        """Read every image once, so that a broken one does not end a training in its last epoch."""
        for source in {id(each): each for each in (self._student.calibration, self._student.validation)}.values():
            if source is not None:
                seen = 0

                def progress(done: int, total: int) -> None:
                    nonlocal seen
                    self._events.progresses(done - seen)
                    seen = done

                self._events.begins("checking images", len(source))
                source.check(progress)

    def _calibrated(self, images: NetworkImages, graph: Graph, name: str) -> Graph:
        self._events.begins(f"calibrating {name}", images.calibration_count)
        return images.calibrated(graph, self._events.progresses, self._request.recipe.threads)

    def _score(self, scores: dict[str, float | None], images: NetworkImages, graph: Graph, name: str) -> None:
        """Evaluate a network, unless an interrupted training has done so."""
        if name not in scores:
            self._events.begins(f"evaluating {name}", len(images.validation or ()))
            scores[name] = images.accuracy(graph, self._events.progresses, self._request.recipe.threads)
        accuracy = scores[name]
        if accuracy is not None:
            self._events.scored(name, accuracy)

    def _training_batches(self) -> DistillationBatches:
        request, recipe = self._request, self._request.recipe
        networks = [images.input for images in (self._student, self._teacher) if images is not None]
        if request.images is None:
            return DigitsBatches(networks, batch_size=recipe.batch_size, seed=recipe.seed)
        folder = self._student.calibration
        assert isinstance(folder, ImageFolder)
        return FolderBatches(folder.paths, folder.labels, networks, batch_size=recipe.batch_size, seed=recipe.seed)

    def _settings(self) -> dict[str, Any]:
        """Return all that the trained weights depend on."""
        request = self._request
        return {
            "bundle": request.bundle.sha256,
            "architecture": self._student.architecture.fingerprint,
            "teacher": None if self._teacher is None else self._teacher.bundle.sha256,
            "images": self._batches.digest(),
            **asdict(request.recipe),
        }

    def _origin(self) -> str:
        """Describe the weights in one line."""
        request, recipe = self._request, self._request.recipe
        subnet = f"subnet {self._student.architecture.fingerprint} of {request.bundle.path.name}"
        if not recipe.epochs:
            return f"{subnet}, not fine-tuned"
        taught = "labels alone"
        if self._teacher is not None:
            own = self._teacher.bundle.sha256 == request.bundle.sha256
            taught = "its largest subnet" if own else f"{self._teacher.bundle.path.name} {self._teacher.bundle.sha256}"
        images = request.images.resolve().name if request.images is not None else "the digits' training part"
        epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
        return (
            f"{subnet}, fine-tuned for {epochs} on {len(self._batches.labels):,} images of {images} "
            f"(digest {self._batches.digest()[:12]}), taught by {taught}; batch {recipe.batch_size}, learning rate "
            f"{recipe.learning_rate:g}, {recipe.precision}, seed {recipe.seed}"
        )


def _check_teacher(bundle: SupernetBundle, teacher: SupernetBundle) -> None:
    ours, theirs = bundle.manifest, teacher.manifest
    named = ours.class_names is not None and theirs.class_names is not None
    if ours.classes != theirs.classes or (named and ours.class_names != theirs.class_names):
        raise UsageError(
            f"the teacher {teacher.path} must have the classes of {bundle.path} in the same order; it has "
            f"{theirs.classes:,} classes, and the student {ours.classes:,}: give another one with --teacher"
        )
    if ours.preprocessing.channels != theirs.preprocessing.channels:
        raise UsageError(
            f"the teacher {teacher.path} takes images of {theirs.preprocessing.channels} channels, and the student of "
            f"{ours.preprocessing.channels}: give another one with --teacher"
        )
