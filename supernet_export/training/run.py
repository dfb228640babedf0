"""Train a supernet on a folder of images, from the check of the images to the bundle."""

from __future__ import annotations

import copy
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from fleetnas.fleet_protocol.cores import core_count
from fleetnas.fleet_protocol.errors import TrainingError, UsageError
from fleetnas.supernet_export.bundle import space_of
from fleetnas.supernet_export.manifest import Manifest, Provenance, read_manifest
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.training.checkpoint import BOARD_NAME, RunFolder
from fleetnas.supernet_export.training.data_set import DataSets, open_data_sets
from fleetnas.supernet_export.training.elastic import ElasticMBConvNet
from fleetnas.supernet_export.training.image_batches import CACHE_BYTES, FolderBatches, ImageStore
from fleetnas.supernet_export.training.ranks import Ranks, close_ranks, open_ranks
from fleetnas.supernet_export.training.reproducible import reproducible
from fleetnas.supernet_export.training.result import BUNDLE_NAME, write_result
from fleetnas.supernet_export.training.run_log import RunLog
from fleetnas.supernet_export.training.run_phases import phases_of
from fleetnas.supernet_export.training.run_settings import TrainSettings
from fleetnas.supernet_export.training.run_space import training_preprocessing, training_space
from fleetnas.supernet_export.training.run_view import RunView
from fleetnas.supernet_export.training.schedule import Phase
from fleetnas.supernet_export.training.trainer import Progress, Recipe, Trainer, TrainerEvents
from fleetnas.supernet_export.training.validation import Scores, Validator
from fleetnas.supernet_export.training.warm_start import Source, load_source, load_teacher, open_source

_MOST_WORKERS = 8
_TEACHERS = ("in-place", "frozen")


class TrainingStopped(Exception):  # noqa: N818 - a wish of the user, no error
    """A signal ended the training after it was saved; the message says how to continue, `signum` which signal."""

    def __init__(self, text: str, signum: int) -> None:
        super().__init__(text)
        self.signum = signum


@dataclass(frozen=True)
class Habits:
    """How a training runs, without effect on its weights."""

    workers: int | None = None
    checkpoint_minutes: float = 2.0
    checkpoint_steps: int | None = None
    cache: Path | None = None  #: where published supernets are kept
    images_in_memory: int = CACHE_BYTES


@dataclass(frozen=True)
class TrainResult:
    """What a training ended with."""

    bundle: Path
    sha256: str
    scores: tuple[Scores, ...]


def train_supernet(
    settings: TrainSettings, out: Path, view: RunView, *, resume: bool = False, habits: Habits | None = None
) -> TrainResult:
    """Train, validate each epoch, and write `out/weights.safetensors` and `out/supernet.supernet`.

    Every process that `torchrun` or `accelerate launch` started calls it with the same arguments.

    Raises:
        UsageError: the images, the options or the folder cannot be used.
        TrainingError: the loss is not finite, or a file cannot be written.
        TrainingStopped: SIGINT or SIGTERM arrived; the training was saved.
    """
    ranks = open_ranks()
    try:
        if not ranks.is_first:
            view = RunView()
        folder = RunFolder(out)
        with _noticed_signals() as noticed, folder.claimed(resume) if ranks.is_first else nullcontext():
            return _Run(settings, folder, view, ranks, habits or Habits()).train(resume, noticed)
    except RuntimeError as error:
        if ranks.lost_by(error):
            raise TrainingError(
                "another process of this training has ended or cannot be reached; see its messages, and go on with "
                f"--resume --out {out}, under the same command that started the processes"
            ) from None
        raise
    finally:
        close_ranks()


