"""Evaluate subnets in worker processes of this machine; a worker that dies costs one subnet, which is done again.

Every worker is an executor of its own. In an executor of many processes the death of one ends all tasks (loky, and
`concurrent.futures`), or may leave the lock of a shared queue locked (pebble).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, TypeAlias

from fleetnas.supernet_export.evaluation.job import EvaluationJob, evaluate_in_worker
from fleetnas.supernet_export.evaluation.sampling import DrawnSubnet

#: A worker's figures of a subnet, or the reason why there are none.
Outcome: TypeAlias = "dict[str, Any] | str"
#: Workers that a subnet may kill before it is left alone.
MOST_KILLED = 2


def evaluate_locally(
    job: EvaluationJob, subnets: Sequence[DrawnSubnet], workers: int
) -> Generator[tuple[DrawnSubnet, Outcome], None, None]:
    """Yield every subnet with its outcome, as they become known. Closing the iterator ends the workers."""
    waiting, killed = deque(subnets), Counter[int]()
    idle = [_Worker() for _ in range(min(workers, len(subnets)))]
    running: dict[Future[Outcome], tuple[_Worker, DrawnSubnet]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                worker, subnet = idle.pop(), waiting.popleft()
                running[worker.submit(job, subnet)] = worker, subnet
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                worker, subnet = running.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    worker.end()
                    idle.append(_Worker())
                    killed[subnet.index] += 1
                    if killed[subnet.index] < MOST_KILLED:
                        waiting.appendleft(subnet)
                    else:
                        yield subnet, f"its worker process died {MOST_KILLED} times"
                else:
                    idle.append(worker)
                    yield subnet, outcome
    finally:
        for worker in (*idle, *(worker for worker, _ in running.values())):
            worker.end()


class _Worker:
    """One worker process, started with its first subnet."""

    def __init__(self) -> None:
        self._executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._pid: Future[int] | None = None

    def submit(self, job: EvaluationJob, subnet: DrawnSubnet) -> Future[Outcome]:
        # Ctrl-C reaches all processes of a terminal: workers inherit that they do not notice it, and are ended below.
        earlier = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            if self._pid is None:
                self._pid = self._executor.submit(_start)
            return self._executor.submit(evaluate_in_worker, job, subnet.architecture.model_dump_json())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, earlier)

    def end(self) -> None:
        """Kill the process, whatever it does; a process that is still starting is killed when it has started."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._pid is not None:
            self._pid.add_done_callback(_kill)


def _kill(started: Future[int]) -> None:
    with suppress(BrokenProcessPool, ProcessLookupError):
        if not started.cancelled():
            os.kill(started.result(), signal.SIGKILL)


def _start() -> int:
    """Let this process end with its parent, also where that is killed; return its id."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    return os.getpid()
