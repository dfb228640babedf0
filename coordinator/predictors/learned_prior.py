"""A prior learned from the devices already measured: transfer between devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.device_fit import DeviceFits, MeasuredDevice, fit_devices
from fleetnas.coordinator.predictors.marginal_likelihood import log_likelihoods
from fleetnas.coordinator.predictors.prior import Floats, Hypothesis, Prior
from fleetnas.coordinator.predictors.transfer_hypotheses import Moments, transfer_hypotheses, untransferred

#: Measurements of each known device by which the hypotheses are weighted: as many as a new device gets.
_VOTING_MEASUREMENTS = 30
#: Families whose votes count as much as the hypotheses' own probabilities. The votes of few families are too sceptical
#: of transfer: each is cast under a prior of one family less.
_OWN_VOTES = 2.0
#: Families that vote, at most: those at even distances in the order of their names.
_MOST_VOTING_FAMILIES = 256


def learn_prior(devices: Sequence[MeasuredDevice], groups: Sequence[int] | NDArray[np.intp]) -> Prior:
    """Learn a prior from known devices; see `prior_of_fits`.

    Args:
        devices: at least one; give every batch size or thread count as a device of its own, of one family.
        groups: which columns are of one physical cost, (F,).
    """
    return prior_of_fits(fit_devices(devices, groups))


def prior_of_fits(fits: DeviceFits) -> Prior:
    """Learn a prior: mean and covariance of the weights of known devices, each scaled to the same typical latency.

    The hypotheses are those of `transfer_hypotheses`; their probabilities follow from the likelihood of each known
    device under the hypotheses that the other families give. A family has one vote, shared by its devices. No device is
    fitted again without a family: the moments of the others follow by subtraction. Of more than 256 families, 256 vote,
    spread evenly over their sorted names.

    Raises:
        LinAlgError: the weights of a device could not be computed.
    """
    if not (np.isfinite(fits.weights).all() and np.isfinite(fits.typical_ms).all()):
        raise np.linalg.LinAlgError("the weights of a known device cannot be computed")
    unknown = untransferred(fits.reference, fits.groups)
    sums = _Sums(fits)
    hypotheses = transfer_hypotheses(sums.moments(), unknown, fits.groups)
    votes = _OWN_VOTES * np.array([hypothesis.probability for hypothesis in hypotheses])
    families = list(sums.places)
    for place in _spread(len(families), _MOST_VOTING_FAMILIES) if len(families) > 1 else []:
        left = transfer_hypotheses(sums.moments(without=families[place]), unknown, fits.groups)
        votes += np.mean([_vote(left, fits.devices[member]) for member in sums.places[families[place]]], axis=0)
    return Prior(
        tuple(
            replace(hypothesis, probability=share)
            for hypothesis, share in zip(hypotheses, (votes / votes.sum()).tolist(), strict=True)
        ),
        scale_ms=float(np.exp(np.log(fits.typical_ms).mean())),
    )


class _Sums:
    """Sums over the fits, from which the moments without any one family follow by subtraction."""

    def __init__(self, fits: DeviceFits) -> None:
        self._fits = fits
        #: Places of each family's devices, families in the order of their names.
        self.places: dict[str, list[int]] = {family: [] for family in sorted(set(fits.families))}
        for place, family in enumerate(fits.families):
            self.places[family].append(place)
        self._mean = fits.weights.mean(axis=0)
        self._apart = fits.weights - self._mean
        self._scatter: Floats = self._apart.T @ self._apart
        self._uncertain = fits.covariance(range(len(fits)))

    def moments(self, without: str | None = None) -> Moments:
        """Moments of the weights of all devices, or of those outside one family."""
        left_out = [] if without is None else self.places[without]
        apart = self._apart[left_out]
        count = len(self._fits) - len(left_out)
        moved = -apart.sum(axis=0) / count
        between = (self._scatter - apart.T @ apart) / count - np.multiply.outer(moved, moved)
        uncertain = (self._uncertain - self._fits.covariance(left_out)) / count
        return Moments(self._mean + moved, between, uncertain, len(self.places) - (without is not None))


def _vote(hypotheses: Sequence[Hypothesis], device: MeasuredDevice) -> Floats:
    """Share of each hypothesis in explaining a sample of a device's measurements, (H,); 0 where none explains them."""
    rows = _spread(len(device.latency_ms), _VOTING_MEASUREMENTS)
    logs = log_likelihoods(hypotheses, device.features[rows], device.latency_ms[rows])
    if not np.isfinite(logs).any():
        return np.zeros(len(logs))
    likelihood = np.exp(logs - logs.max())
    found: Floats = likelihood / likelihood.sum()
    return found


def _spread(count: int, most: int) -> NDArray[np.intp]:
    """Return at most `most` places of `count`, at even distances, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.intp))
