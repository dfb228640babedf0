"""Describe an evaluation so that any process can work on it, and evaluate one subnet of it in this process."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.fleet_protocol.messages import InterpreterName, Precision
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.evaluation.evaluation_file import supernet_digest
from fleetnas.supernet_export.evaluation.image_source import CALIBRATION_LIMIT
from fleetnas.supernet_export.evaluation.images import open_images
from fleetnas.supernet_export.evaluation.prepared_images import PreparedImages
from fleetnas.supernet_export.evaluation.subnets import evaluate_subnet
from fleetnas.supernet_export.slicing.subnet import slice_subnet


@dataclass(frozen=True)
class EvaluationJob:
    """All that a worker needs; paths are absolute. Folders of None stand for the built-in digits' own parts."""

    bundle: Path
    supernet_digest: str
    images: Path | None
    calibration_images: Path | None
    images_digest: str
    calibration_digest: str
    calibration_count: int = CALIBRATION_LIMIT
    runtime: InterpreterName = "onnxruntime"
    precision: Precision = "fp32"
    #: Whether the folders may lack classes.
    some_classes: bool = False
    #: Folder of prepared images; None: a worker's own, in memory if need be.
    cache: Path | None = None
    #: Whether a worker looks at the content of its files before it works: they may be others on another machine.
    verify: bool = False


class EvaluationWorker:
    """One process's open bundle and prepared images for a job."""

    def __init__(self, job: EvaluationJob, cache: Path | None) -> None:
        """Open everything; `UsageError` where a path is missing here or, if the job says so, has other content."""
        self._job = job
        try:
            self._bundle = SupernetBundle.open(job.bundle)
            some = job.some_classes
            evaluation = open_images(self._bundle, job.images, some_classes=some)
            calibration = open_images(self._bundle, job.calibration_images, "calibration", some_classes=some)
            found = (supernet_digest(self._bundle), evaluation.digest(), calibration.digest()) if job.verify else None
        except (FleetnasError, OSError) as error:
            raise UsageError(f"a worker cannot open what this machine can: {error}") from None
        if found is not None:
            wanted = (job.supernet_digest, job.images_digest, job.calibration_digest)
            for path, here, there in zip((job.bundle, job.images, job.calibration_images), found, wanted, strict=True):
                _same(path, here, there)
        self._images = PreparedImages(calibration, evaluation, cache, calibration_count=job.calibration_count)

    def evaluate(self, architecture: Architecture) -> dict[str, Any]:
        """Return the figures of one subnet, as a line of the evaluation's file holds them."""
        began_s = time.perf_counter()
        scores = evaluate_subnet(
            lambda chosen, statistics: slice_subnet(self._bundle, chosen, statistics),
            architecture,
            self._images,
            runtime=self._job.runtime,
            precision=self._job.precision,
        )
        return {
            "accuracy": scores.accuracy,
            "cross_entropy": scores.cross_entropy,
            "images": scores.images,
            "accuracy_even": scores.accuracy_even,
            "accuracy_odd": scores.accuracy_odd,
            "seconds": round(time.perf_counter() - began_s, 3),
        }


def _same(path: Path | None, found: str, wanted: str) -> None:
    if found != wanted:
        raise UsageError(f"{path} has other content on a worker than here; copy it there, or share one folder")


_workers: dict[EvaluationJob, EvaluationWorker] = {}
_lock = threading.Lock()


def worker_of(job: EvaluationJob, cache: Path | None = None) -> EvaluationWorker:
    """Return this process's worker for `job`, opened once; that of an earlier job is dropped."""
    with _lock:
        if job not in _workers:
            _workers.clear()
            _workers[job] = EvaluationWorker(job, job.cache or cache)
        return _workers[job]


def evaluate_in_worker(job: EvaluationJob, architecture: str, cache: Path | None = None) -> dict[str, Any] | str:
    """Evaluate one subnet, given as JSON, in a worker process; return its figures, or why there are none.

    `FleetnasError` for what would happen to every subnet.
    """
    worker = worker_of(job, cache)
    try:
        return worker.evaluate(Architecture.model_validate_json(architecture))
    except FleetnasError:
        raise
    except Exception as error:  # noqa: BLE001 - one subnet's fault, of a runtime or for want of memory, is its own
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
