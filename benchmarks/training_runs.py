"""Train supernets for `training.py`: two data sets, two schedules, several lengths; keep finished runs in a file."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.registry import make_space
from fleetnas.supernet_export.training.schedule import Phase

if TYPE_CHECKING:
    from fleetnas.supernet_export.training.elastic import ElasticMBConvNet

MAKE_TEXTURES = Path(__file__).resolve().parent.parent / "docs" / "examples" / "make_textures.py"
IMAGE_SETS = ("digits", "textures")
SCHEDULES = ("progressive", "compound")
FIXED_KERNEL = 5
#: Subnets of progressive shrinking's own space, from its smallest to its largest.
OWN_COUNT = 40
#: Shorter than this, the compound schedule's last phase would have no epoch.
LEAST_BUDGET = 2
TEXTURES_BATCH, CALIBRATION_IMAGES, EVALUATION_BATCH = 64, 320, 64

Floats = NDArray[np.float32]
Key = tuple[str, str, int, int]


@dataclass(frozen=True)
class Run:
    """One trained supernet: its budget, and its subnets as (MACs, accuracy on test images in percent)."""

    images: str
    schedule: str
    budget: int  #: epochs of progressive shrinking's full phases
    seed: int
    epochs: int
    sample_steps: int  #: images times subnets that passed forward and backward
    wall_s: float
    cpu_s: float
    compound: list[tuple[int, float]]
    own: list[tuple[int, float]]

    @property
    def key(self) -> Key:
        """What tells this run from others."""
        return self.images, self.schedule, self.budget, self.seed


class ImageSet(ABC):
    """Images to train on and to test with, and the space whose subnets see them."""

    space: MBConvSpace
    #: Resolutions at which subnets are evaluated.
    evaluated: tuple[int, ...]
    train_count: int

    @abstractmethod
    def trained(self, phases: Sequence[Phase], seed: int) -> ElasticMBConvNet:
        """Train a network; the same phases and seed give the same weights."""

    @abstractmethod
    def accuracy(self, net: ElasticMBConvNet, subnet: Architecture) -> float:
        """Return a subnet's accuracy on the test images in percent, after batch-norm calibration."""


class Digits(ImageSet):
    """The built-in digits at three resolutions."""

    def __init__(self) -> None:
        from fleetnas.supernet_export.digits.data import load_digits, preprocess

        self.space = DigitsSpace(resolutions=(8, 12, 16))
        self.evaluated = self.space.resolutions
        digits = load_digits()
        self.train_count, self._labels = len(digits.train), digits.test.labels
        self._seen = {
            side: (preprocess(digits.calibration.images, side), preprocess(digits.test.images, side))
            for side in self.evaluated
        }

    def trained(self, phases: Sequence[Phase], seed: int) -> ElasticMBConvNet:
        """Train with the recipe of the built-in supernet."""
        from fleetnas.supernet_export.training.digits import RECIPE, train_digits

        recipe = dataclasses.replace(RECIPE, resolutions=self.space.resolutions, seed=seed)
        return train_digits(phases, lambda progress: None, recipe=recipe)

    def accuracy(self, net: ElasticMBConvNet, subnet: Architecture) -> float:
        """Calibrate on the calibration part, all of it in one batch."""
        from fleetnas.supernet_export.training.trainer import calibrated_logits

        predicted = calibrated_logits(net, subnet, *self._seen[subnet.r]).argmax(axis=1)
        return 100 * float((predicted == self._labels).mean())


class Textures(ImageSet):
    """A folder of images with train and test, trained with the defaults of `fleetnas train` but for the phases.

    Three resolutions are trained; two are evaluated, since an evaluation costs as much as half an epoch.
    """

    def __init__(self, data: Path) -> None:
        from fleetnas.supernet_export.preprocessing import IMAGENET
        from fleetnas.supernet_export.training.data_set import open_data_sets
        from fleetnas.supernet_export.training.image_batches import ImageStore
        from fleetnas.supernet_export.training.run_settings import TrainSettings

        self._settings = TrainSettings(train=data / "train", val=data / "test", batch_size=TEXTURES_BATCH)
        sets = open_data_sets(self._settings.train, self._settings.val)
        options = {"classes": len(sets.class_names), "resolutions": [32, 40, 48]}
        space = make_space("mbconv", options)
        assert isinstance(space, MBConvSpace)
        self.space, self.evaluated = space, (32, 48)
        self.train_count = len(sets.train)
        self._train, self._test = (ImageStore(part, IMAGENET, space.input_size) for part in (sets.train, sets.val))
        self._train.keep()
        self._test.keep()
        self._prepared: dict[int, tuple[Floats, Floats]] = {}

    def trained(self, phases: Sequence[Phase], seed: int) -> ElasticMBConvNet:
        """Train as `fleetnas train` does; images are prepared in this process, so that its CPU time holds all."""
        import torch

        from fleetnas.supernet_export.training.elastic import ElasticMBConvNet
        from fleetnas.supernet_export.training.image_batches import FolderBatches
        from fleetnas.supernet_export.training.ranks import Ranks
        from fleetnas.supernet_export.training.trainer import Recipe, Trainer

        settings, space = self._settings, self.space
        batches = FolderBatches(
            self._train,
            resolutions=space.resolutions,
            batch_size=settings.batch_size,
            seed=seed,
            workers=0,
            ranks=Ranks(),
        )
        torch.manual_seed(seed)
        net = ElasticMBConvNet(space.network, space.kernels, space.expands, space.depths)
        recipe = Recipe(
            resolutions=space.resolutions,
            batch_size=settings.batch_size,
            weight_decay=settings.decay,
            label_smoothing=settings.label_smoothing,
            seed=seed,
            clip_norm=settings.clip_norm,
            optimizer=settings.optimizer,
            warm_up=settings.warm_up,
            ema_decay=settings.ema,
        )
        Trainer(net, batches, phases, recipe).run()
        return net

    def accuracy(self, net: ElasticMBConvNet, subnet: Architecture) -> float:
        """Calibrate on training images, the same ones for every subnet."""
        import torch

        calibration, test = self._seen(subnet.r)
        with torch.no_grad():
            net.eval()
            net.set_active(subnet)
            net.calibrate(*torch.from_numpy(calibration).split(EVALUATION_BATCH))
            logits = torch.cat([net(batch) for batch in torch.from_numpy(test).split(EVALUATION_BATCH)])
        return 100 * float((logits.numpy().argmax(axis=1) == self._test.listed.labels).mean())

    def _seen(self, resolution: int) -> tuple[Floats, Floats]:
        """Return calibration and test images at a resolution, which are prepared once."""
        if resolution not in self._prepared:
            self._prepared[resolution] = self._views(resolution)
        return self._prepared[resolution]

    def _views(self, resolution: int) -> tuple[Floats, Floats]:
        chosen = np.random.default_rng(0).permutation(len(self._train.listed))[:CALIBRATION_IMAGES]
        views = [
            self._train.training_view(int(index), resolution, np.random.default_rng([int(index), resolution]))
            for index in chosen
        ]
        test = [self._test.evaluation_view(index, resolution) for index in range(len(self._test.listed))]
        return np.stack(views), np.stack(test)


