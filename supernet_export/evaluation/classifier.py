"""Measure the accuracy of an exported model file by running that file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.graph import Array
from fleetnas.supernet_export.interpreters.litert import open_interpreter, without_greeting
from fleetnas.supernet_export.interpreters.onnxruntime import open_session

#: A preprocessed image (channels, height, width) to its logits (classes,).
Classifier: TypeAlias = Callable[[Array], Array]

#: What a TFLite file holds at byte 4.
_TFLITE_MARK = b"TFL3"


def is_tflite(model: bytes) -> bool:
    """Whether a model file is TFLite's; our other model files are ONNX."""
    return model[4:8] == _TFLITE_MARK


def open_classifier(model: bytes, *, threads: int = 1) -> Classifier:
    """Runs a model file of batch 1: TFLite in LiteRT, ONNX in onnxruntime.

    `RuntimeUnavailableError` or `MissingDependencyError` where the runtime is not installed or does not load it.
    """
    if is_tflite(model):
        return _tflite_classifier(model, threads)
    session = open_session(model, threads=threads)
    given, wanted = session.get_inputs()[0].name, session.get_outputs()[0].name

    def classify(image: Array) -> Array:
        (logits,) = session.run([wanted], {given: image[None]})
        return np.asarray(logits[0])

    return classify


def _tflite_classifier(model: bytes, threads: int) -> Classifier:
    with without_greeting():  # a campaign's live view may have the terminal
        interpreter = open_interpreter(model, threads=threads)
    (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()

    def classify(image: Array) -> Array:
        interpreter.set_tensor(given["index"], image.transpose(1, 2, 0)[None])
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(wanted["index"])[0])

    return classify


def evaluate(model: bytes, images: Iterable[Array], labels: Iterable[int], *, threads: int = 1) -> float:
    """Return the top-1 accuracy, a fraction, of an ONNX or TFLite model of batch 1, float32 or int8.

    `images` gives preprocessed images of shape (channels, height, width): an array of shape (n, c, h, w), or
    anything that yields one after the other, so that a data set need not fit in memory.
    """
    classify = open_classifier(model, threads=threads)
    correct = total = 0
    for image, label in zip(images, labels, strict=True):
        correct += int(np.argmax(classify(image)) == label)
        total += 1
    if total == 0:
        raise UsageError("accuracy cannot be measured on no images; give at least one")
    return correct / total
