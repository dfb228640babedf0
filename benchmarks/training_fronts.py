"""Fronts of trained supernets for `training.py`: how far apart they are, and the picture of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from training_runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GRID_POINTS = 50
GAP_BAR = -0.5
COLOURS = {"progressive": "tab:blue", "compound": "tab:orange"}
NAMES = {"progressive": "progressive shrinking (OFA)", "compound": "compound (CompOFA)"}

Floats = NDArray[np.float64]
Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Comparison:
    """Both schedules on one data set at one budget, the runs of each by seed."""

    images: str
    budget: int
    compound: tuple[Run, ...]
    progressive: tuple[Run, ...]

    @property
    def pairs(self) -> list[tuple[Run, Run]]:
        """Compound and progressive run of each seed."""
        return list(zip(self.compound, self.progressive, strict=True))

    @property
    def gaps(self) -> list[float]:
        """Mean difference of the fronts of each seed, compound less progressive, in percentage points."""
        return [gap(c.compound, p.compound) for c, p in self.pairs]

    def ratio(self, name: str) -> float:
        """Return the median over the seeds of compound's over progressive's value of a field of `Run`."""
        ratios: list[float] = [getattr(c, name) / getattr(p, name) for c, p in self.pairs]
        return statistics.median(ratios)

    def runs(self, schedule: str) -> tuple[Run, ...]:
        """Return the runs of a schedule."""
        return self.compound if schedule == "compound" else self.progressive


def front(points: Points) -> list[tuple[int, float]]:
    """Return the points that no other beats in both MACs and accuracy, by MACs."""
    kept: list[tuple[int, float]] = []
    for macs, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((macs, accuracy))
    return kept


def at(grid: Floats, points: Points) -> Floats:
    """Return the best accuracy in percent within each number of MACs of the grid."""
    macs, accuracy = np.array(front(points)).T
    best: Floats = accuracy[np.searchsorted(macs, grid, side="right") - 1]
    return best


def common_grid(*fronts: Points) -> Floats:
    """Return MACs, evenly spaced in their logarithm, from where all have a subnet to the largest subnet of all."""
    low = max(min(macs for macs, _ in points) for points in fronts)
    high = max(macs for points in fronts for macs, _ in points)
    grid: Floats = np.ceil(np.geomspace(low, high, GRID_POINTS))
    return grid


def gap(ours: Points, others: Points) -> float:
    """Return the mean over the grid of ours less the others, in percentage points."""
    grid = common_grid(ours, others)
    return float((at(grid, ours) - at(grid, others)).mean())


def table(runs: Sequence[Run]) -> str:
    """Return budgets and fronts of one data set in Markdown; the last columns are best accuracies within MACs."""
    grid = common_grid(*(run.compound for run in runs))
    limits = grid[[0, len(grid) // 4, len(grid) // 2, 3 * len(grid) // 4, -1]]
    columns = ["budget", "schedule", "seed", "epochs", "sample-steps", "CPU s", "wall s"]
    columns += [f"{limit / 1e6:.2g} M" for limit in limits]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for run in runs:
        best = at(limits, run.compound)
        cells: list[Any] = [run.budget, run.schedule, run.seed, run.epochs, f"{run.sample_steps:,}"]
        cells += [f"{run.cpu_s:.0f}", f"{run.wall_s:.0f}", *(f"{accuracy:.1f}" for accuracy in best)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def draw(data_sets: Sequence[Sequence[Comparison]], path: Path) -> None:
    """Draw a row for each data set: fronts at its longest budget, then accuracy and difference over the budgets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(
        len(data_sets), 3, figsize=(14, 4.3 * len(data_sets)), width_ratios=(1.7, 1.2, 1), squeeze=False
    )
    for (fronts, course, differences), comparisons in zip(rows, data_sets, strict=True):
        _draw_fronts(fronts, comparisons[-1])
        _draw_course(course, comparisons)
        _draw_gaps(differences, comparisons)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_fronts(panel: Axes, comparison: Comparison) -> None:
    every = [run for schedule in COLOURS for run in comparison.runs(schedule)]
    grid = common_grid(*(run.compound for run in every))
    for schedule, colour in COLOURS.items():
        chosen = comparison.runs(schedule)
        fronts = np.array([at(grid, run.compound) for run in chosen])
        panel.fill_between(grid / 1e6, fronts.min(0), fronts.max(0), step="post", color=colour, alpha=0.2, lw=0)
        panel.step(grid / 1e6, np.median(fronts, 0), where="post", color=colour, lw=2, label=NAMES[schedule])
        macs, accuracy = np.array([point for run in chosen for point in run.compound]).T
        panel.scatter(macs / 1e6, accuracy, color=colour, s=6, alpha=0.35, lw=0)
    lowest = min(at(grid, run.compound).min() for run in every)
    panel.set_ylim(bottom=lowest - 2, top=100 + 0.02 * (100 - lowest))
    _logarithmic(panel, grid / 1e6, (0.5, 1, 2, 5, 10, 20, 50))
    panel.set_xlabel("million MACs")
    panel.set_ylabel("accuracy on test images, %")
    ratio = comparison.ratio("sample_steps")
    panel.set_title(
        f"{comparison.images}: fronts at the longest budget, compound on {100 * ratio:.0f} % of the sample-steps\n"
        "lines and bands: median and range of the seeds; dots: subnets",
        fontsize=10,
    )
    panel.legend(loc="lower right", fontsize=9)
    panel.grid(alpha=0.3)


