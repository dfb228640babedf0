"""Run an evaluation of many subnets: draw them, leave out those that the file has, and add the others as they come."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from fleetnas.fleet_protocol.errors import FleetnasError
from fleetnas.fleet_protocol.messages import InterpreterName, Precision
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.evaluation.evaluation_file import (
    EvaluatedImages,
    EvaluatedLine,
    EvaluationFile,
    EvaluationHeader,
    line_of,
    supernet_digest,
)
from fleetnas.supernet_export.evaluation.image_source import CALIBRATION_LIMIT
from fleetnas.supernet_export.evaluation.images import ImageSource
from fleetnas.supernet_export.evaluation.job import EvaluationJob
from fleetnas.supernet_export.evaluation.local_workers import Outcome, evaluate_locally
from fleetnas.supernet_export.evaluation.sampling import DrawnSubnet, Sampling, draw_subnets

#: Subnets that may fail one after the other before the evaluation is given up.
_MOST_FAILED = 5


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate and how; folders of None stand for the built-in digits' own parts."""

    bundle: Path
    images: Path | None
    calibration_images: Path | None
    calibration_count: int = CALIBRATION_LIMIT  #: most images that calibrate a subnet
    subnets: int = 1000
    sampling: Sampling = "both"
    seed: int = 0
    shard: tuple[int, int] = (0, 1)
    runtime: InterpreterName = "onnxruntime"
    precision: Precision = "fp32"
    workers: int = 1
    scheduler: str | None = None  #: address of a Dask scheduler, in place of worker processes of this machine
    some_classes: bool = False  #: whether the folders may lack classes
    cache: Path | None = None  #: folder of prepared images; by default beside the file


@dataclass(frozen=True)
class EvaluationProgress:
    """Subnets that have a line, those of this shard in all, and the failed ones among them."""

    done: int
    total: int
    failed: int


def evaluate_subnets(
    request: EvaluationRequest,
    bundle: SupernetBundle,
    sources: tuple[ImageSource, ImageSource],
    output: Path,
    progress: Callable[[EvaluationProgress], None] = lambda found: None,
) -> list[EvaluatedLine]:
    """Evaluate the subnets that `output` lacks, add them to it, and return all its lines.

    `sources` are the images to calibrate and to evaluate on. `UsageError` where the file was begun with other inputs;
    `FleetnasError` where subnet after subnet fails.
    """
    job, header = _described(request, bundle, sources, output)
    number, shards = request.shard
    planned = draw_subnets(bundle.space, request.subnets, request.sampling, request.seed)[number::shards]
    with EvaluationFile(output, header) as file:
        remaining = [subnet for subnet in planned if subnet.index not in file.lines]
        known = [file.lines[subnet.index] for subnet in planned if subnet.index in file.lines]
        done, failed = len(known), sum(line.failed is not None for line in known)
        progress(EvaluationProgress(done, len(planned), failed))
        in_a_row = 0
        with closing(_outcomes(request, job, remaining)) as outcomes:
            for subnet, outcome in outcomes:
                file.add(line_of(subnet, outcome))
                in_a_row = in_a_row + 1 if isinstance(outcome, str) else 0
                failed += isinstance(outcome, str)
                done += 1
                progress(EvaluationProgress(done, len(planned), failed))
                if in_a_row == _MOST_FAILED:
                    raise FleetnasError(
                        f"{_MOST_FAILED} subnets one after the other failed, the last one because of: {outcome}; where "
                        "memory is short give fewer workers, remove the failed lines from the file, and run again"
                    )
        if job.cache is not None:
            _remove(job.cache)
        return [file.lines[index] for index in sorted(file.lines)]


def _described(
    request: EvaluationRequest, bundle: SupernetBundle, sources: tuple[ImageSource, ImageSource], output: Path
) -> tuple[EvaluationJob, EvaluationHeader]:
    calibration, evaluation = (EvaluatedImages(digest=source.digest(), count=len(source)) for source in sources)
    weights = supernet_digest(bundle)
    folder = (request.cache or output.with_name(f"{output.name}.images")).absolute()
    # A folder that others share, and one that a killed run left behind, may hold images of something else.
    of = (str(output.absolute()), weights, evaluation.digest, calibration.digest, str(request.calibration_count))
    key = hashlib.sha256("\n".join(of).encode()).hexdigest()[:16]
    job = EvaluationJob(
        bundle=request.bundle.absolute(),
        supernet_digest=weights,
        images=request.images and request.images.absolute(),
        calibration_images=request.calibration_images and request.calibration_images.absolute(),
        images_digest=evaluation.digest,
        calibration_digest=calibration.digest,
        calibration_count=request.calibration_count,
        runtime=request.runtime,
        precision=request.precision,
        some_classes=request.some_classes,
        cache=None if request.scheduler else folder / key,
        verify=request.scheduler is not None,
    )
    header = EvaluationHeader(
        bundle_sha256=bundle.sha256,
        supernet_digest=weights,
        space=bundle.space.name,
        options=json.loads(json.dumps(dict(bundle.space.options))),  # tuples become lists, as they are read again
        images=evaluation,
        calibration_images=calibration,
        calibration_count=request.calibration_count,
        runtime=request.runtime,
        precision=request.precision,
        subnets=request.subnets,
        sampling=request.sampling,
        seed=request.seed,
        shard=request.shard,
    )
    return job, header


def _outcomes(
    request: EvaluationRequest, job: EvaluationJob, subnets: list[DrawnSubnet]
) -> Generator[tuple[DrawnSubnet, Outcome], None, None]:
    if not subnets:
        return
    if request.scheduler is None:
        yield from evaluate_locally(job, subnets, request.workers)
        return
    from fleetnas.supernet_export.evaluation.cluster_workers import evaluate_on_cluster

    yield from evaluate_on_cluster(job, subnets, request.scheduler)


def _remove(cache: Path) -> None:
    """Remove prepared images, and the folder around them unless it holds others."""
    shutil.rmtree(cache, ignore_errors=True)
    with suppress(OSError):
        cache.parent.rmdir()
