"""Gaussian-process regression (Rasmussen and Williams 2006, algorithm 2.1) of a few points.

The width of the kernel is the most likely one of a short list. Values are standardised here; inputs
should be of order 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# points [n, d], points [m, d] and a width → covariances [n, m], 1 for equal points
Kernel = Callable[[Floats, Floats, float], Floats]

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def squared_exponential(a: Floats, b: Floats, width: float) -> Floats:
    """Return the SE kernel exp(−|a − b|² / 2·width²): [n, d] and [m, d] → [n, m]."""
    squares = ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)
    kernel: Floats = np.exp(-squares / (2 * width**2))
    return kernel


@dataclass(frozen=True, eq=False)
class Process:
    """A Gaussian process conditioned on values.

    Attributes:
        points: Points with a value, [n, d].
        kernel: Kernel function.
        width: Width of the kernel.
        noise: Variance of the noise of a value, as a share of the variance of all values.
        root: Cholesky factor of the covariance, [n, n].
        weights: Inverse covariance · standardised values, [n].
        mean: Mean of the values.
        scale: Standard deviation of the values.
    """

    points: Floats
    kernel: Kernel
    width: float
    noise: float
    root: Floats
    weights: Floats
    mean: float
    scale: float

    def at(self, points: Floats) -> tuple[Floats, Floats]:
        """Return the posterior without the noise at points [m, d].

        Returns:
            Mean and standard deviation in the units of the values, [m] each.
        """
        cross = self.kernel(self.points, points, self.width)  # [n, m]
        inner = np.linalg.solve(self.root, cross)
        variance = np.maximum(1 - (inner**2).sum(0), 1e-12)
        return self.mean + self.scale * (cross.T @ self.weights), self.scale * np.sqrt(variance)


def fit(
    points: Floats,
    values: Floats,
    kernel: Kernel = squared_exponential,
    noise: float = 0.01,
    widths: Sequence[float] = WIDTHS,
) -> Process:
    """Fit a process and choose the width with the greatest likelihood.

    Args:
        points: Points with a value, [n, d], n ≥ 1.
        values: Finite values, [n].
        kernel: Kernel function.
        noise: Variance of the noise of a value, as a share of the variance of all; above 0.
        widths: Widths of the kernel to choose from.
    """
    mean = float(values.mean())
    scale = float(values.std()) or 1.0
    standard = (values - mean) / scale
    best: tuple[float, float, Floats, Floats] | None = None
    for width in widths:
        covariance = kernel(points, points, width) + noise * np.eye(len(points))
        root: Floats = np.asarray(np.linalg.cholesky(covariance), np.float64)
        weights: Floats = np.linalg.solve(root.T, np.linalg.solve(root, standard))
        likelihood = float(-0.5 * standard @ weights - np.log(np.diag(root)).sum())
        if best is None or likelihood > best[0]:
            best = likelihood, width, root, weights
    assert best is not None
    return Process(points, kernel, best[1], noise, best[2], best[3], mean, scale)
