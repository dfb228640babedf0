#!/usr/bin/env python3
"""Classify images with the model files beside this program.

It needs numpy, Pillow and the runtime of the model: onnxruntime for .onnx; ai-edge-litert, or tflite-runtime on old
boards, for .tflite. Images are prepared as the model's card says, exactly as they were when its accuracy was evaluated.

  python infer.py photo.jpg             the most probable classes of an image
  python infer.py photos                the same of every image in a folder
  python infer.py val                   top-1 accuracy, where the folder has one folder per class
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
#: Endings of image files.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
#: EXIF orientations other than 1, and the way back to the upright image.
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class InferenceError(Exception):
    """What is wrong, in one line for the user."""


class Model:
    """A model file, opened by its runtime, with what its card says about images and classes."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Open `path`; `InferenceError` where the model, its card or its runtime is missing or wrong."""
        self.path = path
        self.card = read_card(path)
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.card.get("sha256"):
            raise InferenceError(f"{path.name} is not the file that {card_of(path).name} describes; copy both again")
        supernet: Mapping[str, Any] = self.card.get("supernet") or {}
        self.preprocessing: Mapping[str, Any] | None = supernet.get("preprocessing")
        if self.preprocessing is None:
            raise InferenceError(
                f"{card_of(path).name} has no preprocessing; write the results again with this fleetnas"
            )
        if self.preprocessing.get("channels") not in (1, 3):
            raise InferenceError(
                f"{path.name} takes no images of 1 or 3 channels; prepare its input in a program of yours"
            )
        opener = open_tflite if content[4:8] == b"TFL3" else open_onnx
        (self.height, self.width), self.classes, self.logits = opener(content, threads)
        names = supernet.get("class_names")
        self.named = names is not None
        self.names: list[str] = list(names) if names is not None else [str(i) for i in range(self.classes)]

    def answer(self, image: Path) -> Array:
        """Return the logits, (classes,), of an image file."""
        return self.logits(prepared(image, (self.height, self.width), self.preprocessing or {}))


def open_onnx(content: bytes, threads: int) -> tuple[tuple[int, int], int, Callable[[Array], Array]]:
    """Return height and width of the input, the number of classes, and the function from an image to its logits."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError:
        raise InferenceError("an .onnx file needs onnxruntime; run: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Else some 8-bit kernels of x86 processors saturate; see onnxruntime's documentation of quantisation.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (given,), (wanted,) = session.get_inputs(), session.get_outputs()

    def logits(image: Array) -> Array:
        return np.asarray(session.run([wanted.name], {given.name: image[None]})[0][0])

    return (given.shape[2], given.shape[3]), wanted.shape[-1], logits


def open_tflite(content: bytes, threads: int) -> tuple[tuple[int, int], int, Callable[[Array], Array]]:
    """Return height and width of the input, the number of classes, and the function from an image to its logits."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError:
            raise InferenceError("a .tflite file needs LiteRT; run: pip install ai-edge-litert") from None
    interpreter = Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()

    def logits(image: Array) -> Array:
        interpreter.set_tensor(given["index"], image.transpose(1, 2, 0)[None])
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(wanted["index"])[0])

    _, height, width, _ = (int(side) for side in given["shape"])
    return (height, width), int(wanted["shape"][-1]), logits


def card_of(model: Path) -> Path:
    """Return the path of the card beside a model."""
    return model.with_suffix(".json")


