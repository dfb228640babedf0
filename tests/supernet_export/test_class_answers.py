"""What follows from the answers of a model file, against scikit-learn's definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import metrics

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.evaluation.answering import KeptImages, answer
from fleetnas.supernet_export.evaluation.answers import ClassAnswers, better_by_chance
from fleetnas.supernet_export.evaluation.images import DigitsImages
from fleetnas.supernet_export.export import export_digits
from fleetnas.supernet_export.model_file import build_model


def random_answers(classes: int, images: int, seed: int = 0, right: float = 0.7) -> ClassAnswers:
    """Some classes have no images, some are never answered."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, max(2, classes - 1), images)
    answers = np.where(rng.random(images) < right, labels, rng.integers(0, classes, images))
    return ClassAnswers.of(classes, labels.tolist(), answers.tolist())


@pytest.mark.parametrize(("classes", "images"), [(2, 5), (3, 400), (10, 90), (1000, 3000)])
def test_confusions_recall_and_f1_are_those_of_scikit_learn(classes: int, images: int) -> None:
    found = random_answers(classes, images)
    labels, answers = found.labels, found.answers
    expected = metrics.confusion_matrix(labels, answers, labels=range(classes))
    assert np.array_equal(found.confusion, expected)
    assert found.accuracy == metrics.accuracy_score(labels, answers)
    assert found.macro_f1 == pytest.approx(metrics.f1_score(labels, answers, average="macro"))
    recall = metrics.recall_score(labels, answers, labels=range(classes), average=None, zero_division=np.nan)
    assert np.allclose(found.recall, recall, equal_nan=True)
    for label, given, count in found.most_confused(5):
        assert label != given
        assert expected[label, given] == count
    wrong = expected - np.diag(np.diag(expected))
    assert [count for *_, count in found.most_confused(5)] == sorted(wrong[wrong > 0].tolist(), reverse=True)[:5]


def test_answers_are_kept_small_and_equal() -> None:
    found = random_answers(1000, 50_000)
    again = ClassAnswers(found.classes, found.images, found.packed)
    assert again == found
    assert np.array_equal(again.answers, found.answers)
    assert len(found.packed) < 4 * 50_000
    assert found.is_whole()


@pytest.mark.parametrize(
    "damaged",
    [
        ClassAnswers(4, 10, b"no deflated data"),
        ClassAnswers(4, 10, random_answers(4, 9).packed),
        ClassAnswers(2, 10, random_answers(9, 10).packed),
    ],
)
def test_damaged_answers_are_told(damaged: ClassAnswers) -> None:
    assert not damaged.is_whole()


@pytest.mark.parametrize(("labels", "answers"), [([], []), ([0, 1], [0]), ([0], [4]), ([-1], [0])])
def test_what_are_no_answers_is_refused(labels: list[int], answers: list[int]) -> None:
    with pytest.raises(UsageError, match="accuracy cannot be measured"):
        ClassAnswers.of(4, labels, answers)


def test_a_difference_is_told_from_chance_by_the_images_that_only_one_answers_right() -> None:
    labels = [0] * 100
    one = ClassAnswers.of(2, labels, [0] * 80 + [1] * 20)
    other = ClassAnswers.of(2, labels, [1] * 15 + [0] * 70 + [1] * 15)
    # 15 images are right by one alone, 5 by the other alone: at least 15 heads in 20 tosses.
    assert better_by_chance(one, other) == pytest.approx(21_700 / 2**20)
    assert better_by_chance(one, one) == 1.0
    shuffled = ClassAnswers.of(2, [1, *labels[1:]], [0] * 100)
    assert better_by_chance(one, shuffled) is None
    many = [0] * 50_000
    slightly = ClassAnswers.of(2, many, [0] * 25_300 + [1] * 24_700)
    opposite = ClassAnswers.of(2, many, [1] * 25_300 + [0] * 24_700)
    chance = better_by_chance(slightly, opposite)
    assert chance is not None
    assert 0.002 < chance < 0.006


def test_images_of_one_resolution_are_decoded_once(tmp_path: Path) -> None:
    class Counted(DigitsImages):
        opened = 0

        def images(self, resolution: int):  # type: ignore[no-untyped-def]
            Counted.opened += 1
            return super().images(resolution)

    kept = KeptImages(Counted("calibration"))
    export_digits(tmp_path / "digits.supernet")
    bundle = SupernetBundle.open(tmp_path / "digits.supernet")
    (architecture,) = bundle.space.decode(bundle.space.smallest())
    file = build_model(bundle, architecture, None, RuntimeSetting())
    first = answer(file, kept.images(architecture.r), kept.labels, 10)
    assert answer(file, kept.images(architecture.r), kept.labels, 10) == first
    assert Counted.opened == 1
    list(kept.images(16 if architecture.r != 16 else 24))
    assert Counted.opened == 2
