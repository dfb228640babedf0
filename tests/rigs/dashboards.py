"""Dashboards for tests: the pages by themselves, and the command as a process on a free port."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleetnas.coordinator.dashboard.figures import CurvePoint
from fleetnas.coordinator.dashboard.pages import Pages, Sources
from fleetnas.coordinator.dashboard.portfolio_jobs import PortfolioJobs
from fleetnas.coordinator.dashboard.rendering import Renderer
from fleetnas.coordinator.dashboard.run_list import RunList, RunsAtWork
from fleetnas.coordinator.dashboard.run_reader import PublishedRuns, RunReaders
from fleetnas.coordinator.store.store import MeasurementStore
from rigs import waiting

#: Python that runs the command line, as `fleetnas` does.
_PROGRAM = "from fleetnas.coordinator.cli import main; main()"
_LINK = re.compile(r"http://\S+")
CURVE = ([CurvePoint(1, 0.75, 3), CurvePoint(2, 0.8, 4), CurvePoint(3, 0.82, 4)], 4)


class WhenTold:
    """Runs what is submitted when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, work, arguments))
        return future

    def run(self) -> None:
        waiting_now, self.waiting = self.waiting, []
        for future, work, arguments in waiting_now:
            _finish(future, work, arguments)


def _finish(future: Future[Any], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        future.set_result(work(*arguments))
    except Exception as error:  # noqa: BLE001 - the future passes it to its owner
        future.set_exception(error)


@dataclass
class PageRig:
    """The pages of a store without a server."""

    store: MeasurementStore
    published: Any = None
    curve_of: Callable[[str], Any] = lambda run_id: CURVE
    background: WhenTold = field(default_factory=WhenTold)

    def __post_init__(self) -> None:
        published: PublishedRuns | None = self.published
        at_work: RunsAtWork | None = self.published
        self.sources = Sources(
            RunReaders(self.store, published),
            RunList(self.store, at_work),
            PortfolioJobs(self.background, self.curve_of),
        )
        self.renderer = Renderer(self.store.url)
        self.pages = Pages(self.sources, self.renderer)


@dataclass
class Answer:
    """One answer of a dashboard."""

    status: int
    headers: Mapping[str, str]
    body: str


@dataclass
class Dashboard:
    """A dashboard that runs as a process."""

    process: subprocess.Popen[str]
    link: str
    """As it was printed, with the token where there is one."""
    lines: list[str]

    @property
    def address(self) -> str:
        """Its address without a token."""
        return self.link.partition("?")[0]

    @property
    def port(self) -> int:
        return int(self.address.rstrip("/").rpartition(":")[2])

    def get(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Answer:
        """Ask for a page as a browser does."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=waiting.STALL_S)
        with contextlib.closing(connection):
            connection.request(method, path, headers=dict(headers or {}))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read().decode())


@contextlib.contextmanager
def dashboard(store: Path | str, *options: str) -> Iterator[Dashboard]:
    """Start `fleetnas dashboard` on a free port; it is ended with the block."""
    command = [sys.executable, "-c", _PROGRAM, "dashboard", "--store", str(store), "--port", "0", *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            lines = []
            while not lines or "Ctrl-C" not in lines[-1]:
                line = waiting.line(process)
                if not line:
                    raise AssertionError(f"the dashboard ended: {process.communicate()[1]}")
                lines.append(line.strip())
            found = _LINK.search(" ".join(lines))
            assert found is not None
            yield Dashboard(process, found[0], lines)
        finally:
            process.kill()
