"""A process for what computes for long: its pages are answered meanwhile, and it ends with the dashboard."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import FleetnasError


class CurveProcess:
    """Runs one function at a time, each in a new process; further ones wait."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._waiting = ThreadPoolExecutor(1, "curve")
        self._lock = threading.Lock()
        self._closed = False
        self._process: multiprocessing.process.BaseProcess | None = None

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run `work`, a function of a module; its `FleetnasError` is raised by the future, other errors as one."""
        return self._waiting.submit(self._run, work, arguments)

    def close(self) -> None:
        """End the process, and forget what waits."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
        self._waiting.shutdown(wait=True, cancel_futures=True)

    def _run(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        here, there = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(there, work, arguments), daemon=True)
        with self._lock:
            if self._closed:
                raise FleetnasError("the dashboard ends")
            self._process = process
            process.start()
        there.close()
        try:
            error, value = here.recv()
        except EOFError:
            process.join()
            raise FleetnasError(
                f"the process that computes it ended with code {process.exitcode}; see the log, and free some memory"
            ) from None
        finally:
            here.close()
        process.join()
        if error is not None:
            raise FleetnasError(error)
        return value


def _work(answer: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Run in the new process; Ctrl-C ends the dashboard, which then ends this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    found: tuple[str | None, Any]
    try:
        found = None, work(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, its page shows it
        found = one_line(error), None
    answer.send(found)
