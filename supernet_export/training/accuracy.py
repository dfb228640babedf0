"""Evaluate subnets in their exported form, and fit an accuracy predictor on them, without torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import MissingDependencyError
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor, HeldOut
from fleetnas.supernet_export.calibration.estimate import estimate_statistics
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.evaluation.images import ImageSource
from fleetnas.supernet_export.graph import INPUT, OUTPUT, Graph, Statistics
from fleetnas.supernet_export.interpreters.onnxruntime import open_session
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

Floats = NDArray[np.float32]
#: The graph of an architecture, with its own batch-norm statistics where they are given.
SliceSubnet = Callable[[Architecture, Statistics | None], Graph]


@dataclass(frozen=True)
class Scores:
    """Scores of one subnet: top-1 accuracy, a fraction, and mean cross-entropy, in nats."""

    accuracy: float
    cross_entropy: float


def calibrated_graph(slice_subnet: SliceSubnet, architecture: Architecture, calibration: ImageSource) -> Graph:
    """Return a subnet with batch-norm statistics of its own, as an export writes it."""
    batches = calibration.calibration_batches(architecture.r, np.random.default_rng(0))
    return slice_subnet(architecture, estimate_statistics(slice_subnet(architecture, None), batches))


def evaluate_subnet(
    slice_subnet: SliceSubnet, architecture: Architecture, calibration: ImageSource, test: ImageSource
) -> Scores:
    """Slice, calibrate and emit a subnet like an export, and run it on `test` in onnxruntime, all images at once."""
    images, labels = np.stack(list(test.images(architecture.r))), np.asarray(test.labels)
    model = emit_onnx(calibrated_graph(slice_subnet, architecture, calibration), batch=len(images))
    (logits,) = open_session(model).run([OUTPUT], {INPUT: images})
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_likelihood = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return Scores(
        accuracy=float((logits.argmax(axis=1) == labels).mean()),
        cross_entropy=float(-log_likelihood[np.arange(len(labels)), labels].mean()),
    )


def stratified_genomes(space: DesignSpace, count: int, rng: np.random.Generator) -> Genomes:
    """Draw canonical genomes from the smallest subnets to the largest.

    Uniform genomes are all of middling size. Here each genome first draws how large it leans, evenly between 0 and 1,
    and then each gene from a binomial distribution of that mean.
    """
    leaning = rng.random((count, 1))
    genomes = rng.binomial(space.cardinalities - 1, leaning, (count, space.gene_count))
    return space.canonical(genomes.astype(np.int16))


def fit_predictor(
    one_hot: Floats, accuracy: Floats, *, hidden: Sequence[int], members: int, penalty: float, seed: int
) -> AccuracyPredictor:
    """Fit one ReLU network that averages `members` networks, each fitted on `one_hot` (n, F) from its own start.

    `penalty` is the L2 penalty of scikit-learn's `MLPRegressor`. `MissingDependencyError` where it is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise MissingDependencyError(
            "fitting an accuracy predictor needs scikit-learn, which is not installed; "
            "run: pip install 'fleetnas[digits]'"
        ) from error
    centre, scale = float(accuracy.mean()), float(accuracy.std())
    fitted = []
    for member in range(members):
        model = MLPRegressor(
            hidden_layer_sizes=tuple(hidden), alpha=penalty, solver="lbfgs", max_iter=2000, random_state=seed + member
        )
        # Matrices this small are slower on two threads, and many times slower where another program wants one of them.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(one_hot, (accuracy - centre) / scale)
        fitted.append(model)
    weights, biases = [], []
    for layer in range(len(hidden) + 1):
        blocks = [np.asarray(model.coefs_[layer]).T for model in fitted]
        if layer == 0:
            weight = np.concatenate(blocks)
        elif layer < len(hidden):
            weight = _block_diagonal(blocks)
        else:
            weight = np.concatenate(blocks, axis=1) * (scale / members)
        bias = np.concatenate([model.intercepts_[layer] for model in fitted])
        if layer == len(hidden):
            bias = np.array([bias.mean() * scale + centre])
        weights.append(weight.astype(np.float32))
        biases.append(bias.astype(np.float32))
    return AccuracyPredictor(weights, biases)


def held_out_error(predicted: Floats, measured: Floats, samples: int) -> HeldOut:
    """Return the error of `predicted` against `measured` accuracies, fractions, shape (n,), of a fit on `samples`."""
    error = 100 * (predicted.astype(np.float64) - measured)
    return HeldOut(
        samples=samples,
        held_out=len(measured),
        spearman=float(np.corrcoef(_ranks(predicted), _ranks(measured))[0, 1]),
        mae_percent=float(np.abs(error).mean()),
        rmse_percent=float(np.sqrt((error**2).mean())),
    )


def _ranks(values: Floats) -> NDArray[np.float64]:
    """Return ranks from 0; ties share their mean rank."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts + 1) / 2)[group]
    return ranks


def _block_diagonal(blocks: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    rows, columns = sum(block.shape[0] for block in blocks), sum(block.shape[1] for block in blocks)
    whole = np.zeros((rows, columns))
    row = column = 0
    for block in blocks:
        whole[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return whole
