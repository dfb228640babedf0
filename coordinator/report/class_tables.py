"""Class reports as tables that stay readable from 2 to 1000 classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fleetnas.coordinator.report.results import ClassReport, Results

#: Classes up to which the whole confusion matrix is shown; with more, the worst classes and the most confused pairs.
MOST_IN_MATRIX = 20
#: Rows of each of these two tables.
MOST_ROWS = 12
#: Model files whose classes are shown on one page.
MAX_CLASS_TABLES = 50


@dataclass(frozen=True)
class MatrixCell:
    """Images of one class with one answer."""

    images: int
    share: float
    """Of the images of the class."""
    right: bool


@dataclass(frozen=True)
class ClassRow:
    """One class: recall, images, the wrong answer that its images get most often, and a row of the matrix."""

    name: str
    recall: float | None
    images: int
    taken_for: str
    """Empty where no image is answered wrong."""
    taken_for_images: int
    cells: tuple[MatrixCell, ...] = ()
    """One per class, in the order of the rows; none where there are too many classes for a matrix."""


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that are taken for another."""

    name: str
    answer: str
    images: int
    share: float
    """Of the images of the class."""


@dataclass(frozen=True)
class ClassTable:
    """Everything that the page shows about the answers of one model file."""

    sha256: str
    winner_of: str
    """Device settings and targets."""
    report: ClassReport
    rows: tuple[ClassRow, ...]
    """All classes in their order, or with many classes the worst ones, worst first."""
    pairs: tuple[ConfusedPair, ...]
    """Most frequent first."""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.report.recall)

    @property
    def classes_with_images(self) -> int:
        """Number of classes whose recall is known."""
        return sum(recall is not None for recall in self.report.recall.values())

    @property
    def has_matrix(self) -> bool:
        """Whether the rows are all classes, with their cells."""
        return self.classes <= MOST_IN_MATRIX


def class_tables(results: Results) -> list[ClassTable]:
    """Return the tables of the winners' files, in the order in which the results name them first."""
    winner_of: dict[str, list[str]] = {sha256: [] for sha256 in _files(results)}
    for device in results.fleet:
        for target in device.targets:
            if target.sha256 in winner_of:
                place = f"subnet {target.subnet}" if target.subnet else f"at {target.label}"
                winner_of[target.sha256].append(f"{device.label} {place}")
    return [
        class_table(sha256, results.class_reports[sha256], ", ".join(_shortened(named)))
        for sha256, named in list(winner_of.items())[:MAX_CLASS_TABLES]
    ]


def class_table(sha256: str, report: ClassReport, winner_of: str = "") -> ClassTable:
    """Return the table of one file."""
    rows = [_row(report, name, with_cells=len(report.recall) <= MOST_IN_MATRIX) for name in report.recall]
    if len(rows) > MOST_IN_MATRIX:
        known = [row for row in rows if row.recall is not None]
        rows = sorted(known, key=lambda row: (row.recall or 0.0, -row.images))[:MOST_ROWS]
    pairs = sorted(_pairs(report), key=lambda pair: (-pair.images, -pair.share))[:MOST_ROWS]
    return ClassTable(sha256, winner_of, report, tuple(rows), tuple(pairs))


def worst_class(report: ClassReport) -> tuple[str, float] | None:
    """Return the class with the least recall and that recall; None where no class has images."""
    known = [(recall, name) for name, recall in report.recall.items() if recall is not None]
    return None if not known else (min(known)[1], min(known)[0])


def _files(results: Results) -> Iterator[str]:
    for device in results.fleet:
        for target in device.targets:
            if target.sha256 in results.class_reports:
                assert target.sha256 is not None
                yield target.sha256


def _shortened(named: list[str], most: int = 4) -> list[str]:
    return named if len(named) <= most else [*named[:most], f"and {len(named) - most} more"]


def _row(report: ClassReport, name: str, *, with_cells: bool) -> ClassRow:
    answers = report.confusion.get(name, {})
    images = sum(answers.values())
    wrong = {answer: count for answer, count in answers.items() if answer != name}
    most = max(wrong, key=lambda answer: wrong[answer], default="")
    cells = [
        MatrixCell(answers.get(answer, 0), answers.get(answer, 0) / max(images, 1), answer == name)
        for answer in (report.recall if with_cells else ())
    ]
    return ClassRow(name, report.recall[name], images, most, wrong.get(most, 0), tuple(cells))


def _pairs(report: ClassReport) -> Iterator[ConfusedPair]:
    for name, answers in report.confusion.items():
        images = sum(answers.values())
        for answer, count in answers.items():
            if answer != name:
                yield ConfusedPair(name, answer, count, count / images)