class _Run(TrainerEvents):
    def __init__(self, settings: TrainSettings, folder: RunFolder, view: RunView, ranks: Ranks, habits: Habits) -> None:
        if settings.threads is None:  # stored, so that the training resumes with as many on another machine
            settings = settings.model_copy(update={"threads": _threads(ranks)})
        self._settings, self._folder, self._view, self._ranks, self._habits = settings, folder, view, ranks, habits
        self._noticed: list[int] = []
        self._last_scores: list[Scores] = []

    def train(self, resume: bool, noticed: list[int]) -> TrainResult:
        self._noticed = noticed
        saved = self._opened_folder(resume)
        settings = self._settings
        data = open_data_sets(settings.train, settings.val, progress=self._view.images_checked, warn=self._warn)
        source = None
        if saved is None:
            if settings.source is not None:
                source = open_source(settings.source, cache=self._habits.cache, progress=self._view.downloaded)
            self._manifest = _draft(settings, source, data)
        else:
            _check_same_images(saved, data, self._folder)
            self._manifest = read_manifest(saved["manifest"])
        space = space_of(self._manifest)
        assert isinstance(space, MBConvSpace)
        phases = phases_of(settings.schedule, space, settings.epochs, settings.peak_learning_rate, settings.subnets)
        trainer = self._trainer(space, phases, data)
        self._data_fingerprint = data.fingerprint()
        if saved is not None:
            trainer.restore(saved["trainer"])
            done = trainer.position
            self._view.message(f"resuming after epoch {done.done_epochs}, step {done.step} of {trainer.batches.steps}")
        elif source is not None:
            self._view.message(load_source(trainer.net, space, source, data.class_names).line)
        if saved is None and settings.teacher not in _TEACHERS:
            trainer.teacher = self._teacher(trainer, space)
        return self._run(trainer, space, data)

    # -- preparation -------------------------------------------------------------------------------------------

    def _opened_folder(self, resume: bool) -> dict[str, Any] | None:
        if resume:
            saved = self._folder.load()
            found = int(self._ranks.add(torch.tensor([int(saved is not None)], device=self._ranks.device)))
            if found not in (0, self._ranks.world):
                raise UsageError(
                    f"only {found} of {self._ranks.world} processes find a checkpoint in --out {self._folder.path}; "
                    "give a folder that all machines share"
                )
            return saved
        if self._ranks.is_first:
            self._folder.prepare()
        self._ranks.wait()
        return None

    def _trainer(self, space: MBConvSpace, phases: Sequence[Phase], data: DataSets) -> Trainer:
        settings, ranks = self._settings, self._ranks
        if settings.precision == "fp16" and torch.device(ranks.device).type == "cpu":
            raise UsageError("--precision fp16 needs a GPU, and torch sees none here; use bf16 or fp32")
        self._train = ImageStore(data.train, self._manifest.preprocessing, space.input_size)
        self._val = ImageStore(data.val, self._manifest.preprocessing, space.input_size)
        self._keep_images()
        ranks.check_shares(len(data.train), settings.batch_size)
        batches = FolderBatches(
            self._train,
            resolutions=space.resolutions,
            batch_size=settings.batch_size,
            seed=settings.seed,
            workers=self._workers(),
            ranks=ranks,
        )
        torch.manual_seed(settings.seed)
        net = ElasticMBConvNet(space.network, space.kernels, space.expands, space.depths)
        recipe = Recipe(
            resolutions=space.resolutions,
            batch_size=settings.batch_size,
            weight_decay=settings.decay,
            label_smoothing=settings.label_smoothing,
            seed=settings.seed,
            threads=settings.threads or 1,
            optimizer=settings.optimizer,
            clip_norm=settings.clip_norm,
            warm_up=settings.warm_up,
            ema_decay=settings.ema,
            precision=settings.precision,
            class_weights=_class_weights(settings, data),
            frozen_teacher=settings.teacher == "frozen",
        )
        return Trainer(net, batches, phases, recipe, ranks=ranks, events=self)

    def _keep_images(self) -> None:
        limit = self._habits.images_in_memory // self._ranks.local_world
        used = self._train.keep(limit)
        if used <= limit:
            self._val.keep(limit - used)
        else:
            self._view.message(
                f"decoded images would take {used / 2**30:.1f} GiB of memory or more: they are read again in each epoch"
            )

    def _workers(self) -> int:
        if self._habits.workers is not None:
            return self._habits.workers
        return min(_MOST_WORKERS, max(0, core_count() // self._ranks.local_world - 1))

    def _teacher(self, trainer: Trainer, space: MBConvSpace) -> ElasticMBConvNet:
        """Return the largest subnet of the network that `--teacher` names."""
        net = copy.deepcopy(trainer.net)
        self._view.message(f"teacher {load_teacher(net, space, self._manifest, self._settings.teacher)}")
        net.set_active(space.decode(space.largest())[0])
        net.requires_grad_(False)
        net.train()
        return net

    def _warn(self, text: str) -> None:
        self._view.message(text, warning=True)

    # -- the training ------------------------------------------------------------------------------------------

    def _run(self, trainer: Trainer, space: MBConvSpace, data: DataSets) -> TrainResult:
        self._validator = Validator(trainer.net, space, self._train, self._val, self._ranks)
        self._log = None
        if self._ranks.is_first:
            self._folder.store_settings(self._settings)
            self._log = RunLog(self._folder.log, self._folder.path / BOARD_NAME, trainer.position.done_epochs)
        self._started = self._saved = time.monotonic()
        with reproducible(trainer.recipe.threads, on_cpu=torch.device(self._ranks.device).type == "cpu"):
            trainer.run()
            state = self._validator.calibrated_state(trainer.averaged_state())
            if not self._last_scores:
                self._last_scores = self._validator.scores(trainer.averaged_state())
        sha256 = ""
        if self._ranks.is_first:
            sha256 = write_result(self._folder.path, state, space, self._manifest)
        if self._log is not None:
            self._log.close()
        self._ranks.wait()
        return TrainResult(self._folder.path / BUNDLE_NAME, sha256, tuple(self._last_scores))

    def wants_to_stop(self) -> bool:
        return bool(self._noticed)

    def after_step(self, trainer: Trainer, progress: Progress, *, stop: bool) -> None:
        self._view.step(progress)
        habits, now = self._habits, time.monotonic()
        wanted = now - self._saved >= 60 * habits.checkpoint_minutes
        if habits.checkpoint_steps is not None:
            wanted = progress.step % habits.checkpoint_steps == 0
        if (wanted or stop) and self._ranks.is_first:
            self._save(trainer)
        if stop:
            raise TrainingStopped(
                f"stopped and saved in epoch {progress.epoch}, step {progress.step} of {progress.steps}; go on with: "
                f"fleetnas train --resume --out {self._folder.path}",
                self._noticed[0] if self._noticed else signal.SIGTERM,
            )

    def after_epoch(self, trainer: Trainer, progress: Progress) -> None:
        scores = self._validator.scores(trainer.averaged_state())
        self._last_scores = scores
        if self._log is not None:
            self._log.write(
                {
                    "epoch": progress.epoch,
                    "phase": progress.phase,
                    "loss": progress.loss,
                    "learning_rate": progress.learning_rate,
                    "accuracy": {score.name: score.accuracy for score in scores},
                    "cross_entropy": {score.name: score.cross_entropy for score in scores},
                    "images": scores[0].images,
                    "seconds": round(time.monotonic() - self._started, 1),
                }
            )
        self._view.epoch(progress, scores)
        if self._ranks.is_first:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._folder.save(
            {"trainer": trainer.state(), "manifest": self._manifest.text(), "images": self._data_fingerprint}
        )
        self._saved = time.monotonic()


def _threads(ranks: Ranks) -> int:
    if "OMP_NUM_THREADS" in os.environ:
        return int(torch.get_num_threads())
    return max(1, core_count() // ranks.local_world)


def _draft(settings: TrainSettings, source: Source | None, data: DataSets) -> Manifest:
    """Return the manifest of the bundle to be, without the hash of its weights."""
    space = training_space(settings, source, len(data.class_names))
    origin = "" if settings.source is None else f" from {Path(settings.source).name}"
    epochs = "1 epoch" if settings.epochs == 1 else f"{settings.epochs} epochs"
    return Manifest(
        space=space.name,
        options=dict(space.options),
        classes=len(data.class_names),
        class_names=data.class_names,
        dataset=_dataset_name(settings.train),
        preprocessing=training_preprocessing(settings, source, space),
        provenance=Provenance(
            source=f"trained by fleetnas{origin}, schedule {settings.schedule}, {epochs}, seed {settings.seed}"
        ),
    )


def _dataset_name(train: Path) -> str:
    """Return the name of the folder that holds the parts, or of the training folder where it holds nothing else."""
    folder = train.resolve()
    name = folder.parent.name if folder.name.lower() in ("train", "training") else folder.name
    printable = "".join(c for c in name if c.isprintable())
    return printable[:64] or "images"


def _class_weights(settings: TrainSettings, data: DataSets) -> tuple[float, ...] | None:
    if settings.class_weights == "none":
        return None
    counts = np.bincount(data.train.labels, minlength=len(data.class_names))
    return tuple((len(data.train) / (len(counts) * counts)).tolist())


def _check_same_images(saved: dict[str, Any], data: DataSets, folder: RunFolder) -> None:
    if saved["images"] != data.fingerprint():
        raise UsageError(
            f"the images are not those that the training in {folder.path} began with: files were added, removed or "
            "changed; restore them, or begin a new training"
        )


@contextmanager
def _noticed_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM for the end of the current step; a second SIGINT ends at once."""
    noticed: list[int] = []

    def notice(signum: int, frame: FrameType | None) -> None:
        if signal.SIGINT in noticed and signum == signal.SIGINT:
            raise KeyboardInterrupt
        noticed.append(signum)

    before = {signum: signal.signal(signum, notice) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noticed
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
