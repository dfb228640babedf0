"""Show a fine-tuning: bars with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fleetnas.coordinator.view.wording import count_of
from fleetnas.supernet_export.training.fine_tuning import FineTuningEvents
from fleetnas.supernet_export.training.fine_tuning_step import FineTuningStep

#: Seconds between two lines within an epoch.
_LINE_EVERY_S = 30.0


@contextmanager
def fine_tuning_view(quiet: bool) -> Iterator[FineTuningEvents]:
    """Yield events that are shown; lines go to standard output, unless `quiet`, bars to standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield FineTuningLines(quiet=quiet)
        return
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TextColumn("{task.fields[note]}"), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield _Bars(bars, quiet=quiet)


class FineTuningLines(FineTuningEvents):
    """Writes a line per task, score and epoch; within a long epoch one every half minute."""

    def __init__(self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet, self._clock = quiet, clock
        self._begun_s = self._last_line_s = clock()
        self._done_before = 0

    def begins(self, task: str, images: int) -> None:
        """Write a line where there are images to wait for."""
        if images:
            self.line(f"{task}: {images:,} images")

    def scored(self, network: str, accuracy: float) -> None:
        """Write the accuracy."""
        self.line(f"{network}: top-1 {100 * accuracy:.2f} % on the validation images")

    def trains(self, epochs: int, steps: int, done: int) -> None:
        """Write how long the training is."""
        self._begun_s = self._last_line_s = self._clock()
        self._done_before = done
        resumed = f", resumed after {done:,}" if done else ""
        self.line(f"training: {count_of(epochs, 'epoch')} of {count_of(steps, 'step')}{resumed}")

    def trained(self, step: FineTuningStep) -> None:
        """Write a line at the end of an epoch, and where the last one is old."""
        now = self._clock()
        if step.ends_epoch or now - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = now
            place = "" if step.ends_epoch else f", step {step.step}/{step.steps}"
            self.line(f"epoch {step.epoch}/{step.epochs}{place}: {figures(step)}, {self._left(step, now)}")

    def line(self, text: str) -> None:
        """Write a line to standard output."""
        if not self._quiet:
            typer.echo(text)

    def _left(self, step: FineTuningStep, now: float) -> str:
        per_step_s = (now - self._begun_s) / max(1, step.done - self._done_before)
        return f"{duration(now - self._begun_s)} so far, {duration(per_step_s * (step.total - step.done))} left"


class _Bars(FineTuningLines):
    """Shows a bar for the current task, and the lines of scores and epochs above it."""

    def __init__(self, bars: Progress, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self._bars = bars
        self._task: TaskID | None = None

    def begins(self, task: str, images: int) -> None:
        self._replace(task, images)

    def progresses(self, images: int) -> None:
        if self._task is not None:
            self._bars.advance(self._task, images)

    def trains(self, epochs: int, steps: int, done: int) -> None:
        super().trains(epochs, steps, done)
        self._replace("training", epochs * steps, done)

    def trained(self, step: FineTuningStep) -> None:
        if self._task is not None:
            self._bars.update(self._task, advance=1, note=f"epoch {step.epoch}/{step.epochs}, loss {step.loss:.3f}")
        if step.ends_epoch:
            super().trained(step)

    def line(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def _replace(self, task: str, total: int, done: int = 0) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(task, total=total or None, completed=done, note="")


def figures(step: FineTuningStep) -> str:
    """Return the loss and the share of right answers of the epoch so far."""
    return f"loss {step.loss:.3f}, {100 * step.agreement:.1f} % of training views right"


def duration(seconds: float) -> str:
    """Return a time as minutes and seconds, or with hours."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
