"""Progress bars for images, downloads and subnets; where there is no terminal, lines for subnets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

#: Seconds between two lines of progress where there is no terminal.
_LINE_S = 30.0


@contextmanager
def image_progress() -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that takes the images checked and the images in all."""
    with _progress("checking images", MofNCompleteColumn()) as progress:
        yield progress


@contextmanager
def candidate_progress() -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that takes the candidates evaluated and the candidates in all."""
    with _progress("evaluating candidates", MofNCompleteColumn()) as progress:
        yield progress


@contextmanager
def setting_progress() -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that takes the device settings predicted and the device settings in all."""
    with _progress("predicting device settings", MofNCompleteColumn()) as progress:
        yield progress


@contextmanager
def download_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that takes the bytes done and the bytes in all."""
    with _progress(label, DownloadColumn(), TransferSpeedColumn()) as progress:
        yield progress


class SubnetProgress(Protocol):
    """How far an evaluation is."""

    @property
    def done(self) -> int:
        """Subnets that have a line."""

    @property
    def total(self) -> int:
        """Subnets in all."""

    @property
    def failed(self) -> int:
        """Failed ones among those done."""


@contextmanager
def subnet_progress() -> Iterator[Callable[[SubnetProgress], None]]:
    """Yield a callback that shows subnets done, those in all and the time left; plain lines without a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _SubnetLines(console).show
        return
    columns = (
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    bars = Progress(TextColumn("{task.description}"), BarColumn(), *columns, console=console, speed_estimate_period=600)
    task = bars.add_task("evaluating subnets", total=None)

    def show(found: SubnetProgress) -> None:
        failed = f", {found.failed} failed" if found.failed else ""
        bars.update(task, completed=found.done, total=found.total, description=f"evaluating subnets{failed}")

    with bars:
        yield show


class _SubnetLines:
    """Writes a line at the beginning, every `_LINE_S` seconds and at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begin: tuple[float, int] | None = None
        self._last_s = 0.0

    def show(self, found: SubnetProgress) -> None:
        now_s = time.monotonic()
        if self._begin is None:
            self._begin = now_s, found.done
        elif now_s < self._last_s + _LINE_S and found.done < found.total:
            return
        self._last_s = now_s
        begin_s, before = self._begin
        text = f"{found.done:,} of {found.total:,} subnets evaluated"
        if found.failed:
            text += f", {found.failed:,} of them failed"
        if before < found.done < found.total:
            left_s = (now_s - begin_s) / (found.done - before) * (found.total - found.done)
            text += f", about {max(1, round(left_s / 60))} min left"
        self._console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def _progress(label: str, *columns: ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    bars = Progress(TextColumn("{task.description}"), BarColumn(), *columns, console=console, transient=True)
    task = bars.add_task(label, total=None)

    def show(done: int, total: int) -> None:
        bars.start()  # at the first call: there may be nothing to wait for
        bars.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bars.stop()
