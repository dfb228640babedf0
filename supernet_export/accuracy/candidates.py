"""Define the kinds of predictors that a fit compares: what they see of a subnet, and how they become a network.

All predict logits. A kind that sees more than one-hot genes cannot be written as a network over one-hot genes. Then a
network is fitted to its predictions of thousands of subnets, which cost nothing (distillation).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import MissingDependencyError
from fleetnas.fleet_protocol.installing import install_package
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.accuracy.networks import NetworkSettings, fit_networks
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

Floats = NDArray[np.float64]

#: Subnets that a network learns from another predictor, and its shape.
_DISTILLED = 4000
_STUDENT = NetworkSettings(hidden=(64, 64), penalty=1e-3, epochs=60)
_STUDENT_MEMBERS = 2
_PENALTIES = np.logspace(-2, 4, 25)


class Fitted(ABC):
    """A fitted predictor of logits."""

    @abstractmethod
    def predict(self, genomes: Genomes) -> Floats:
        """Return the logits of genomes (n, G), shape (n,)."""

    @abstractmethod
    def network(self, rng: np.random.Generator) -> AccuracyPredictor:
        """Return it as a network over one-hot genes that predicts logits."""


class Candidate(ABC):
    """A kind of predictor that can be fitted."""

    name: str
    #: Whether its network predicts exactly what it does.
    exact: bool = True

    @abstractmethod
    def fit(self, space: DesignSpace, genomes: Genomes, target: Floats, seed: int) -> Fitted:
        """Fit to logits (n,) of genomes (n, G)."""


@dataclass(frozen=True)
class Networks(Candidate):
    """ReLU networks over one-hot genes, averaged."""

    settings: NetworkSettings
    members: int
    name: str = "networks over one-hot genes"

    def fit(self, space: DesignSpace, genomes: Genomes, target: Floats, seed: int) -> Fitted:
        """Fit `members` networks from the starts that follow `seed`."""
        seeds = range(seed, seed + self.members)
        return _Network(space, fit_networks(space.one_hot(genomes), target, seeds, self.settings))


@dataclass(frozen=True)
class Ridge(Candidate):
    """Ridge regression on one-hot genes; its penalty is chosen by leave-one-out."""

    name: str = "ridge regression on one-hot genes"

    def fit(self, space: DesignSpace, genomes: Genomes, target: Floats, seed: int) -> Fitted:
        """Fit; `seed` is not needed."""
        del seed
        features, centre, scale = _standardised(space.one_hot(genomes))
        model = _sklearn().RidgeCV(_PENALTIES).fit(features, target)
        weight = np.asarray(model.coef_, np.float64) / scale
        bias = float(model.intercept_) - float(weight @ centre)
        network = AccuracyPredictor([weight[None].astype(np.float32)], [np.array([bias], np.float32)])
        return _Network(space, network)


@dataclass(frozen=True)
class PhysicalRidge(Candidate):
    """Ridge regression on one-hot genes and logarithms of physical costs, such as MACs and weights."""

    name: str = "ridge regression on one-hot genes and physical costs"
    exact: bool = False

    def fit(self, space: DesignSpace, genomes: Genomes, target: Floats, seed: int) -> Fitted:
        """Fit; `seed` is not needed."""
        del seed
        features, centre, scale = _standardised(_described(space, genomes))
        return _Teacher(space, genomes, _sklearn().RidgeCV(_PENALTIES).fit(features, target), (centre, scale))


@dataclass(frozen=True)
class PhysicalGaussianProcess(Candidate):
    """Gaussian process on the same, with a linear and a smooth kernel; its scales are those of greatest likelihood."""

    name: str = "Gaussian process on one-hot genes and physical costs"
    exact: bool = False

    def fit(self, space: DesignSpace, genomes: Genomes, target: Floats, seed: int) -> Fitted:
        """Fit, from one start; `seed` is not needed."""
        del seed
        import warnings

        features, centre, scale = _standardised(_described(space, genomes))
        modules = _sklearn()
        kernels, width = modules.kernels, features.shape[1]
        smooth = kernels.ConstantKernel(1.0) * kernels.RBF(np.sqrt(width))
        linear = kernels.ConstantKernel(1.0 / width) * kernels.DotProduct(0.0, "fixed")
        kernel = smooth + linear + kernels.WhiteKernel(0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", modules.ConvergenceWarning)
            model = modules.GaussianProcessRegressor(kernel, normalize_y=True).fit(features, target)
        return _Teacher(space, genomes, model, (centre, scale))


@dataclass(frozen=True)
class PhysicalTrees(Candidate):
    """Gradient-boosted trees on the same, drawn with a seed."""

    name: str = "boosted trees on one-hot genes and physical costs"
    exact: bool = False

    def fit(self, space: DesignSpace, genomes: Genomes, target: Floats, seed: int) -> Fitted:
        """Fit 300 trees of depth 3, each to a random part of the subnets and features."""
        features, centre, scale = _standardised(_described(space, genomes))
        model = _sklearn().GradientBoostingRegressor(
            n_estimators=300, learning_rate=0.05, max_depth=3, subsample=0.6, max_features=0.3, random_state=seed
        )
        return _Teacher(space, genomes, model.fit(features, target), (centre, scale))


@dataclass(frozen=True)
class Average(Candidate):
    """The mean of several kinds: their errors differ, so that the mean's is smaller."""

    members: tuple[Candidate, ...]
    name: str = "mean of networks, Gaussian process and boosted trees"
    exact: bool = False

    def fit(self, space: DesignSpace, genomes: Genomes, target: Floats, seed: int) -> Fitted:
        """Fit every member."""
        return _Average(space, genomes, tuple(member.fit(space, genomes, target, seed) for member in self.members))


