"""Evaluate subnets on the workers of a Dask cluster, which see the bundle and the images under the same paths.

Dask sends tasks as pickles: scheduler and workers must be trusted, as on any such cluster (its own TLS settings apply).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import CancelledError
from importlib import metadata
from pathlib import Path
from typing import Any

from fleetnas.fleet_protocol.errors import FleetnasError, MissingDependencyError, UsageError
from fleetnas.fleet_protocol.installing import install_extra
from fleetnas.supernet_export.evaluation.job import EvaluationJob, evaluate_in_worker, worker_of
from fleetnas.supernet_export.evaluation.local_workers import Outcome
from fleetnas.supernet_export.evaluation.sampling import DrawnSubnet

#: Seconds to connect to the scheduler, and until it has a worker.
CONNECT_S, WORKERS_S = 10, 60
#: Packages whose versions decide what a worker understands and computes.
_PACKAGES = ("fleetnas", "distributed", "cloudpickle", "numpy", "onnxruntime", "ai-edge-litert")


def evaluate_on_cluster(
    job: EvaluationJob, subnets: Sequence[DrawnSubnet], scheduler: str
) -> Generator[tuple[DrawnSubnet, Outcome], None, None]:
    """Yield every subnet with its outcome, as they become known; a subnet whose worker dies is done by another.

    Dask gives a subnet up after its setting `distributed.scheduler.allowed-failures`, 3, deaths of a worker.

    Raises:
        UsageError: no scheduler or no worker answers, or a worker has other files or versions than this machine.
        FleetnasError: the scheduler ended.
        MissingDependencyError: `distributed` is not installed here.
    """
    client = _connected(scheduler)
    try:
        with contextlib.closing(client):
            _check_workers(client, job, scheduler)
            yield from _evaluated(client, job, subnets)
    except (CancelledError, OSError):  # by what the client did when it noticed
        raise FleetnasError(
            f"the scheduler {scheduler} has ended or forgotten its tasks; start it and run the command again, "
            "which continues"
        ) from None


def _connected(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise MissingDependencyError(
            f"--scheduler needs Dask distributed, which is not installed; run: {install_extra('cluster')}"
        ) from None
    # What it logs with a trace, such as a lost scheduler, is told in one line where it matters.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        return Client(scheduler, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError, asyncio.TimeoutError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"no Dask scheduler answers at {scheduler} ({reason}); start one with `dask scheduler`, or check the "
            "address, such as tcp://192.168.1.10:8786"
        ) from None


def _check_workers(client: Any, job: EvaluationJob, scheduler: str) -> None:
    """Compare the versions of all workers with ours; `UsageError` names the first that differs."""
    try:
        client.wait_for_workers(1, timeout=WORKERS_S)
    except (TimeoutError, asyncio.TimeoutError):
        raise UsageError(
            f"the scheduler {scheduler} has no workers; start some with `dask worker {scheduler} --nthreads 1`"
        ) from None
    here = worker_versions()
    for address, found in client.run(worker_versions, on_error="return").items():
        if isinstance(found, OSError):  # that one has just ended
            continue
        if not isinstance(found, Mapping):
            raise UsageError(
                f"the Dask worker {address} cannot run this fleetnas ({_short(found)}); install the same "
                "wheel of fleetnas there (`make wheel`), with the extras coordinator and cluster"
            )
        different = [f"{name} {found[name]} there, {here[name]} here" for name in here if found[name] != here[name]]
        if different:
            raise UsageError(
                f"the Dask worker {address} has other versions: {'; '.join(different)}; install the same ones on all "
                "machines"
            )
    for address, found in client.run(_open_on_worker, job, on_error="return").items():
        if isinstance(found, BaseException) and not isinstance(found, OSError):  # that one has just ended
            raise UsageError(f"the Dask worker {address}: {_short(found)}")


def _evaluated(
    client: Any, job: EvaluationJob, subnets: Sequence[DrawnSubnet]
) -> Generator[tuple[DrawnSubnet, Outcome], None, None]:
    from distributed import KilledWorker, as_completed

    rest = iter(subnets)
    running: dict[Any, DrawnSubnet] = {}

    def submit() -> list[Any]:
        """Keep one subnet per thread at work and one waiting: a death makes only these suspects."""
        started = []
        for subnet in rest:
            text = subnet.architecture.model_dump_json()
            future = client.submit(_evaluate_on_worker, job, text, key=f"{_name(job)}-{subnet.index}", pure=False)
            running[future] = subnet
            started.append(future)
            if len(running) > sum(client.nthreads().values()):
                break
        return started

    completed = as_completed(submit(), loop=client.loop)
    for future in completed:
        subnet = running.pop(future)
        try:
            outcome: Outcome = future.result()
        except KilledWorker:
            outcome = "its worker process died several times"
        yield subnet, outcome
        completed.update(submit())


def worker_versions() -> dict[str, str]:
    """Return the versions that a worker's answers depend on, by package; `-` where one is not installed."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    return found | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


async def _open_on_worker(job: EvaluationJob, dask_worker: Any) -> bool:
    """Open a job on a worker, which Dask passes to a parameter of this name, beside its event loop."""
    await asyncio.to_thread(worker_of, job, _worker_cache(job, dask_worker))
    return True


def _evaluate_on_worker(job: EvaluationJob, architecture: str) -> dict[str, Any] | str:
    from distributed import get_worker

    return evaluate_in_worker(job, architecture, _worker_cache(job, get_worker()))


def _worker_cache(job: EvaluationJob, worker: Any) -> Path:
    """Return the folder of prepared images in a worker's own, which ends with it."""
    return Path(worker.local_directory) / f"images-{_name(job)}"


def _name(job: EvaluationJob) -> str:
    digests = (job.supernet_digest, job.images_digest, job.calibration_digest)
    return "-".join(["fleetnas", *(digest[:12] for digest in digests), str(job.calibration_count)])


def _short(error: object) -> str:
    return " ".join(str(error).split())[:400]
