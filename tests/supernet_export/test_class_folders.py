"""Folders of images are matched to classes by name, and what does not match is named."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rigs.brightness_model import brightness_model

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.evaluation import image_folder
from fleetnas.supernet_export.evaluation.class_folders import class_names_in, class_order_in
from fleetnas.supernet_export.evaluation.classifier import evaluate
from fleetnas.supernet_export.evaluation.image_folder import ImageFolder
from fleetnas.supernet_export.manifest import Preprocessing

pil = pytest.importorskip("PIL.Image")

COLOUR = Preprocessing(channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear")
NAMES = ("brick", "grass", "Gravel road", "käse", "v1.2")


def folders(directory: Path, names: Sequence[str], images: int = 2) -> Path:
    """A folder per name; the images of class `i` are of brightness `10 * i`, by the position in NAMES."""
    for name in names:
        (directory / name).mkdir(parents=True)
        for number in range(images):
            level = 10 * NAMES.index(name) if name in NAMES else 255
            pil.fromarray(np.full((12, 12, 3), level, np.uint8)).save(directory / name / f"{number}.png")
    return directory


def opened(directory: Path, *, some_classes: bool = False, names: Sequence[str] = NAMES) -> ImageFolder:
    return ImageFolder(directory, COLOUR, len(names), class_names=names, some_classes=some_classes)


def refusal(directory: Path, *, some_classes: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        opened(directory, some_classes=some_classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def by_position(directory: Path) -> dict[str, int]:
    """The class of each folder where classes have no names."""
    source = ImageFolder(directory, COLOUR, len(NAMES))
    return {path.parent.name: label for path, label in zip(source.paths, source.labels, strict=True)}


def test_order_of_names_is_the_manifests_not_the_folders(tmp_path: Path) -> None:
    shuffled = ("v1.2", "käse", "brick", "Gravel road", "grass")
    source = opened(folders(tmp_path, NAMES), names=shuffled)
    found = {path.parent.name: label for path, label in zip(source.paths, source.labels, strict=True)}
    assert found == {name: shuffled.index(name) for name in NAMES}


def test_a_renamed_folder_is_an_error_and_not_two_percent(tmp_path: Path) -> None:
    """By position a folder that now sorts elsewhere shifts every class between: that was evaluated in silence."""
    folders(tmp_path, NAMES)
    before = by_position(tmp_path)
    (tmp_path / "brick").rename(tmp_path / "red brick")
    after = by_position(tmp_path)
    assert sum(before[name] != after[name] for name in NAMES if name != "brick") == 2
    said = refusal(tmp_path)
    assert "'red brick' is no class (the nearest is 'brick'); 'brick' has no folder; name each folder" in said


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("Brick", "brick"),
        ("brick ", "brick"),
        ("GRAVEL ROAD", "Gravel road"),
        ("Gravel_road", "Gravel road"),
        ("Gravel  road", "Gravel road"),
        ("kase", "käse"),
        ("v1_2", "v1.2"),
        ("v1.2.", "v1.2"),
        ("grsas", "grass"),
    ],
)
@pytest.mark.parametrize("some_classes", [False, True])
def test_another_spelling_is_named_with_the_class_that_it_is_nearest_to(
    tmp_path: Path, wrong: str, right: str, some_classes: bool
) -> None:
    folders(tmp_path, [wrong if name == right else name for name in NAMES])
    said = refusal(tmp_path, some_classes=some_classes)
    assert f"{wrong!r} is no class (the nearest is {right!r}); {right!r} has no folder" in said
    assert "name each folder exactly like its class" in said


def test_composed_and_decomposed_unicode_are_one_name(tmp_path: Path) -> None:
    """File systems change the form, and no eye sees it: such a folder matches."""
    decomposed = unicodedata.normalize("NFD", "käse")
    folders(tmp_path, [decomposed, *(name for name in NAMES if name != "käse")])
    source = opened(tmp_path)
    found = {path.parent.name: label for path, label in zip(source.paths, source.labels, strict=True)}
    assert found[decomposed] == NAMES.index("käse")
    assert class_names_in(tmp_path) == tuple(sorted(NAMES))


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    folders(tmp_path, [*NAMES, unicodedata.normalize("NFD", "käse")])
    if len(list(tmp_path.iterdir())) == len(NAMES):
        pytest.skip("this file system has one form of Unicode")
    assert "two folders named 'käse'" in refusal(tmp_path)
    with pytest.raises(UsageError, match="merge them into one"):
        class_names_in(tmp_path)


def test_an_extra_folder_is_named_also_where_classes_may_lack(tmp_path: Path) -> None:
    folders(tmp_path, [*NAMES, "sand"])
    for some_classes in (False, True):
        said = refusal(tmp_path, some_classes=some_classes)
        assert "'sand' is no class" in said
        assert "no folder" not in said


def test_a_missing_class_is_named_unless_some_are_enough(tmp_path: Path) -> None:
    folders(tmp_path, ("grass", "v1.2"))
    said = refusal(tmp_path)
    assert "not the supernet's 5 classes: 'brick', 'Gravel road', 'käse' have no folder" in said
    assert "--some-classes" in said
    source = opened(tmp_path, some_classes=True)
    assert list(source.labels) == [NAMES.index("grass")] * 2 + [NAMES.index("v1.2")] * 2


def test_an_empty_folder_is_a_missing_class(tmp_path: Path) -> None:
    folders(tmp_path, NAMES)
    for image in (tmp_path / "grass").iterdir():
        image.unlink()
    assert "'grass' holds no images" in refusal(tmp_path)
    assert 1 not in opened(tmp_path, some_classes=True).labels


def test_no_image_at_all_is_refused(tmp_path: Path) -> None:
    assert "hold no images (" in refusal(tmp_path, some_classes=True)
    assert "there is no folder of images" in refusal(tmp_path / "absent")


def test_many_faults_are_counted(tmp_path: Path) -> None:
    names = [f"n{i:08d}" for i in range(1000)]
    folders(tmp_path, [f"m{i:08d}" for i in range(9)], images=1)
    with pytest.raises(UsageError, match=r"and 4 more; .* and 995 more have no folder"):
        ImageFolder(tmp_path, COLOUR, 1000, class_names=names)


def test_some_classes_are_evaluated_with_their_own_indices(tmp_path: Path) -> None:
    """A model that answers with the class of an image's brightness is right on a part of the classes too."""
    folders(tmp_path, ("grass", "v1.2"))
    source = opened(tmp_path, some_classes=True)
    assert evaluate(brightness_model(len(NAMES), 12, COLOUR), source.images(12), source.labels) == 1


