"""A Gaussian process in a page: a handful of points, a few dimensions, the kernel's width by maximum likelihood.

Rasmussen and Williams 2006, algorithm 2.1. Values are standardised, inputs are to be of order 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kernel = Callable[
    [Floats, Floats, float], Floats
]  # of points [n, d], points [m, d] and a width: [n, m], 1 where they are equal

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def squared_exponential(a: Floats, b: Floats, width: float) -> Floats:
    """SE kernel: exp(−|a − b|² / 2·width²), [n, m]."""
    squares = ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)
    kernel: Floats = np.exp(-squares / (2 * width**2))
    return kernel


@dataclass(frozen=True, eq=False)
class Process:
    """A Gaussian process that has seen values.

    Attributes:
        points: [n, d] where.
        kernel: with its width.
        width: of the kernel.
        noise: variance of a value, in parts of the variance of all.
        root: [n, n] Cholesky factor of the covariance.
        weights: [n] inverse covariance · standardised values.
        mean: of the values.
        scale: their standard deviation.
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
        """Mean and standard deviation, without the noise, at points [m, d]; [m] each, in the units of the values."""
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
    """The process with the most likely of the widths.

    Args:
        points: [n, d], n ≥ 1.
        values: [n], finite.
        kernel: see `Kernel`.
        noise: variance of a value, in parts of the variance of all; above 0.
        widths: of the kernel, to choose from.
    """
    mean = float(values.mean())
    scale = float(values.std()) or 1.0
    standard = (values - mean) / scale
    best: tuple[float, float, Floats, Floats] | None = None
    for width in widths:
        root: Floats = np.asarray(
            np.linalg.cholesky(kernel(points, points, width) + noise * np.eye(len(points))),
            np.float64,
        )
        weights: Floats = np.linalg.solve(root.T, np.linalg.solve(root, standard))
        likelihood = float(-0.5 * standard @ weights - np.log(np.diag(root)).sum())
        if best is None or likelihood > best[0]:
            best = likelihood, width, root, weights
    assert best is not None
    return Process(points, kernel, best[1], noise, best[2], best[3], mean, scale)
