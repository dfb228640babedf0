"""What a model file answered to labelled images, and all that follows from it: recall per class, F1, confusions."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import UsageError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

#: Bytes of one class number in `ClassAnswers.packed`, little-endian.
_NUMBER = np.dtype("<u4")


@dataclass(frozen=True)
class ClassAnswers:
    """The class of every image, and the class that one model file gave it, in the order of the images."""

    classes: int
    """Number of classes."""
    images: int
    """Number of images, at least one."""
    packed: bytes
    """All labels, then all answers, as little-endian 32-bit numbers, deflated (zlib)."""

    @classmethod
    def of(cls, classes: int, labels: Sequence[int], answers: Sequence[int]) -> ClassAnswers:
        """Pack labels (n,) and answers (n,), both in [0, classes).

        `UsageError` where there are none, their numbers differ, or one of them is no class.
        """
        both = (
            np.array([labels, answers], dtype=np.int64) if len(labels) == len(answers) else np.zeros((2, 0), np.int64)
        )
        if not both.size or both.min() < 0 or both.max() >= classes:
            raise UsageError(
                f"accuracy cannot be measured: {len(labels):,} labels and {len(answers):,} answers of {classes:,} "
                "classes; give at least one image, and as many answers as labels"
            )
        return cls(classes, both.shape[1], zlib.compress(both.astype(_NUMBER).tobytes(), 9))

    @cached_property
    def _both(self) -> Counts:
        data = zlib.decompressobj().decompress(self.packed, 2 * self.images * _NUMBER.itemsize)
        return np.frombuffer(data, _NUMBER).reshape(2, self.images).astype(np.int64)

    def is_whole(self) -> bool:
        """Whether `packed` holds what `classes` and `images` say; False where a disk or a person damaged it."""
        try:
            return bool(self._both.max() < self.classes)
        except (zlib.error, ValueError):
            return False

    @property
    def labels(self) -> Counts:
        """Class of each image, (n,)."""
        labels: Counts = self._both[0]
        return labels

    @property
    def answers(self) -> Counts:
        """Class that the file gave to each image, (n,)."""
        answers: Counts = self._both[1]
        return answers

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each answer is right, (n,)."""
        correct: NDArray[np.bool_] = self.labels == self.answers
        return correct

    @cached_property
    def accuracy(self) -> float:
        """Top-1 accuracy, a fraction."""
        return int(np.count_nonzero(self.correct)) / self.images

    @cached_property
    def confusion(self) -> Counts:
        """Images by class (row) and by answer (column), (classes, classes)."""
        places = self.labels * self.classes + self.answers
        return np.bincount(places, minlength=self.classes**2).reshape(self.classes, self.classes).astype(np.int64)

    @property
    def support(self) -> Counts:
        """Number of images of each class, (classes,)."""
        return np.bincount(self.labels, minlength=self.classes).astype(np.int64)

    @property
    def recall(self) -> Floats:
        """Share of the images of each class that are answered right, (classes,); NaN for a class without images."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self._right / self.support, dtype=np.float64)

    @property
    def _right(self) -> Counts:
        return np.bincount(self.labels[self.correct], minlength=self.classes).astype(np.int64)

    @property
    def macro_f1(self) -> float:
        """Mean over classes of the harmonic mean of precision and recall: scikit-learn's `f1_score(average="macro")`.

        Classes without images and without answers do not count; one with either counts, with F1 0 at worst.
        """
        given = np.bincount(self.answers, minlength=self.classes)
        both = self.support + given
        known = both > 0
        return float(np.mean(2.0 * self._right[known] / both[known]))

    def most_confused(self, most: int) -> list[tuple[int, int, int]]:
        """Return up to `most` wrong pairs (class, answer, images), the most frequent first."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        flat = wrong.ravel()
        places = np.argsort(-flat, kind="stable")[:most]
        return [
            (int(place) // self.classes, int(place) % self.classes, int(flat[place])) for place in places if flat[place]
        ]


def better_by_chance(one: ClassAnswers, other: ClassAnswers) -> float | None:
    """Return the probability that `one` is at least so much better than `other` by chance alone.

    None where they are not comparable: both must have seen the same images in the same order. This is McNemar's test,
    exact and one-sided: of the images that only one of two equally good files answers right, each has an even chance
    to be either's. Source: McNemar 1947, Psychometrika 12.
    """
    if one.images != other.images or not np.array_equal(one.labels, other.labels):
        return None
    only_one = int(np.count_nonzero(one.correct & ~other.correct))
    only_other = int(np.count_nonzero(other.correct & ~one.correct))
    return _binomial_tail(only_one + only_other, only_one)


def _binomial_tail(trials: int, least: int) -> float:
    """Return the probability of at least `least` heads in `trials` tosses of a fair coin."""
    log_half = math.log(0.5)
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + trials * log_half
        for k in range(least, trials + 1)
    ]
    return min(1.0, math.fsum(math.exp(log) for log in logs))
