"""Shared prior covariances minus low-rank updates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.prior import Floats


class Covariances:
    """H covariance matrices (F, F), each a base matrix minus `factor @ factor.T`.

    While the measurements are few they are kept as factors: a thousand devices then share one prior's matrices, and an
    update costs less than one pass over a matrix. Once a factor has more than half as many columns as there are
    features, it is subtracted from its base.
    """

    def __init__(self, priors: Sequence[Floats]) -> None:
        """Start from the prior covariances, H times (F, F); equal ones may be one object, and are not copied."""
        #: H times (F, F): the priors' own matrices until a factor is subtracted from them.
        self.bases = list(priors)
        #: The low-rank updates, (H, F, k).
        self.factors = np.zeros((len(self.bases), len(self.bases[0]), 0))

    def downdate(self, factors: Floats) -> None:
        """Subtract `factor @ factor.T` from each matrix; factors (H, F, k)."""
        self.factors = np.concatenate([self.factors, factors], axis=2)
        if 2 * self.factors.shape[2] > self.factors.shape[1]:
            self.bases = [base - factor @ factor.T for base, factor in zip(self.bases, self.factors, strict=True)]
            self.factors = self.factors[:, :, :0]

    def times(self, x: Floats) -> Floats:
        """Multiply each matrix by `x.T`, for rows x (k, F); returns (H, F, k)."""
        products = {id(base): base for base in self.bases}
        products = {key: base @ x.T for key, base in products.items()}
        found = np.stack([products[id(base)] for base in self.bases])
        if self.factors.shape[2]:
            found -= self.factors @ (self.factors.transpose(0, 2, 1) @ x.T)
        return found

    def variances(self, x: Floats) -> Floats:
        """Variances of `x @ w` under each matrix, (H, k), for rows x (k, F)."""
        found: Floats = np.einsum("kf,hfk->hk", x, self.times(x))
        return found


class PriorProducts:
    """Products X C X' of a prior's distinct covariances with the features of measured architectures."""

    def __init__(self, priors: Sequence[Floats]) -> None:
        """Start from the prior covariances, H times (F, F); equal ones should be one object."""
        distinct = {id(covariance): covariance for covariance in priors}
        places = {key: place for place, key in enumerate(distinct)}
        self._covariances = list(distinct.values())
        #: Place of each hypothesis's covariance among the distinct ones, (H,).
        self._place: NDArray[np.intp] = np.array([places[id(covariance)] for covariance in priors], dtype=np.intp)

    def of(self, seen: Floats, x: Floats) -> tuple[Floats, Floats]:
        """Return prior covariances of latencies under each hypothesis.

        Args:
            seen: features of known architectures, (n, F).
            x: of further ones, (k, F).

        Returns: of the known ones with the further ones, (H, n, k), and of these among themselves, (H, k, k).
        """
        crossed = np.array([covariance @ x.T for covariance in self._covariances])
        return (seen @ crossed)[self._place], (x @ crossed)[self._place]
