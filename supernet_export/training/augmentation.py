"""Distort whole batches of images at random, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Distortion:
    """Limits of rotation, scale, shear and shift, each drawn per image, uniform between minus and plus its limit.

    Rotation in radians, shift in pixels, scale and shear as fractions. What comes in from outside is 0.
    """

    rotation: float
    scale: float
    shear: float
    shift: float

    def __call__(self, images: Floats, rng: np.random.Generator) -> Floats:
        """Return distorted images of shape (n, side, side), sampled bilinearly."""
        count, side, _ = images.shape
        limits = np.array([self.rotation, self.scale, self.shear, self.shift, self.shift])
        angle, scale, shear, down, across = rng.uniform(-limits, limits, (count, 5)).T
        cos, sin, zoom = np.cos(angle), np.sin(angle), 1 + scale
        rotation = np.stack([np.stack([cos, -sin]), np.stack([sin, cos])])
        shearing = np.stack([np.stack([np.ones(count), shear]), np.stack([np.zeros(count), np.ones(count)])])
        matrix = np.einsum("ijn,jkn->nik", rotation, shearing) * zoom[:, None, None]
        centre = (side - 1) / 2
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij")).reshape(2, -1) - centre
        points = matrix @ grid + centre + np.stack([down, across], axis=1)[:, :, None]
        return _sampled(images, points).reshape(images.shape)


def _sampled(images: Floats, points: NDArray[np.float64]) -> Floats:
    """Sample images (n, side, side) bilinearly at points (n, 2, p); shape (n, p)."""
    side = images.shape[-1]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    # One row of zeros around: points farther away are treated like points on it.
    y, x = np.clip(points + 1, 0, side + 1).transpose(1, 0, 2)
    top, left = np.minimum(y.astype(np.intp), side), np.minimum(x.astype(np.intp), side)
    dy, dx = y - top, x - left
    row = np.arange(len(images))[:, None]
    above = padded[row, top, left] * (1 - dx) + padded[row, top, left + 1] * dx
    below = padded[row, top + 1, left] * (1 - dx) + padded[row, top + 1, left + 1] * dx
    sampled: Floats = (above * (1 - dy) + below * dy).astype(np.float32)
    return sampled