def textures_folder(given: Path | None, default: Path) -> Path:
    """Return the folder of the textures; without `given` they are made in `default` where they are not there yet."""
    if given is not None:
        return given
    if not default.exists():
        if importlib.util.find_spec("skimage") is None:
            raise UsageError(
                "the textures are cut from scikit-image's photographs, and scikit-image is not installed; run: "
                "pip install scikit-image, or give --data a folder with train and test"
            )
        made = default.with_name(f"{default.name}.part")
        subprocess.run([sys.executable, MAKE_TEXTURES, made], check=True)
        made.rename(default)
    return default


def compound_subnets(space: MBConvSpace, resolutions: Sequence[int]) -> list[Architecture]:
    """Return every compound subnet with the fixed kernel, at every one of the resolutions."""
    tied = dict(zip(space.depths, space.expands, strict=True))
    stage_of = [block.stage for block in space.block_list]
    return [
        Architecture(ks=(FIXED_KERNEL,) * len(stage_of), e=tuple(tied[depth[s]] for s in stage_of), d=depth, r=side)
        for side in resolutions
        for depth in itertools.product(space.depths, repeat=space.stage_count)
    ]


def own_subnets(space: MBConvSpace, resolutions: Sequence[int]) -> list[Architecture]:
    """Return subnets of progressive shrinking's space, with resolutions among those that are evaluated."""
    from fleetnas.supernet_export.evaluation.sampling import stratified_genomes

    drawn = space.decode(stratified_genomes(space, OWN_COUNT, np.random.default_rng(0)))
    return [
        subnet if subnet.r in resolutions else subnet.model_copy(update={"r": min(resolutions)}) for subnet in drawn
    ]


def open_images(name: str, data: Path | None) -> ImageSet:
    """Open a data set by its name; `data` is the folder of the textures."""
    if name == "digits":
        return Digits()
    assert data is not None
    return Textures(data)


def train(key: Key, data: Path | None) -> Run:
    """Train one supernet and evaluate its subnets; runs in a process of its own."""
    from fleetnas.supernet_export.training.published_schedules import published_schedule

    name, schedule, budget, seed = key
    images = open_images(name, data)
    space = images.space
    phases = published_schedule("progressive-shrinking" if schedule == "progressive" else "compound", space, budget)
    wall, cpu = time.perf_counter(), time.process_time()
    net = images.trained(phases, seed)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu

    def evaluate(subnets: list[Architecture]) -> list[tuple[int, float]]:
        macs = space.macs(space.encode(subnets))
        return [(int(count), images.accuracy(net, subnet)) for count, subnet in zip(macs, subnets, strict=True)]

    return Run(
        images=name,
        schedule=schedule,
        budget=budget,
        seed=seed,
        epochs=sum(phase.epochs for phase in phases),
        sample_steps=images.train_count * sum(phase.epochs * (1 + phase.random_subnets) for phase in phases),
        wall_s=wall,
        cpu_s=cpu,
        compound=evaluate(compound_subnets(space, images.evaluated)),
        own=evaluate(own_subnets(space, images.evaluated)) if schedule == "progressive" else [],
    )


def train_all(keys: Sequence[Key], data: Path | None) -> Iterator[Run]:
    """Yield runs as they end, two at a time; `data` is the folder of the textures."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(train, key, data) for key in keys]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def read_runs(path: Path | None) -> dict[Key, Run]:
    """Return the runs of a file; a last line that an interruption cut short is removed from it."""
    if path is None or not path.exists():
        return {}
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    try:
        runs = [Run(**json.loads(line)) for line in whole.splitlines()]
    except (TypeError, ValueError):
        raise UsageError(f"{path} holds other lines than this benchmark's runs; give --runs another file") from None
    return {run.key: run for run in runs}


def keep_run(path: Path | None, run: Run) -> None:
    """Append a run to the file, if there is one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(run)) + "\n")
