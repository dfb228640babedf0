"""Accuracy of an exported model file, by running that file."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fleet_protocol.errors import UsageError
from supernet_export.graph import INPUT, OUTPUT, Array
from supernet_export.session import open_session


def evaluate(model: bytes, images: Iterable[Array], labels: Iterable[int], *, threads: int = 1) -> float:
    """Top-1 accuracy, a fraction, of an ONNX model of batch 1.

    `images` gives preprocessed images of shape (channels, height, width): an array of shape (n, c, h, w), or
    anything that yields one after the other, so that a data set need not fit in memory.
    """
    session = open_session(model, threads=threads)
    correct = total = 0
    for image, label in zip(images, labels, strict=True):
        (logits,) = session.run([OUTPUT], {INPUT: image[None]})
        correct += int(np.argmax(logits[0]) == label)
        total += 1
    if total == 0:
        raise UsageError("accuracy cannot be measured on no images; give at least one")
    return correct / total
