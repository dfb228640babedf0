"""Find the class of each folder of images: by its name, or by its position where the classes' names are not known."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.evaluation.image_file import SUFFIXES

#: Folders and files that a message names.
MOST_NAMED = 5


def class_names_in(directory: Path) -> tuple[str, ...]:
    """Return the names of the class folders in `directory`, sorted: class names of a supernet to be trained.

    `UsageError` where there is no such directory, or where two folders have one name but for Unicode's form.
    """
    return tuple(sorted(_by_name(directory, _folders(directory))))


def class_order_in(directory: Path) -> tuple[str, ...]:
    """Return the names of the class folders in the order in which trainers such as torchvision number them.

    `UsageError` as `class_names_in`, and where Unicode's composed and decomposed form are sorted differently: the
    number of a class then depends on the file system that the training ran on.
    """
    composed = class_names_in(directory)
    if tuple(sorted(composed, key=lambda name: unicodedata.normalize("NFD", name))) != composed:
        raise UsageError(
            f"the order of the class folders in {directory} depends on how the training's file system spells accents; "
            "give their names in the order of the logits: --classes-file FILE"
        )
    return composed


@dataclass(frozen=True)
class ClassFolder:
    """A folder of one class: its position among the logits, and its image files, sorted."""

    label: int
    images: list[Path]


def numbered_folders(directory: Path, classes: int) -> list[ClassFolder]:
    """Return the folders of classes that are numbered in the order of the folders' names, like ImageNet's.

    `UsageError` if there are not as many folders as classes; it names those that are probably no class.
    """
    folders = _folders(directory)
    if len(folders) != classes:
        raise UsageError(
            f"{directory} must hold one folder of images per class: the supernet has {classes} classes, and there "
            f"are {len(folders)} folders{_suspects(folders, classes)}"
        )
    return [ClassFolder(label, images_below(folder)) for label, folder in enumerate(folders)]


def named_folders(directory: Path, class_names: Sequence[str], *, some_classes: bool = False) -> list[ClassFolder]:
    """Return the folders, sorted by name; the folder of class `i` is named `class_names[i]`.

    Names are compared in Unicode's composed form, since file systems change that form, and exactly otherwise. With
    `some_classes` a class may have no folder, or an empty one.

    Raises:
        UsageError: a folder is no class, or a class has no folder or no images; the message names the folder, and the
            class whose name is nearest.
    """
    folders = _by_name(directory, _folders(directory))
    labels = {name: label for label, name in enumerate(class_names)}
    strange = [name for name in folders if name not in labels]
    missing = [name for name in class_names if name not in folders]
    images = {name: images_below(folder) for name, folder in folders.items() if name in labels}
    empty = [name for name, found in images.items() if not found]
    faults = []
    if strange:
        faults.append(_listed(strange, lambda name: f"{name!r} is no class{_nearest(name, missing, class_names)}"))
    if missing and (strange or not some_classes):
        one = len(missing) == 1
        faults.append(f"{_listed(missing)} {'has' if one else 'have'} no folder")
    if empty and not some_classes:
        faults.append(f"{_listed(empty)} {'holds' if len(empty) == 1 else 'hold'} no images")
    if faults:
        advice = "name each folder exactly like its class"
        if not strange:
            advice = "add the images, or give --some-classes to a command that has it"
        raise UsageError(
            f"the folders in {directory} are not the supernet's {len(class_names):,} classes: {'; '.join(faults)}; "
            f"{advice}"
        )
    return [ClassFolder(labels[name], found) for name, found in images.items()]


def images_below(folder: Path) -> list[Path]:
    """Return the image files in a class folder, sorted; hidden ones are left out, whose path has a dot in front."""
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UsageError(f"the class folder {folder} cannot be read; check who may read it")
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _folders(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise UsageError(f"there is no folder of images {directory}; check its path")
    return sorted(entry for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _by_name(directory: Path, folders: Iterable[Path]) -> dict[str, Path]:
    """Return folders by their names in Unicode's composed form."""
    found: dict[str, Path] = {}
    for folder in folders:
        name = unicodedata.normalize("NFC", folder.name)
        if name in found:
            raise UsageError(
                f"{directory} holds two folders named {name!r}, in the composed and the decomposed form of Unicode; "
                "merge them into one"
            )
        found[name] = folder
    return found


def _nearest(name: str, missing: Collection[str], class_names: Collection[str]) -> str:
    """Name the class that a folder was probably meant for, those without a folder first."""
    for names in (missing, class_names):
        keys: dict[str, str] = {}
        for known in names:
            keys.setdefault(_key(known), known)
        close = get_close_matches(_key(name), list(keys), 1, 0.6)
        if close:
            return f" (the nearest is {keys[close[0]]!r})"
    return ""


def _key(name: str) -> str:
    """Return what a reader sees of a name: without case, accents, spaces, dots, hyphens and underscores."""
    letters = (c for c in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(c))
    return re.sub(r"[\W_]+", "", "".join(letters)) or name


def _listed(names: Sequence[str], shown: Callable[[str], str] = repr) -> str:
    """Return the first names as they are `shown`, and the number of the others."""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(shown(name) for name in names[:MOST_NAMED]) + more


def _suspects(folders: Sequence[Path], classes: int) -> str:
    """Name the folders that are probably no classes: those without images, else those with unusual names."""
    names = [folder.name for folder in folders]
    if len(names) < classes:
        return f": {', '.join(names)}" if 0 < len(names) <= MOST_NAMED else ""
    suspects = [folder.name for folder in folders if not images_below(folder)]
    reason = "which hold no images" if len(suspects) > 1 else "which holds no images"
    if not suspects:
        shapes = Counter(_shape(name) for name in names)
        usual = shapes.most_common(1)[0][0]
        suspects, reason = [name for name in names if _shape(name) != usual], "named unlike the others"
    if not suspects or len(suspects) == len(names):
        return "; remove those that are no class"
    return f", among them {_listed(suspects, str)}, {reason}; remove what is no class"


def _shape(name: str) -> str:
    """Return the pattern of a name: `n01440764` and `n01443537` have the same."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", name))
