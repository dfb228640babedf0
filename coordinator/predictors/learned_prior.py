"""A prior learned from the devices already measured: transfer between devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.prior import Floats, Hypothesis, Prior, hierarchical_prior
from fleetnas.coordinator.predictors.transfer_hypotheses import Moments, transfer_hypotheses, untransferred
from fleetnas.fleet_protocol.errors import UsageError

_FIT_ROUNDS = 12
#: Student-t degrees of freedom of a known device's residuals: measurements have long upper tails.
_DEGREES_OF_FREEDOM = 4.0
#: Measurements of each known device by which the hypotheses are weighted: as many as a new device gets.
_VOTING_MEASUREMENTS = 30


@dataclass(frozen=True)
class MeasuredDevice:
    """The measurements of one device setting."""

    name: str
    family: str  #: settings of one device (batch sizes, thread counts) are of one family
    features: Floats  #: (n, F)
    latency_ms: Floats  #: (n,)


@dataclass(frozen=True)
class DeviceFit:
    """A known device's weights per unit of its typical latency, with their posterior covariance."""

    weights: Floats  #: (F,), scaled so that the typical architecture takes 1
    covariance: Floats  #: (F, F)
    typical_ms: float
    discrepancy: float  #: robust standard deviation of the residuals, relative to the latency


def fit_device(device: MeasuredDevice, base: Prior) -> DeviceFit:
    """Fit a device's weights: maximum a posteriori under `base`, Student-t residuals; n may be small."""
    x, y = device.features, device.latency_ms
    hypothesis = base.hypotheses[len(base.hypotheses) // 2]
    level = float(np.median(y / np.maximum(x @ hypothesis.mean, 0.05)))
    target = y / level
    # Whitened by the prior's factor, so that a singular prior covariance needs no inverse.
    values, vectors = np.linalg.eigh(hypothesis.covariance)
    factor = vectors * np.sqrt(np.maximum(values, 0.0))
    factor = factor[:, values > 1e-12 * values[-1]]
    white = (x @ factor) / target[:, None]
    residual_target = 1.0 - (x @ hypothesis.mean) / target
    weights, discrepancy = np.ones(len(y)), 0.05
    for _ in range(_FIT_ROUNDS):
        gram = (white * weights[:, None]).T @ white
        system = gram / discrepancy**2 + np.eye(factor.shape[1])
        solution = np.linalg.solve(system, white.T @ (weights * residual_target) / discrepancy**2)
        residual = residual_target - white @ solution
        discrepancy = max(1.4826 * float(np.median(np.abs(residual))), 1e-3)
        weights = (_DEGREES_OF_FREEDOM + 1.0) / (_DEGREES_OF_FREEDOM + (residual / discrepancy) ** 2)
    found = hypothesis.mean + factor @ solution
    spread = factor @ np.linalg.solve(system, factor.T)
    return DeviceFit(found, spread, level, discrepancy)


def learn_prior(devices: Sequence[MeasuredDevice], groups: Sequence[int] | NDArray[np.intp]) -> Prior:
    """Learn a prior: mean and covariance of the weights of known devices, each scaled to the same typical latency.

    The hypotheses are those of `transfer_hypotheses`; their probabilities follow from the likelihood of each known
    device under the hypotheses that the other families give.

    Args:
        devices: at least one; give every batch size or thread count as a device of its own, of one family.
        groups: which columns are of one physical cost, (F,).
    """
    if not devices:
        raise UsageError("a prior is learned from at least one measured device; use hierarchical_prior without any")
    reference = np.concatenate([device.features for device in devices])
    base = hierarchical_prior(reference, groups, own=0.25)
    fits = [fit_device(device, base) for device in devices]
    typical = reference.mean(axis=0)
    fits = [_rescaled(fit, float(typical @ fit.weights)) for fit in fits]
    unknown = untransferred(reference, groups)
    families = sorted({device.family for device in devices})
    hypotheses = transfer_hypotheses(_moments(fits, len(families)), unknown, groups)
    votes = np.ones(len(hypotheses))
    for family in families if len(families) > 1 else []:
        others = [fit for fit, device in zip(fits, devices, strict=True) if device.family != family]
        left = transfer_hypotheses(_moments(others, len(families) - 1), unknown, groups)
        for device in (device for device in devices if device.family == family):
            logs = np.array([_log_likelihood(device, hypothesis) for hypothesis in left])
            likelihood = np.exp(logs - logs.max())
            votes += len(left) * likelihood / likelihood.sum()
    return Prior(
        tuple(
            replace(hypothesis, probability=share)
            for hypothesis, share in zip(hypotheses, (votes / votes.sum()).tolist(), strict=True)
        ),
        scale_ms=float(np.exp(np.mean([np.log(fit.typical_ms) for fit in fits]))),
    )


def _rescaled(fit: DeviceFit, level: float) -> DeviceFit:
    return DeviceFit(fit.weights / level, fit.covariance / level**2, fit.typical_ms * level, fit.discrepancy)


def _moments(fits: Sequence[DeviceFit], families: int) -> Moments:
    """Moments of a device's weights over the fits."""
    weights = np.array([fit.weights for fit in fits])
    mean = weights.mean(axis=0)
    apart = weights - mean
    return Moments(mean, apart.T @ apart / len(fits), np.mean([fit.covariance for fit in fits], axis=0), families)


def _log_likelihood(device: MeasuredDevice, hypothesis: Hypothesis) -> float:
    """Log marginal likelihood of a sample of a device's measurements under a hypothesis."""
    rows = np.linspace(0, len(device.latency_ms) - 1, min(_VOTING_MEASUREMENTS, len(device.latency_ms))).astype(int)
    rows = np.unique(rows)
    predictor = BayesianPredictor(Prior((hypothesis,)))
    predictor.update(device.features[rows], device.latency_ms[rows])
    return predictor.log_evidence()
