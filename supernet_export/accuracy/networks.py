"""Fit ReLU networks that predict from one-hot architectures, and average several into one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import MissingDependencyError
from fleetnas.fleet_protocol.installing import install_package
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor


@dataclass(frozen=True)
class NetworkSettings:
    """Shape and training of networks; `penalty` is the L2 penalty of scikit-learn's `MLPRegressor`."""

    hidden: tuple[int, ...] = (64, 64)
    penalty: float = 0.1
    epochs: int = 400
    solver: Literal["adam", "lbfgs"] = "adam"  #: lbfgs for few hundred samples


def fit_networks(
    one_hot: NDArray[np.float32], target: NDArray[np.floating[Any]], seeds: Sequence[int], settings: NetworkSettings
) -> AccuracyPredictor:
    """Return one network that averages a network per seed, each fitted on `one_hot` (n, F) from its own start.

    `MissingDependencyError` where scikit-learn is not installed.
    """
    regressor = _regressor()
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    centre, scale = float(target.mean()), float(target.std()) or 1.0
    fitted = []
    for seed in seeds:
        model = regressor(
            hidden_layer_sizes=settings.hidden,
            alpha=settings.penalty,
            solver=settings.solver,
            learning_rate_init=3e-3,
            max_iter=settings.epochs,
            batch_size=min(64, len(target)),
            random_state=seed,
        )
        # Matrices this small are slower on two threads, and many times slower where another program wants one of them.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(one_hot, (target - centre) / scale)
        fitted.append(model)
    return _mean_of(fitted, centre, scale)


def _mean_of(members: Sequence[Any], centre: float, scale: float) -> AccuracyPredictor:
    """Return one network that is the mean of several, with their hidden layers side by side."""
    layers = len(members[0].coefs_)
    weights, biases = [], []
    for layer in range(layers):
        blocks = [np.asarray(member.coefs_[layer]).T for member in members]
        bias = np.concatenate([member.intercepts_[layer] for member in members])
        if layer == layers - 1:
            weight = np.concatenate(blocks, axis=1) * (scale / len(members))
            bias = np.array([bias.mean() * scale + centre])
        else:
            weight = np.concatenate(blocks) if layer == 0 else _block_diagonal(blocks)
        weights.append(weight.astype(np.float32))
        biases.append(bias.astype(np.float32))
    return AccuracyPredictor(weights, biases)


def _block_diagonal(blocks: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    rows, columns = (np.cumsum([0, *(block.shape[axis] for block in blocks)]) for axis in (0, 1))
    found = np.zeros((rows[-1], columns[-1]))
    for i, block in enumerate(blocks):
        found[rows[i] : rows[i + 1], columns[i] : columns[i + 1]] = block
    return found


def _regressor() -> Any:
    try:
        from sklearn.neural_network import MLPRegressor
    except ImportError:
        raise MissingDependencyError(
            "fitting an accuracy predictor needs scikit-learn, which is not installed; "
            f"run: {install_package('scikit-learn')}"
        ) from None
    return MLPRegressor
