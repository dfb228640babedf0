"""Fit an accuracy predictor to evaluated subnets, with its error on held-out subnets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.accuracy.candidates import (
    Average,
    Candidate,
    Fitted,
    Networks,
    PhysicalGaussianProcess,
    PhysicalRidge,
    PhysicalTrees,
    Ridge,
)
from fleetnas.supernet_export.accuracy.errors import (
    held_out_error,
    noise_ceiling,
    rank_correlation,
    split_half_reliability,
)
from fleetnas.supernet_export.accuracy.link import logistic, logit, with_logistic
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.accuracy.networks import NetworkSettings
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

Floats = NDArray[np.float64]

#: With fewer evaluated subnets a held-out error means nothing.
LEAST_SAMPLES = 50
#: Below this number of subnets, every subnet is held out once, in one of five folds; else a fifth of them is.
FEW_SAMPLES = 500
_FOLDS = 5
#: Assumed where it is not known on how many images accuracies were measured.
_IMAGES = 10_000
#: Rank correlation that a candidate without an exact network must gain over those that have one.
_WORTH_DISTILLING = 0.005
#: Share of measured accuracy in the smoothed target; the rest is what cross-entropy says, which has less noise.
_SMOOTHED = 0.5


@dataclass(frozen=True)
class FitSettings:
    """Settings of networks fitted to many subnets."""

    hidden: tuple[int, ...] = (64, 64)
    members: int = 5  #: networks whose mean is the predictor
    weight_decay: float = 0.1
    epochs: int = 400


@dataclass(frozen=True)
class EvaluatedSubnets:
    """Distinct subnets, canonical genomes (n, G), with what was measured of each, shape (n,), where it is known."""

    genomes: Genomes
    top1: Floats  #: fractions
    cross_entropy: Floats | None = None  #: means, in nats
    top1_even: Floats | None = None  #: on the images 0, 2, 4, ...
    top1_odd: Floats | None = None  #: on the images 1, 3, 5, ...
    images: int | None = None

    def __len__(self) -> int:
        return len(self.genomes)

    def rows(self, chosen: NDArray[Any]) -> EvaluatedSubnets:
        """Return some of the subnets, by their positions or a mask."""

        def of(values: Floats | None) -> Floats | None:
            return None if values is None else values[chosen]

        return EvaluatedSubnets(
            self.genomes[chosen],
            self.top1[chosen],
            of(self.cross_entropy),
            of(self.top1_even),
            of(self.top1_odd),
            self.images,
        )

    @property
    def reliability(self) -> float | None:
        """Split-half reliability of the measured accuracies; None where the halves are not known."""
        if self.top1_even is None or self.top1_odd is None:
            return None
        return split_half_reliability(self.top1_even, self.top1_odd)


@dataclass(frozen=True)
class _Choice:
    """A candidate and its target: measured accuracies, or these smoothed by cross-entropies."""

    candidate: Candidate
    smoothed: bool

    @property
    def name(self) -> str:
        return self.candidate.name + (", cross-entropy used" if self.smoothed else "")

    def fit(self, space: DesignSpace, subnets: EvaluatedSubnets, seed: int) -> Fitted:
        target = logit(subnets.top1, subnets.images or _IMAGES)
        if self.smoothed:
            assert subnets.cross_entropy is not None
            certainty = -np.log(np.maximum(subnets.cross_entropy, 1e-9))
            curve = np.polynomial.Polynomial.fit(certainty, target, 2)
            target = _SMOOTHED * target + (1 - _SMOOTHED) * curve(certainty)
        return self.candidate.fit(space, subnets.genomes, target, seed)


@dataclass(frozen=True)
class FitResult:
    """A fitted predictor, and which kind was chosen, with the rank correlation of each in cross-validation."""

    predictor: AccuracyPredictor
    chosen: str
    compared: dict[str, float]


def fit_accuracy(
    space: DesignSpace,
    genomes: Genomes,
    top1: Floats,
    rng: np.random.Generator,
    settings: FitSettings | None = None,
) -> AccuracyPredictor:
    """Fit a predictor to accuracies alone; see `fit_evaluated`."""
    return fit_evaluated(space, EvaluatedSubnets(genomes, np.asarray(top1, np.float64)), rng, settings).predictor


def fit_evaluated(
    space: DesignSpace, subnets: EvaluatedSubnets, rng: np.random.Generator, settings: FitSettings | None = None
) -> FitResult:
    """Choose a kind of predictor by cross-validation, and fit it to all subnets.

    Its `held_out` error is that of the same procedure without the subnets in question: a kind is chosen without them,
    and fitted without them.

    Args:
        space: design space of the genomes.
        subnets: the evaluated subnets.
        rng: splits the samples and seeds the networks.
        settings: of networks for hundreds to thousands of samples.

    Raises:
        UsageError: too few samples, or accuracies that are no fractions.
        MissingDependencyError: scikit-learn is not installed.
    """
    _check(subnets)
    choices = _choices(subnets, settings or FitSettings())
    order, seed = rng.permutation(len(subnets)), int(rng.integers(0, 2**31))
    compare = _every_subnet_once if len(subnets) < FEW_SAMPLES else _a_fifth
    scores, rows, held_out, samples = compare(space, subnets, choices, order, seed)
    chosen = _best(scores)
    network = with_logistic(chosen.fit(space, subnets, seed).network(np.random.default_rng(seed)))
    report = held_out_error(logistic(held_out), subnets.top1[rows], samples)
    if subnets.reliability is not None:
        report = replace(report, reliability=subnets.reliability, ceiling=noise_ceiling(subnets.reliability))
    compared = {choice.name: score for choice, score in scores.items()}
    return FitResult(AccuracyPredictor.from_tensors(network.tensors(), report), chosen.name, compared)


#: Scores of the choices, the subnets that were held out, their predicted logits, and the samples of each fit.
_Comparison: TypeAlias = "tuple[dict[_Choice, float], NDArray[np.intp], Floats, int]"


def _every_subnet_once(
    space: DesignSpace, subnets: EvaluatedSubnets, choices: list[_Choice], order: NDArray[np.intp], seed: int
) -> _Comparison:
    """Compare choices in five folds; every fold is predicted by the choice that is best in the other folds."""
    rows = np.arange(len(subnets))
    folds = [np.sort(order[start::_FOLDS]) for start in range(_FOLDS)]
    predicted = {choice: _out_of_folds(space, subnets, choice, folds, seed) for choice in choices}
    held_out = np.empty(len(subnets))
    for fold in folds:
        others = np.setdiff1d(rows, fold)
        choice = _best(_scores(predicted, subnets.top1, others))
        held_out[fold] = predicted[choice][fold]
        if not choice.candidate.exact:  # its network is what ships
            network = choice.fit(space, subnets.rows(others), seed).network(np.random.default_rng(seed))
            held_out[fold] = network.predict(space.one_hot(subnets.genomes[fold]))
    return _scores(predicted, subnets.top1, rows), rows, held_out, len(subnets) - len(folds[0])


def _a_fifth(
    space: DesignSpace, subnets: EvaluatedSubnets, choices: list[_Choice], order: NDArray[np.intp], seed: int
) -> _Comparison:
    """Hold a fifth of the subnets out, and compare choices on a fifth of the others."""
    rows, rest = np.split(order, [round(len(subnets) / _FOLDS)])
    others = subnets.rows(rest)
    validation = np.arange(len(rest) // _FOLDS)
    predicted = {choice: _out_of_folds(space, others, choice, [validation], seed) for choice in choices}
    scores = _scores(predicted, others.top1, validation)
    held_out = _best(scores).fit(space, others, seed).predict(subnets.genomes[rows])
    return scores, rows, held_out, len(rest)


def _choices(subnets: EvaluatedSubnets, settings: FitSettings) -> list[_Choice]:
    candidates: list[Candidate] = [Ridge()]
    if len(subnets) < FEW_SAMPLES:
        small = NetworkSettings(hidden=(32,), penalty=3.0, epochs=500, solver="lbfgs")
        networks, process = Networks(small, settings.members), PhysicalGaussianProcess()
        candidates += [networks, PhysicalRidge(), process, Average((networks, process, PhysicalTrees()))]
    else:
        large = NetworkSettings(hidden=settings.hidden, penalty=settings.weight_decay, epochs=settings.epochs)
        candidates.append(Networks(large, settings.members))
    smoothed = [False] if subnets.cross_entropy is None else [False, True]
    return [_Choice(candidate, smooth) for candidate in candidates for smooth in smoothed]


def _out_of_folds(
    space: DesignSpace, subnets: EvaluatedSubnets, choice: _Choice, folds: list[NDArray[np.intp]], seed: int
) -> Floats:
    """Return logits of every fold's subnets from a fit to the others; NaN for subnets in no fold."""
    predicted = np.full(len(subnets), np.nan)
    for fold in folds:
        others = np.setdiff1d(np.arange(len(subnets)), fold)
        predicted[fold] = choice.fit(space, subnets.rows(others), seed).predict(subnets.genomes[fold])
    return predicted


def _scores(predicted: dict[_Choice, Floats], top1: Floats, rows: NDArray[np.intp]) -> dict[_Choice, float]:
    return {choice: rank_correlation(values[rows], top1[rows]) for choice, values in predicted.items()}


def _best(scores: dict[_Choice, float]) -> _Choice:
    """Return the choice of the highest score; one without an exact network must be better by what is worth it."""
    return max(scores, key=lambda choice: scores[choice] - (0 if choice.candidate.exact else _WORTH_DISTILLING))


def _check(subnets: EvaluatedSubnets) -> None:
    top1 = subnets.top1
    if len(subnets) < LEAST_SAMPLES:
        raise UsageError(
            f"fitting an accuracy predictor needs at least {LEAST_SAMPLES} evaluated subnets, found {len(subnets)}; "
            "evaluate more"
        )
    if not (np.isfinite(top1).all() and top1.min() >= 0 and top1.max() <= 1):
        raise UsageError(f"accuracies must be fractions from 0 to 1; found {np.nanmin(top1):g} to {np.nanmax(top1):g}")
