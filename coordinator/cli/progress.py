"""Progress bars for images and downloads; nothing where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TransferSpeedColumn,
)


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
def download_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that takes the bytes done and the bytes in all."""
    with _progress(label, DownloadColumn(), TransferSpeedColumn()) as progress:
        yield progress


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