@dataclass(frozen=True)
class _Network(Fitted):
    space: DesignSpace
    fitted: AccuracyPredictor

    def predict(self, genomes: Genomes) -> Floats:
        return self.fitted.predict(self.space.one_hot(genomes)).astype(np.float64)

    def network(self, rng: np.random.Generator) -> AccuracyPredictor:
        return self.fitted


@dataclass(frozen=True)
class _Teacher(Fitted):
    """A regression of scikit-learn's over all features."""

    space: DesignSpace
    genomes: Genomes  #: that it was fitted to
    model: Any
    standard: tuple[Floats, Floats]

    def predict(self, genomes: Genomes) -> Floats:
        centre, scale = self.standard
        found: Floats = np.asarray(self.model.predict((_described(self.space, genomes) - centre) / scale), np.float64)
        return found

    def network(self, rng: np.random.Generator) -> AccuracyPredictor:
        return _distilled(self, self.space, self.genomes, rng)


@dataclass(frozen=True)
class _Average(Fitted):
    space: DesignSpace
    genomes: Genomes
    members: tuple[Fitted, ...]

    def predict(self, genomes: Genomes) -> Floats:
        found: Floats = np.mean([member.predict(genomes) for member in self.members], axis=0)
        return found

    def network(self, rng: np.random.Generator) -> AccuracyPredictor:
        return _distilled(self, self.space, self.genomes, rng)


def _distilled(teacher: Fitted, space: DesignSpace, genomes: Genomes, rng: np.random.Generator) -> AccuracyPredictor:
    """Fit networks to a teacher's predictions of its own subnets and of drawn ones, small and large."""
    # The same draw as an evaluation's, which this room does not import.
    leaning = rng.random((_DISTILLED // 2, 1))
    shape = (_DISTILLED // 2, space.gene_count)
    drawn = space.canonical(rng.binomial(space.cardinalities - 1, leaning, shape).astype(np.int16))
    pool = np.unique(np.concatenate([genomes, drawn, space.sample(_DISTILLED // 2, rng)]), axis=0)
    seeds: Sequence[int] = rng.integers(0, 2**31, _STUDENT_MEMBERS).tolist()
    return fit_networks(space.one_hot(pool), teacher.predict(pool), seeds, _STUDENT)


def _described(space: DesignSpace, genomes: Genomes) -> Floats:
    """Return one-hot genes, genes as numbers, which of them matter, and logarithms of total costs."""
    one_hot, ordinal = space.one_hot(genomes), genomes / np.maximum(space.cardinalities - 1, 1)
    totals = np.log1p(space.costs(genomes).sum(axis=1))
    found: Floats = np.concatenate([one_hot, ordinal, space.active(genomes), totals], axis=1, dtype=np.float64)
    return found


def _standardised(features: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Return features of mean 0 and deviation 1, with the means and deviations; constant ones become 0."""
    found = np.asarray(features, np.float64)
    centre, deviation = found.mean(axis=0), found.std(axis=0)
    scale = np.where(deviation > 1e-9, deviation, np.inf)
    return (found - centre) / scale, centre, scale


def _sklearn() -> Any:
    """Return the parts of scikit-learn that candidates need; `MissingDependencyError` where it is not installed."""
    from types import SimpleNamespace

    try:
        from sklearn.ensemble import GradientBoostingRegressor
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor, kernels
        from sklearn.linear_model import RidgeCV
    except ImportError:
        raise MissingDependencyError(
            "fitting an accuracy predictor needs scikit-learn, which is not installed; "
            f"run: {install_package('scikit-learn')}"
        ) from None
    return SimpleNamespace(
        ConvergenceWarning=ConvergenceWarning,
        GaussianProcessRegressor=GaussianProcessRegressor,
        GradientBoostingRegressor=GradientBoostingRegressor,
        RidgeCV=RidgeCV,
        kernels=kernels,
    )
