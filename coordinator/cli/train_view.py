"""Show a training: a live line with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fleetnas.supernet_export.training.run_view import RunView

if TYPE_CHECKING:
    from fleetnas.supernet_export.training.run_settings import TrainSettings
    from fleetnas.supernet_export.training.trainer import Progress as Step
    from fleetnas.supernet_export.training.validation import Scores


@contextmanager
def shown_training(settings: TrainSettings) -> Iterator[RunView]:
    """Yield the view of a training on this terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    view = _Live(console)
    try:
        yield view
    finally:
        view.close()


class _Lines(RunView):
    def __init__(self) -> None:
        self._started = time.monotonic()

    def message(self, text: str, *, warning: bool = False) -> None:
        typer.echo(f"warning: {text}" if warning else text, err=warning)

    def epoch(self, progress: Step, scores: Sequence[Scores]) -> None:
        passed = time.monotonic() - self._started
        typer.echo(f"{_line(progress, scores)}, {passed:.0f} s")


class _Live(RunView):
    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=120,
        )
        self._tasks: dict[str, TaskID] = {}

    def images_checked(self, done: int, total: int) -> None:
        self._show("checking images", done, total)

    def downloaded(self, done: int, total: int) -> None:
        self._show("downloading", done, total)

    def message(self, text: str, *, warning: bool = False) -> None:
        style = "yellow" if warning else None
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def step(self, progress: Step) -> None:
        done = (progress.epoch - 1) * progress.steps + progress.step
        self._show("training", done, progress.epochs * progress.steps, _state(progress))

    def epoch(self, progress: Step, scores: Sequence[Scores]) -> None:
        self._console.print(_line(progress, scores), markup=False, highlight=False, soft_wrap=True)
        self._show("training", progress.epoch * progress.steps, progress.epochs * progress.steps, _state(progress))

    def close(self) -> None:
        """Clear the bars."""
        self._bars.stop()

    def _show(self, task: str, done: int, total: int, text: str | None = None) -> None:
        self._bars.start()
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total)
        if task != "training" and done == total:
            self._bars.remove_task(self._tasks.pop(task))
            return
        self._bars.update(self._tasks[task], completed=done, total=total, description=text or task)


def _state(progress: Step) -> str:
    return f"epoch {progress.epoch}/{progress.epochs} ({progress.phase}), loss {progress.loss:.3f}"


def _line(progress: Step, scores: Sequence[Scores]) -> str:
    found = ", ".join(f"{score.name} {100 * score.accuracy:.2f} %" for score in scores)
    return f"{_state(progress)}; top-1: {found}"
