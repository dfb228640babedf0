"""A covariance as what measurements have taken away from the prior's, which many devices share."""

from __future__ import annotations

import numpy as np

from coordinator.predictors.prior import Floats


class Covariance:
    """A matrix (F, F) that only ever loses root @ root.T.

    Few measurements are kept as their roots: a thousand devices then hold one prior's matrix between them, and an
    update costs less than a pass over it. Once the roots are half as many as features, they are taken off for good.
    """

    def __init__(self, prior: Floats) -> None:
        #: The matrix is rest - roots @ roots.T; `rest` (F, F) is the prior's own while roots (F, k) are few.
        self.rest, self.roots = prior, np.zeros((len(prior), 0))

    def lose(self, root: Floats) -> None:
        """Take off root @ root.T, root (F, k)."""
        self.roots = np.concatenate([self.roots, root], axis=1)
        if 2 * self.roots.shape[1] > len(self.rest):
            self.rest = self.rest - self.roots @ self.roots.T
            self.roots = np.zeros((len(self.rest), 0))

    def times(self, x: Floats) -> Floats:
        """Its product with x.T, (F, k), for rows x (k, F)."""
        found: Floats = self.rest @ x.T
        if self.roots.shape[1]:
            found -= self.roots @ (self.roots.T @ x.T)
        return found