def read_card(model: Path) -> dict[str, Any]:
    """Read the card beside a model; `InferenceError` where there is none."""
    try:
        card = json.loads(card_of(model).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InferenceError(
            f"{card_of(model).name} is not beside {model.name}; copy the card along with the model"
        ) from None
    except (OSError, ValueError) as error:
        raise InferenceError(f"{card_of(model)} cannot be read: {error}") from None
    if not isinstance(card, dict) or "supernet" not in card:
        raise InferenceError(f"{card_of(model).name} is no model card; give a model that `fleetnas search` left")
    return card


def chosen_model(folder: Path) -> Path:
    """Return the most accurate model in a folder, by its card; of equal ones the fastest."""
    models = sorted(path for path in folder.iterdir() if path.suffix in (".onnx", ".tflite"))
    models = [path for path in models if card_of(path).is_file()] or models[:1]
    if not models:
        raise InferenceError(f"there is no model file in {folder}; name one with --model")

    def worth(path: Path) -> tuple[float, float]:
        card = read_card(path)
        found = card.get("accuracy") if card.get("accuracy") is not None else card.get("predicted_accuracy")
        return (found or 0.0, -(card.get("verified_ms") or math.inf))

    return models[0] if len(models) == 1 else max(models, key=worth)


def prepared(path: Path, size: tuple[int, int], preprocessing: Mapping[str, Any]) -> Array:
    """Return an image file as the network's input: float32 of shape (channels, height, width) at `size`."""
    image = read_image(path, preprocessing["channels"])
    fit = preprocessing.get("fit", "crop")
    if fit == "letterbox":
        height, width = size
        scale = min(width / image.width, height / image.height)
        inside = [max(1, min(w, round(side * scale))) for w, side in ((width, image.width), (height, image.height))]
        pixels = normalised(image.resize(tuple(inside), resampling(preprocessing)), preprocessing)
        found = np.zeros((len(pixels), height, width), np.float32)  # borders of the mean colour
        top, left = (height - pixels.shape[1]) // 2, (width - pixels.shape[2]) // 2
        found[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
        return found
    if fit == "squash":
        return normalised(image.resize(size[::-1], resampling(preprocessing)), preprocessing)
    return normalised(centre(image, size, preprocessing), preprocessing)


def centre(image: Any, size: tuple[int, int], preprocessing: Mapping[str, Any]) -> Any:
    """Resize an image to cover `size` over the crop's fraction, and cut its centre out."""
    high, wide = (math.ceil(side / preprocessing.get("crop_fraction", 1.0)) for side in size)
    width, height = image.size
    covered, side = (high, height) if high * width >= wide * height else (wide, width)
    resized = image.resize((int(covered * width / side), int(covered * height / side)), resampling(preprocessing))
    left, top = round((resized.width - size[1]) / 2), round((resized.height - size[0]) / 2)
    return resized.crop((left, top, left + size[1], top + size[0]))


def normalised(image: Any, preprocessing: Mapping[str, Any]) -> Array:
    """Return pixels from 0 to 1, minus mean, over deviation, of shape (channels, height, width)."""
    pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1).transpose(2, 0, 1)
    if image.mode == "F":  # bicubic interpolation leaves the range, which bytes cannot
        pixels = pixels.clip(0, 255)
    mean = np.array(preprocessing["mean"], np.float32)[:, None, None]
    deviation = np.array(preprocessing["std"], np.float32)[:, None, None]
    return np.ascontiguousarray((pixels / np.float32(255) - mean) / deviation)


def resampling(preprocessing: Mapping[str, Any]) -> Any:
    """Return Pillow's filter of the preprocessing."""
    from PIL import Image

    return Image.Resampling[preprocessing["interpolation"].upper()]


def read_image(path: Path, channels: int) -> Any:
    """Return an upright image in Pillow's mode L or RGB, or F where its grey has more than 8 bits; from 0 to 255."""
    try:
        from PIL import Image
    except ImportError:
        raise InferenceError("reading images needs Pillow; run: pip install pillow") from None
    try:
        with Image.open(path) as image:
            image.load()
            try:
                turn = TURNS.get(image.getexif().get(0x0112, 1))
            except Exception:  # broken EXIF data beside whole pixels
                turn = None
            upright: Any = image if turn is None else image.transpose(Image.Transpose[turn])
            deep = deep_grey(upright)
            if deep is not None:
                return Image.fromarray(deep)
            if upright.mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")
            if upright.mode == "LAB":
                upright = upright.convert("RGB")
            return upright.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # decoders raise anything for a broken file
        raise InferenceError(f"{path} cannot be read as an image: {error}") from None


def deep_grey(image: Any) -> Array | None:
    """Return pixels from 0 to 255 of one channel with more than 8 bits; None for other images."""
    if image.mode == "F":
        pixels = np.asarray(image, np.float32)
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError("its float values must lie between 0 and 1")
        return pixels * np.float32(255)
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return None
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its values must lie between 0 and 65,535")
    return values.astype(np.float32) / np.float32(257)


def images_below(folder: Path) -> list[Path]:
    """Return the image files in a folder and below, sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def class_folders(folder: Path, model: Model) -> list[tuple[int, Path]]:
    """Return class number and path of each class's folder; none where no folder is a class's.

    Folders are the classes by their names; without class names they are numbered in the order of their names.
    """
    folders = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not model.named:
        return list(enumerate(folders)) if len(folders) == model.classes else []
    numbers = {name: number for number, name in enumerate(model.names)}
    found = [(numbers.get(unicodedata.normalize("NFC", each.name)), each) for each in folders]
    strange = [each.name for number, each in found if number is None]
    if strange and len(strange) < len(found):
        raise InferenceError(
            f"{', '.join(map(repr, strange[:5]))} in {folder} is no class of the model; rename or remove it"
        )
    return [(number, each) for number, each in found if number is not None]


def evaluate(model: Model, folders: list[tuple[int, Path]]) -> None:
    """Print the recall of each class, and the accuracy over all images."""
    right = total = 0
    for number, folder in folders:
        answers = [int(np.argmax(model.answer(image))) for image in images_below(folder)]
        found = sum(answer == number for answer in answers)
        if answers:
            print(f"{model.names[number]}: {found} of {len(answers)} right")
        right, total = right + found, total + len(answers)
    if not total:
        raise InferenceError(f"the class folders hold no images ({', '.join(sorted(SUFFIXES))})")
    print(f"top-1 accuracy {right / total!r}: {right} of {total} images")
    known = model.card.get("accuracy")
    if known is not None:
        print(f"its card says {known!r} of {model.card.get('accuracy_images')} images")


def classify(model: Model, images: list[Path], most: int) -> Iterator[str]:
    """Yield a line for each image: its most probable classes."""
    for image in images:
        logits = model.answer(image).astype(np.float64)
        odds = np.exp(logits - logits.max())
        shares = odds / odds.sum()
        best = np.argsort(-shares, kind="stable")[:most]
        yield f"{image}: " + ", ".join(f"{model.names[each]} {100 * shares[each]:.1f} %" for each in best)


def run(options: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    path: Path = options.images
    if options.top < 1 or options.threads < 1:
        raise InferenceError(f"--top {options.top} and --threads {options.threads} must be 1 or more")
    model_path = options.model if options.model is not None else chosen_model(Path(__file__).resolve().parent)
    if not model_path.is_file():
        raise InferenceError(f"there is no model file {model_path}; check --model")
    if not path.exists():
        raise InferenceError(f"there is no image or folder {path}; check its path")
    model = Model(model_path, options.threads)
    print(f"{model_path.name} for {model.card.get('device')}/{model.card.get('runtime')}", file=sys.stderr)
    folders = class_folders(path, model) if path.is_dir() else []
    if folders:
        evaluate(model, folders)
        return
    images = images_below(path) if path.is_dir() else [path]
    if not images:
        raise InferenceError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    for line in classify(model, images, options.top):
        print(line)


def main() -> int:
    """Read the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, metavar="IMAGE|FOLDER", help="an image, or a folder of images")
    parser.add_argument("--model", type=Path, metavar="FILE", help="(default: the most accurate beside this program)")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes that are shown (default: 3)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the processor (default: 1)")
    try:
        run(parser.parse_args())
    except InferenceError as fault:
        print(f"infer.py: {fault}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
