"""Fit an accuracy predictor to evaluated subnets, with its error on held-out subnets."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleetnas.device_profiles.text_files import open_text
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import MissingDependencyError, UsageError
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor, HeldOut
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

Floats = NDArray[np.float64]

#: With fewer evaluated subnets a held-out error means nothing.
LEAST_SAMPLES = 50
_LISTS = ("ks", "e", "d", "w")


@dataclass(frozen=True)
class FitSettings:
    """Settings of a fit."""

    held_out_share: float = 0.2
    hidden: tuple[int, ...] = (64, 64)
    members: int = 5  #: networks whose mean is the predictor
    weight_decay: float = 0.1
    epochs: int = 400


def fit_accuracy(
    space: DesignSpace, genomes: Genomes, top1: Floats, rng: np.random.Generator, settings: FitSettings | None = None
) -> AccuracyPredictor:
    """Fit ReLU networks to the evaluated subnets but a held-out share, whose errors the result carries.

    Args:
        space: design space of the genomes.
        genomes: canonical and distinct, (n, G).
        top1: measured accuracy as fractions, (n,).
        rng: splits the samples and seeds the networks.
        settings: defaults serve hundreds to thousands of samples.

    Raises:
        UsageError: too few samples, or accuracies that are no fractions.
        MissingDependencyError: scikit-learn is not installed.
    """
    settings = settings or FitSettings()
    top1 = np.asarray(top1, dtype=np.float64)
    if len(genomes) < LEAST_SAMPLES:
        raise UsageError(
            f"fitting an accuracy predictor needs at least {LEAST_SAMPLES} evaluated subnets, found {len(genomes)}; "
            "evaluate more"
        )
    if not (np.isfinite(top1).all() and top1.min() >= 0 and top1.max() <= 1):
        raise UsageError(f"accuracies must be fractions from 0 to 1; found {np.nanmin(top1):g} to {np.nanmax(top1):g}")
    order = rng.permutation(len(genomes))
    held_out = max(10, round(settings.held_out_share * len(genomes)))
    test, train = order[:held_out], order[held_out:]
    features = space.one_hot(genomes)
    seeds = rng.integers(0, 2**31, settings.members)
    members = [_fit_network(features[train], top1[train], settings, int(seed)) for seed in seeds]
    predictor = _mean_of(members)
    error = predictor.predict(features[test]) - top1[test]
    report = HeldOut(
        samples=len(train),
        held_out=len(test),
        spearman=_spearman(predictor.predict(features[test]), top1[test]),
        mae_percent=100.0 * float(np.abs(error).mean()),
        rmse_percent=100.0 * float(np.sqrt((error**2).mean())),
    )
    return AccuracyPredictor.from_tensors(predictor.tensors(), report)


_Network = tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]


def _fit_network(features: NDArray[np.float32], top1: Floats, settings: FitSettings, seed: int) -> _Network:
    """Fit one network; return weights (inputs, outputs) and biases per layer, in units of accuracy."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor
    except ImportError:
        raise MissingDependencyError(
            "fitting an accuracy predictor needs scikit-learn: pip install 'fleetnas[export]'"
        ) from None
    centre, scale = float(top1.mean()), float(top1.std()) or 1.0
    network = MLPRegressor(
        hidden_layer_sizes=settings.hidden,
        alpha=settings.weight_decay,
        learning_rate_init=3e-3,
        max_iter=settings.epochs,
        batch_size=min(64, len(top1)),
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(features, (top1 - centre) / scale)
    weights, biases = list(network.coefs_), list(network.intercepts_)
    weights[-1], biases[-1] = weights[-1] * scale, biases[-1] * scale + centre
    return weights, biases


def _mean_of(members: list[_Network]) -> AccuracyPredictor:
    """Return one network that is the mean of several, with their hidden layers side by side."""
    layers = len(members[0][0])
    weights, biases = [], []
    for layer in range(layers):
        blocks = [weight[layer].T for weight, _ in members]
        if layer == layers - 1:
            weights.append(np.concatenate(blocks, axis=1) / len(members))
            biases.append(np.mean([bias[layer] for _, bias in members], axis=0))
        else:
            weights.append(np.concatenate(blocks) if layer == 0 else _block_diagonal(blocks))
            biases.append(np.concatenate([bias[layer] for _, bias in members]))
    return AccuracyPredictor([w.astype(np.float32) for w in weights], [b.astype(np.float32) for b in biases])


def _block_diagonal(blocks: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    rows, columns = (np.cumsum([0, *(block.shape[axis] for block in blocks)]) for axis in (0, 1))
    found = np.zeros((rows[-1], columns[-1]))
    for i, block in enumerate(blocks):
        found[rows[i] : rows[i + 1], columns[i] : columns[i + 1]] = block
    return found


def _spearman(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return the rank correlation, ties averaged; 0 if one side does not vary."""
    ranks = []
    for sample in (first, second):
        _, inverse, counts = np.unique(sample, return_inverse=True, return_counts=True)
        rank = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
        ranks.append(rank - rank.mean())
    scale = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float(ranks[0] @ ranks[1]) / scale if scale > 0 else 0.0


def read_evaluated(path: Path | str, space: DesignSpace) -> tuple[Genomes, Floats]:
    """Read genomes (n, G) and top-1 fractions (n,) from a file of evaluated subnets.

    A `.jsonl` file holds a line of `fleetnas evaluate --json` for each. Any other is a CSV: columns `ks`, `e`, `d`, `w`
    hold numbers separated by spaces (those that the space has), `r` the resolution, and `top1_percent` or `top1` (a
    fraction) the accuracy. Of rows with one architecture the mean is taken. Rows at resolutions that the space does not
    have are left out.

    Raises:
        UsageError: the file cannot be read, or a row holds an architecture that is not in the space.
    """
    path = Path(path)
    architectures, top1 = [], []
    try:
        with open_text(path) as file:
            for architecture, accuracy in _json_lines(file, path) if path.suffix == ".jsonl" else _rows(file, path):
                if architecture.r in space.resolutions:
                    architectures.append(architecture)
                    top1.append(accuracy)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as a table of evaluated subnets: {error}; check the path") from None
    if not architectures:
        raise UsageError(
            f"{path} holds no evaluated subnets at {', '.join(map(str, space.resolutions))} pixels; columns r, "
            "top1_percent and, of ks, e, d, w, those that the space has are needed"
        )
    genomes, inverse = np.unique(space.encode(architectures), axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    return genomes.astype(np.int16), np.bincount(inverse, top1) / np.bincount(inverse)


def _json_lines(file: Iterable[str], path: Path) -> Iterator[tuple[Architecture, float]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            evaluated = Architecture.model_validate(found["architecture"]), float(found["accuracy"])
        except (KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{path}, line {number} is no evaluated subnet ({reason}): each must be of `fleetnas evaluate --json`"
            ) from None
        yield evaluated


def _rows(file: Iterable[str], path: Path) -> Iterator[tuple[Architecture, float]]:
    for line, row in enumerate(csv.DictReader(file), start=2):
        yield _row(row, f"{path}, line {line}")


def _row(row: dict[str, str], where: str) -> tuple[Architecture, float]:
    try:
        parts = {key: tuple(float(part) for part in row[key].split()) for key in _LISTS if row.get(key)}
        architecture = Architecture.model_validate({**parts, "r": int(row["r"])})
        accuracy = float(row["top1"]) if row.get("top1") else float(row["top1_percent"]) / 100.0
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{where} is no evaluated subnet ({reason}): columns r, top1_percent (or top1, a fraction) and, of ks, e, "
            "d, w, those that the space has are needed, lists separated by spaces"
        ) from None
    return architecture, accuracy
