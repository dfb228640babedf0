"""Evaluate subnets in their exported form: sliced, calibrated, emitted like an export, and run on images in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import InterpreterName, Precision
from fleetnas.supernet_export.calibration.subnet import SliceSubnet, calibrate_subnet
from fleetnas.supernet_export.evaluation.classifier import open_classifier
from fleetnas.supernet_export.evaluation.prepared_images import PreparedImages
from fleetnas.supernet_export.graph import INPUT, OUTPUT, Array, Graph
from fleetnas.supernet_export.interpreters.onnxruntime import open_session
from fleetnas.supernet_export.model_file import emit
from fleetnas.supernet_export.quantisation import Ranges

#: Images that one inference takes: more gain nothing on one thread, and cost memory.
_BATCH = 32


@dataclass(frozen=True)
class Scores:
    """Scores of one subnet on all images, and on the even and the odd ones, from whose agreement its noise is known."""

    images: int
    correct_even: int
    correct_odd: int
    cross_entropy: float  #: mean over the images, in nats

    @property
    def accuracy(self) -> float:
        """Top-1, a fraction."""
        return (self.correct_even + self.correct_odd) / self.images

    @property
    def accuracy_even(self) -> float:
        """Top-1 on images 0, 2, 4, ..., a fraction."""
        return self.correct_even / ((self.images + 1) // 2)

    @property
    def accuracy_odd(self) -> float:
        """Top-1 on images 1, 3, 5, ..., a fraction; that of all where there is but one image."""
        return self.correct_odd / (self.images // 2) if self.images > 1 else self.accuracy


def calibrated_graph(
    slice_subnet: SliceSubnet, architecture: Architecture, images: PreparedImages, precision: Precision = "fp32"
) -> tuple[Graph, Ranges | None]:
    """Return a subnet with batch-norm statistics of its own, and for int8 the ranges of its activations."""
    found = calibrate_subnet(slice_subnet, architecture, lambda: images.calibration_batches(architecture.r), precision)
    return slice_subnet(architecture, found.statistics), found.ranges


def evaluate_subnet(
    slice_subnet: SliceSubnet,
    architecture: Architecture,
    images: PreparedImages,
    *,
    runtime: InterpreterName = "onnxruntime",
    precision: Precision = "fp32",
) -> Scores:
    """Slice, calibrate and emit a subnet like an export, and run it on one thread on all evaluation images.

    An ONNX file has a free batch here and is otherwise the file that ships; a TFLite file is that file.
    """
    graph, ranges = calibrated_graph(slice_subnet, architecture, images, precision)
    labels = np.asarray(images.labels)
    right: list[NDArray[np.bool_]] = []
    likelihood = 0.0
    for start, logits in _batched_logits(graph, ranges, runtime, images.evaluation(architecture.r)):
        wanted = labels[start : start + len(logits)]
        right.append(logits.argmax(axis=1) == wanted)
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        likelihood += float((shifted[np.arange(len(wanted)), wanted] - np.log(np.exp(shifted).sum(axis=1))).sum())
    correct = np.concatenate(right)
    return Scores(
        images=len(correct),
        correct_even=int(correct[::2].sum()),
        correct_odd=int(correct[1::2].sum()),
        cross_entropy=-likelihood / len(correct),
    )


def _batched_logits(
    graph: Graph, ranges: Ranges | None, runtime: InterpreterName, images: Array
) -> Iterator[tuple[int, Array]]:
    """Yield the number of a batch's first image, and its logits (n, classes)."""
    if runtime == "litert":
        classify = open_classifier(emit(graph, runtime, ranges))
        for start in range(0, len(images), _BATCH):
            yield start, np.stack([classify(np.asarray(image)) for image in images[start : start + _BATCH]])
        return
    session = open_session(emit(graph, runtime, ranges, batch=None))
    for start in range(0, len(images), _BATCH):
        (logits,) = session.run([OUTPUT], {INPUT: np.ascontiguousarray(images[start : start + _BATCH])})
        yield start, logits
