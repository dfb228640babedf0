"""The baseline of arXiv 2101.00732: a network of one base device, fine-tuned on a few measurements of another."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fleetnas.coordinator.predictors.prior import Floats

_WIDTH = 64
_BASE_STEPS, _BASE_RATE = 3000, 3e-3
_TUNING_STEPS, _TUNING_RATE = 200, 1e-3
_BATCH = 128
_WEIGHT_DECAY = 1e-2


class FineTunedNetwork:
    """Two hidden ReLU layers on standardised features, trained with Adam on latency relative to its mean."""

    def __init__(self, features: Floats, latency_ms: Floats, rng: np.random.Generator) -> None:
        """Train on the base device's (n, F) features and (n,) latencies."""
        self._centre, deviation = features.mean(axis=0), features.std(axis=0)
        self._scale = np.where(deviation > 1e-9, deviation, 1.0)
        self._level = float(latency_ms.mean())
        sizes = (features.shape[1], _WIDTH, _WIDTH, 1)
        self._layers = [
            (rng.normal(0.0, np.sqrt(2.0 / inward), (inward, outward)), np.zeros(outward))
            for inward, outward in pairwise(sizes)
        ]
        self._layers[-1][0][:] *= 0.01  # starts at the mean latency
        self._train(features, latency_ms / self._level, _BASE_STEPS, _BASE_RATE, rng)

    def fine_tune(self, features: Floats, latency_ms: Floats, rng: np.random.Generator) -> None:
        """Continue on a new device's (k, F) features and (k,) latencies, from the base device's weights."""
        self._level *= float(np.median(latency_ms / self.predict(features)))
        self._train(features, latency_ms / self._level, _TUNING_STEPS, _TUNING_RATE, rng)

    def predict(self, features: Floats) -> Floats:
        """Latency in ms, (n,)."""
        found: Floats = np.maximum(self._forward(self._standard(features))[-1][:, 0], 0.05) * self._level
        return found

    def _standard(self, features: Floats) -> Floats:
        found: Floats = (features - self._centre) / self._scale
        return found

    def _forward(self, x: Floats) -> list[Floats]:
        activations = [x]
        for depth, (weight, bias) in enumerate(self._layers):
            x = x @ weight + bias
            if depth < len(self._layers) - 1:
                x = np.maximum(x, 0.0)
            activations.append(x)
        activations[-1] = activations[-1] + 1.0  # around the mean latency
        return activations

    def _train(self, features: Floats, target: Floats, steps: int, rate: float, rng: np.random.Generator) -> None:
        x = self._standard(features)
        moments = [(np.zeros_like(p), np.zeros_like(p)) for layer in self._layers for p in layer]
        for step in range(1, steps + 1):
            rows = rng.integers(0, len(x), min(_BATCH, len(x)))
            gradients = self._gradients(x[rows], target[rows])
            now = rate * (1.0 - step / (steps + 1.0))
            parameters = [p for layer in self._layers for p in layer]
            for parameter, gradient, (first, second) in zip(parameters, gradients, moments, strict=True):
                first += 0.1 * (gradient - first)
                second += 0.001 * (gradient**2 - second)
                update = (first / (1.0 - 0.9**step)) / (np.sqrt(second / (1.0 - 0.999**step)) + 1e-8)
                parameter -= now * (update + _WEIGHT_DECAY * parameter)

    def _gradients(self, x: Floats, target: Floats) -> list[Floats]:
        activations = self._forward(x)
        error = 2.0 * (activations[-1][:, 0] - target)[:, None] / len(x)
        found: list[Floats] = []
        for depth in range(len(self._layers) - 1, -1, -1):
            found = [activations[depth].T @ error, error.sum(axis=0), *found]
            if depth:
                error = (error @ self._layers[depth][0].T) * (activations[depth] > 0)
        return found
