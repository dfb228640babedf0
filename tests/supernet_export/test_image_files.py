"""Image files of every kind: the values that a network sees."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.evaluation.image_file import fault, open_image
from fleetnas.supernet_export.evaluation.image_fit import evaluation_view, training_view
from fleetnas.supernet_export.evaluation.image_folder import ImageFolder
from fleetnas.supernet_export.graph import Array
from fleetnas.supernet_export.manifest import Preprocessing

pil = pytest.importorskip("PIL.Image")

#: Pixels as they are, from 0 to 1.
GREY = Preprocessing(channels=1, mean=(0,), std=(1,), interpolation="bilinear")
COLOUR = Preprocessing(channels=3, mean=(0,) * 3, std=(1,) * 3, interpolation="bilinear")
#: A ramp over the whole range of 16 bits, with steps that 8 bits cannot hold.
DEEP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
#: ITU-R 601 luma of red, green and blue.
LUMA = np.array([0.299, 0.587, 0.114])


def seen(path: Path, preprocessing: Preprocessing = GREY, size: tuple[int, int] = (8, 8)) -> Array:
    return evaluation_view(open_image(path, preprocessing.channels), size, preprocessing)


def png_16(path: Path, pixels: np.ndarray, colour_type: int) -> None:
    """Write a PNG of 16 bits per channel by hand: Pillow writes grey ones only."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_range_and_its_steps(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    pil.fromarray(DEEP).save(path)
    np.testing.assert_allclose(seen(path)[0], DEEP / 65535, atol=1e-6)
    np.testing.assert_array_equal(seen(path, COLOUR), np.repeat(seen(path), 3, axis=0))
    assert fault(path) == ""


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_that_files_have_becomes_grey_and_colour(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.tif"
    pil.new("RGB", (8, 8), "white").convert(mode).save(path)
    assert fault(path) == ""
    np.testing.assert_allclose(seen(path), 1, atol=0.01)
    np.testing.assert_allclose(seen(path, COLOUR), 1, atol=0.01)


def test_grey_of_16_bits_is_not_what_it_was_before(tmp_path: Path) -> None:
    """Pillow's own conversion clips at 255: nearly every pixel was white."""
    pil.fromarray(DEEP).save(tmp_path / "deep.png")
    clipped = np.asarray(pil.open(tmp_path / "deep.png").convert("L"))
    assert (clipped == 255).mean() > 0.9
    assert (seen(tmp_path / "deep.png") == 1).mean() < 0.05


def test_big_endian_tiff_of_16_bits(tmp_path: Path) -> None:
    pil.frombytes("I;16B", (8, 8), DEEP.astype(">u2").tobytes()).save(tmp_path / "deep.tif")
    np.testing.assert_allclose(seen(tmp_path / "deep.tif")[0], DEEP / 65535, atol=1e-6)


def test_integers_of_32_bits_count_to_65535(tmp_path: Path) -> None:
    path = tmp_path / "deep.tif"
    pil.fromarray(DEEP.astype(np.int32)).save(path)
    np.testing.assert_allclose(seen(path)[0], DEEP / 65535, atol=1e-6)
    pil.fromarray(DEEP.astype(np.int32) - 70_000).save(path)
    with pytest.raises(UsageError, match="values run from -70000 to -4465 and must lie between 0 and 65,535"):
        seen(path)
    assert "save it with 16-bit integers" in fault(path)


def test_float_values_lie_between_0_and_1(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    pil.fromarray(values).save(path)
    np.testing.assert_allclose(seen(path)[0], values, atol=1e-6)
    for wrong in (values * 255, values - 0.5, np.full_like(values, np.nan)):
        pil.fromarray(wrong).save(path)
        with pytest.raises(UsageError, match=r"float values run from .* must lie between 0 and 1"):
            seen(path)
        assert "float values" in fault(path)


def test_a_check_names_values_out_of_range(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pil.fromarray(np.full((8, 8), 300, np.float32)).save(tmp_path / "a" / "0.tif")
    with pytest.raises(UsageError, match=r"a/0.tif \(its float values run from 300 to 300"):
        ImageFolder(tmp_path, GREY, 1).check()


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colour_and_alpha_of_16_bits_are_not_clipped(tmp_path: Path, colour_type: int, channels: int) -> None:
    pixels = np.stack([np.roll(DEEP, 8 * channel) for channel in range(channels)], axis=2)
    png_16(tmp_path / "deep.png", pixels, colour_type)
    colours = pixels[:, :, :3] if channels > 2 else np.repeat(pixels[:, :, :1], 3, axis=2)
    np.testing.assert_allclose(seen(tmp_path / "deep.png", COLOUR), colours.transpose(2, 0, 1) / 65535, atol=1 / 255)


def test_colour_becomes_grey_by_luma_and_grey_colour_by_copies(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pil.fromarray(pixels).save(tmp_path / "colour.png")
    np.testing.assert_allclose(seen(tmp_path / "colour.png")[0], pixels @ LUMA / 255, atol=1.01 / 255)
    pil.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(
        seen(tmp_path / "grey.png", COLOUR), np.repeat(pixels[None, :, :, 0], 3, 0) / np.float32(255)
    )


def test_alpha_is_dropped(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    pil.fromarray(pixels, "RGBA").save(tmp_path / "clear.png")
    np.testing.assert_array_equal(
        seen(tmp_path / "clear.png", COLOUR), pixels[:, :, :3].transpose(2, 0, 1) / np.float32(255)
    )
    pil.fromarray(pixels[:, :, :2], "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(seen(tmp_path / "la.png")[0], pixels[:, :, 0] / np.float32(255))


def test_a_palette_with_transparency_keeps_its_colours_without_a_warning(tmp_path: Path) -> None:
    image = pil.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 4, "P")
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 150, 90], [255, 255, 255]], np.uint8)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "palette.png", transparency=bytes([0, 128, 255, 255]))
    expected = colours[np.arange(64).reshape(8, 8) % 4].transpose(2, 0, 1) / np.float32(255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(seen(tmp_path / "palette.png", COLOUR), expected)


def test_one_bit_and_cmyk(tmp_path: Path) -> None:
    bits = np.eye(8, dtype=bool)
    pil.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(seen(tmp_path / "bits.png")[0], bits.astype(np.float32))
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[..., 0] = 255  # full cyan, no black: no red
    pil.fromarray(inks, "CMYK").save(tmp_path / "inks.tif")
    np.testing.assert_array_equal(seen(tmp_path / "inks.tif", COLOUR)[:, 0, 0], [0, 1, 1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_cameras_images_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4) * 10
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, 3),
    }[orientation]
    exif = pil.Exif()
    exif[0x0112] = orientation
    pil.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(seen(tmp_path / "photo.png", GREY, (6, 4))[0], upright / np.float32(255))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif_data_cost_no_image(tmp_path: Path, exif: bytes) -> None:
    pil.fromarray(DEEP.astype(np.uint8)).save(tmp_path / "photo.jpg", exif=exif)
    assert fault(tmp_path / "photo.jpg") == ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert seen(tmp_path / "photo.jpg").shape == (1, 8, 8)


@pytest.mark.parametrize("channels", [2, 4, 16])
def test_other_channels_are_refused(tmp_path: Path, channels: int) -> None:
    (tmp_path / "a").mkdir()
    other = Preprocessing(channels=channels, mean=(0,) * channels, std=(1,) * channels, interpolation="bilinear")
    with pytest.raises(UsageError, match=f"images of {channels} channels, and image files are read as 1"):
        ImageFolder(tmp_path, other, 1)


def test_deep_grey_is_trained_on_like_other_grey(tmp_path: Path) -> None:
    """The same picture in 8 and in 16 bits gives the same training views, but for rounding."""
    levels = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    pil.fromarray(levels).save(tmp_path / "8.png")
    pil.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "16.png")
    for fit in ("crop", "squash", "letterbox"):
        views = GREY.model_copy(update={"fit": fit, "interpolation": "bicubic"})
        shallow, deep = (
            training_view(open_image(tmp_path / f"{bits}.png", 1), (12, 16), views, np.random.default_rng(1))
            for bits in (8, 16)
        )
        np.testing.assert_allclose(deep, shallow, atol=3 / 255)
        assert 0 <= deep.min() <= deep.max() <= 1