def _draw_course(panel: Axes, comparisons: Sequence[Comparison]) -> None:
    """Draw the mean accuracy of fronts over sample-steps, by which schedules compare at equal budgets too."""
    every = [run for comparison in comparisons for schedule in COLOURS for run in comparison.runs(schedule)]
    grid = common_grid(*(run.compound for run in every))
    for schedule, colour in COLOURS.items():
        by_budget = [comparison.runs(schedule) for comparison in comparisons]
        steps = [runs[0].sample_steps / 1000 for runs in by_budget]
        means = [[float(at(grid, run.compound).mean()) for run in runs] for runs in by_budget]
        panel.plot(steps, [statistics.median(found) for found in means], "o-", color=colour, lw=2)
        for step, found in zip(steps, means, strict=True):
            panel.plot([step] * len(found), found, "_", color=colour, ms=9)
    _logarithmic(
        panel,
        np.array([run.sample_steps / 1000 for run in every]),
        (10, 20, 50, 100, 200, 500, 1000),
    )
    panel.set_xlabel("training budget, thousand sample-steps")
    panel.set_ylabel("mean accuracy along the front, %")
    panel.set_title("accuracy over budget; dashes: seeds", fontsize=10)
    panel.grid(alpha=0.3)


def _draw_gaps(panel: Axes, comparisons: Sequence[Comparison]) -> None:
    budgets = [comparison.budget for comparison in comparisons]
    gaps = [comparison.gaps for comparison in comparisons]
    for budget, found in zip(budgets, gaps, strict=True):
        panel.plot([budget] * len(found), found, "_", color="black", ms=9)
    panel.plot(budgets, [statistics.median(found) for found in gaps], "o-", color="black", lw=2)
    panel.axhline(0, color="gray", lw=1)
    panel.axhline(GAP_BAR, color="tab:red", ls="--", lw=1.2, label=f"bar at the longest: {GAP_BAR}")
    _logarithmic(panel, np.array(budgets), budgets)
    panel.set_xlabel("epochs of a full phase")
    panel.set_ylabel("compound less progressive, points")
    panel.set_title("difference of the fronts; dashes: seeds", fontsize=10)
    panel.legend(loc="best", fontsize=9)
    panel.grid(alpha=0.3)


def _logarithmic(panel: Axes, shown: NDArray[Any], ticks: Sequence[float]) -> None:
    """Scale the horizontal axis logarithmically around the values shown, with those of the ticks that lie there."""
    low, high = float(shown.min()) / 1.12, float(shown.max()) * 1.12
    panel.set_xscale("log")
    panel.set_xlim(low, high)
    inside = [tick for tick in ticks if low <= tick <= high]
    panel.set_xticks(inside, [f"{tick:g}" for tick in inside])
    panel.set_xticks([], minor=True)
