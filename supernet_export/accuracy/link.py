"""Map between accuracies and the scale on which subnets' effects add up, and write that map as network layers.

Near perfect accuracy one change of a subnet moves accuracy less than elsewhere, and its logit as much as elsewhere. So
predictors are fitted to logits. The map back is the logistic function, here piecewise linear, which one layer of ReLUs
holds exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetnas.supernet_export.accuracy.model import AccuracyPredictor

Values = NDArray[np.floating[Any]]

#: Logits between which the logistic function is taken as linear; that errs by 0.0013 of an accuracy at most.
_KNOTS = np.concatenate([[-10.0, -8.0, -7.0, -6.0], np.linspace(-5.0, 5.0, 33), [6.0, 7.0, 8.0, 10.0]])


def logit(accuracy: Values, images: int) -> NDArray[np.float64]:
    """Return log odds of accuracies on `images` images, half an image added to either side, so that all are finite."""
    right = (np.asarray(accuracy, np.float64) * images + 0.5) / (images + 1)
    found: NDArray[np.float64] = np.log(right / (1 - right))
    return found


def logistic(logits: Values) -> NDArray[np.float64]:
    """Return the accuracies of log odds."""
    found: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(np.asarray(logits, np.float64), -50, 50)))
    return found


def with_logistic(predictor: AccuracyPredictor) -> AccuracyPredictor:
    """Return a network that predicts accuracies from one that predicts logits: two small layers more."""
    tensors = predictor.tensors()
    layers = len(tensors) // 2
    weights = [tensors[f"{layer}.weight"].astype(np.float64) for layer in range(layers)]
    biases = [tensors[f"{layer}.bias"].astype(np.float64) for layer in range(layers)]
    low, values = _KNOTS[0], logistic(_KNOTS)
    slopes = np.diff(values) / np.diff(_KNOTS)
    # One unit holds the logit above the lowest knot; the next layer has a unit for each change of slope.
    biases[-1] = biases[-1] - low
    weights += [np.ones((len(slopes), 1)), np.concatenate([slopes[:1], np.diff(slopes)])[None]]
    biases += [low - _KNOTS[:-1], values[:1]]
    return AccuracyPredictor([w.astype(np.float32) for w in weights], [b.astype(np.float32) for b in biases])
