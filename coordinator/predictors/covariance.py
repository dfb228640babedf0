"""Covariances as what measurements have taken away from the prior's, which many devices share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fleetnas.coordinator.predictors.prior import Floats


class Covariances:
    """H matrices (F, F) that only ever lose root @ root.T.

    Few measurements are kept as their roots: a thousand devices then hold one prior's matrices between them, and an
    update costs less than a pass over them. Once the roots are half as many as features, they are taken off for good.
    """

    def __init__(self, priors: Sequence[Floats]) -> None:
        #: Each is rest - roots @ roots.T; `rests`, H times (F, F), are the priors' own while roots (H, F, k) are few.
        #: Hypotheses often share one.
        self.rests = list(priors)
        self.roots = np.zeros((len(self.rests), len(self.rests[0]), 0))

    def lose(self, roots: Floats) -> None:
        """Take off root @ root.T of each, roots (H, F, k)."""
        self.roots = np.concatenate([self.roots, roots], axis=2)
        if 2 * self.roots.shape[2] > self.roots.shape[1]:
            self.rests = [rest - root @ root.T for rest, root in zip(self.rests, self.roots, strict=True)]
            self.roots = self.roots[:, :, :0]

    def times(self, x: Floats) -> Floats:
        """Their products with x.T, (H, F, k), for rows x (k, F)."""
        products = {id(rest): rest for rest in self.rests}
        products = {key: rest @ x.T for key, rest in products.items()}
        found = np.stack([products[id(rest)] for rest in self.rests])
        if self.roots.shape[2]:
            found -= self.roots @ (self.roots.transpose(0, 2, 1) @ x.T)
        return found

    def spread(self, x: Floats) -> Floats:
        """Variances of x @ w, (H, k), for rows x (k, F)."""
        found: Floats = np.einsum("kf,hfk->hk", x, self.times(x))
        return found