def test_some_classes_need_names(tmp_path: Path) -> None:
    folders(tmp_path, NAMES)
    with pytest.raises(UsageError, match="--some-classes needs class names"):
        ImageFolder(tmp_path, COLOUR, len(NAMES), some_classes=True)


def test_numbering_by_position_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders(tmp_path, NAMES)
    image_folder.tell_once_that_folders_are_numbered.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            ImageFolder(tmp_path, COLOUR, len(NAMES))
        opened(tmp_path)
    assert [record.getMessage()[:32] for record in caplog.records] == ["this supernet has no class names"]


def test_an_order_that_depends_on_the_form_of_unicode_is_refused(tmp_path: Path) -> None:
    """Trainers number folders by their names as the file system spells them, and file systems differ."""
    for name in ("apfel", "birne", "zitrone"):
        (tmp_path / name).mkdir()
    assert class_order_in(tmp_path) == ("apfel", "birne", "zitrone")
    (tmp_path / "ähre").mkdir()
    with pytest.raises(UsageError, match="--classes-file"):
        class_order_in(tmp_path)
    (tmp_path / "birne").rmdir()
    (tmp_path / "zitrone").rmdir()
    (tmp_path / "apfel").rmdir()
    (tmp_path / "élan").mkdir()
    assert class_order_in(tmp_path) == ("ähre", "élan")
