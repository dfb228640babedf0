"""Folders of images as they are found: hidden files, folders that are no class, broken files."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.evaluation.images import ImageFolder
from fleetnas.supernet_export.manifest import Preprocessing

image = pytest.importorskip("PIL.Image")

COLOUR = Preprocessing(channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear", crop_fraction=0.875)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of two images."""
    rng = np.random.default_rng(0)
    for name in ("n01440764", "n01443537"):
        (tmp_path / name).mkdir()
        for number in range(2):
            pixels = rng.integers(0, 255, (90, 120, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / name / f"{number}.jpg")
    return tmp_path


def opened(folder: Path, classes: int = 2) -> ImageFolder:
    return ImageFolder(folder, COLOUR, classes)


def test_what_begins_with_a_dot_is_neither_class_nor_image(folder: Path) -> None:
    hidden = folder / ".ipynb_checkpoints"
    for place in (hidden, folder / "n01440764" / ".thumbnails"):
        place.mkdir()
        (place / "0.jpg").write_bytes((folder / "n01440764" / "0.jpg").read_bytes())
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "n01443537" / "._0.jpg").write_bytes(b"\0\5\26\7")  # macOS keeps attributes so on other file systems
    (folder / "n01443537" / "odd.jpg").mkdir()
    source = opened(folder)
    source.check()
    assert list(source.labels) == [0, 0, 1, 1]
    assert len(list(source.images(16))) == 4


@pytest.mark.parametrize(
    ("extra", "images", "words"),
    [
        (["lost+found"], 0, "there are 3 folders, among them lost+found, which holds no images; remove"),
        (["thumbs"], 1, "among them thumbs, named unlike the others; remove"),
        (["a1", "b2"], 0, "among them a1, b2, which hold no images; remove"),
        ([f"old{i}" for i in range(7)], 0, "old0, old1, old2, old3, old4 and 2 more, which hold no images"),
        (["n02000000"], 1, "there are 3 folders; remove those that are no class"),
    ],
)
def test_a_folder_that_is_no_class_is_named(folder: Path, extra: list[str], images: int, words: str) -> None:
    for name in extra:
        (folder / name).mkdir()
        for number in range(images):
            (folder / name / f"{number}.jpg").write_bytes((folder / "n01440764" / "0.jpg").read_bytes())
    with pytest.raises(UsageError) as raised:
        opened(folder)
    assert words in str(raised.value)


def test_too_few_classes_name_those_that_are_there(folder: Path) -> None:
    with pytest.raises(UsageError, match="10 classes, and there are 2 folders: n01440764, n01443537"):
        opened(folder, 10)
    with pytest.raises(UsageError, match="there is no folder of images"):
        opened(folder / "absent")


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def broken_files(whole: bytes) -> dict[str, bytes]:
    return {
        "cut.jpg": whole[: len(whole) // 2],
        "almost.jpg": whole[: len(whole) - 40],
        "empty.jpg": b"",
        "page.jpg": b"<!DOCTYPE html><title>404</title>",
        "bomb.png": png(100_000, 100_000, zlib.compress(b"\0")),
        "cut.png": png(20, 20, zlib.compress(bytes(21 * 20))[:-9]),
        "rubbish.png": png(20, 20, b"no deflate"),
    }


def test_every_broken_image_is_found_before_it_is_needed(folder: Path) -> None:
    whole = (folder / "n01440764" / "0.jpg").read_bytes()
    for name, content in broken_files(whole).items():
        (folder / "n01440764" / name).write_bytes(content)
        seen: list[tuple[int, int]] = []
        with pytest.raises(UsageError) as raised:
            opened(folder).check(lambda done, total, seen=seen: seen.append((done, total)))
        assert f"1 of 5 images in {folder} cannot be read: n01440764/{name} (" in str(raised.value)
        assert "remove or replace" in str(raised.value)
        assert seen == [(done, 5) for done in range(1, 6)]
        # One that breaks after the check is as clear.
        with pytest.raises(UsageError, match=f"{name} cannot be read"):
            list(opened(folder).images(16))
        (folder / "n01440764" / name).unlink()


def test_many_broken_images_are_counted_and_the_first_ones_named(folder: Path) -> None:
    for number in range(9):
        (folder / "n01443537" / f"x{number}.png").write_bytes(b"")
    with pytest.raises(UsageError) as raised:
        opened(folder).check()
    said = str(raised.value)
    assert "9 of 13 images" in said
    assert "x4.png" in said
    assert "x5.png" not in said
    assert "and 4 more; remove" in said


def test_odd_images_that_can_be_read_are_taken(folder: Path) -> None:
    """Bytes after the end, grey, palette, transparent and CMYK images, and another suffix than the content's."""
    whole = (folder / "n01440764" / "0.jpg").read_bytes()
    pixels = image.open(folder / "n01440764" / "0.jpg")
    (folder / "n01440764" / "tail.jpg").write_bytes(whole + bytes(64))
    (folder / "n01440764" / "jpeg.png").write_bytes(whole)
    for mode, name in (("L", "grey.png"), ("P", "palette.png"), ("RGBA", "clear.png"), ("CMYK", "print.jpg")):
        pixels.convert(mode).save(folder / "n01443537" / name)
    source = opened(folder)
    source.check()
    assert [found.shape for found in source.images(16)] == [(3, 16, 16)] * 10
