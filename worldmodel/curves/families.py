"""Families of learning curves that do not depend on the learning rate, written for losses.

Domhan, Springenberg & Hutter 2015, table 1. The paper's families rise, as accuracies do; here each
is written as it falls. Some of its eleven are the same curve once their coefficients are free: exp4
and Janoschek are Weibull's, and a falling Hill3 is the log-power. This leaves eight; the
exponential is added. x is the number of completed steps plus 1.

    pow3             c + a·x^−α
    pow4             c + a·(x + b)^−α
    exponential      c + a·exp(−κx)
    Weibull          c + a·exp(−(κx)^δ)
    MMF              c + a / (1 + (κx)^δ)        Morgan–Mercer–Flodin
    log-power        a / (1 + (κx)^δ)
    ilog2            c + a / ln(x + 1)
    vapor pressure   exp(a + b/x + c·ln x)
    log-log linear   −ln(a·ln x + b)

All are fitted by weighted least squares; the paper samples all parameters with MCMC. In the first
six, a ≥ 0 and c follow from the other parameters by regression (separable least squares: Golub &
Pereyra 1973), and the others are searched on a grid that is refined several times. The last three
are linear regressions. So every fit ends and is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trainenv.worldmodel.curves.history import Floats

_CELLS = 10  # grid points in each dimension
_ZOOMS = 4  # number of grids, each finer than the one before
_CLOSER = 0.35  # range of a grid, as a share of the range of the grid before

Fit = Callable[[Floats], Floats]
"""A fitted curve: losses [m] at x [m]."""


class Family(Protocol):
    """A family of learning curves."""

    def fit(self, x: Floats, losses: Floats, weights: Floats) -> Fit:
        """Return the curve closest to some losses by weighted least squares.

        Args:
            x: [n] positions, at least 1.
            losses: [n] losses in nats.
            weights: [n] weights; they sum to 1.
        """
        ...


@dataclass(frozen=True)
class Separable:
    """The family c + a·g(x ÷ now; p): a and c follow by regression, one or two p by search.

    Args:
        shape: Function g, which returns [G, n] at x ÷ now [n] and parameters [d, G, 1].
        ranges: Lower and upper bound of each parameter; the search is on a logarithmic scale.
        offset: False for c = 0.
    """

    shape: Callable[[Floats, Floats], Floats]
    ranges: tuple[tuple[float, float], ...]
    offset: bool = True

    def fit(self, x: Floats, losses: Floats, weights: Floats) -> Fit:
        """Search a grid, then finer grids around the best point."""
        now = x[-1]
        low, high = np.log(np.array(self.ranges)).T  # [d]
        width = high - low
        best = (low + high) / 2
        for _ in range(_ZOOMS):
            first = np.maximum(low, best - width / 2)
            last = np.minimum(high, best + width / 2)
            axes = [np.linspace(*ends, _CELLS) for ends in zip(first, last)]
            grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])  # [d, G]
            a, c, errors = self._regress(
                self.shape(x / now, np.exp(grid)[:, :, None]), losses, weights
            )
            chosen = int(np.argmin(errors))
            best = grid[:, chosen]
            width = width * _CLOSER
        parameters = np.exp(best)[:, None, None]
        scale = float(a[chosen])
        offset = float(c[chosen])

        def fitted(at: Floats) -> Floats:
            losses: Floats = offset + scale * self.shape(at / now, parameters)[0]
            return losses

        return fitted

    def _regress(self, g: Floats, losses: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Return a ≥ 0, c and the weighted squared error of G candidates with shapes g [G, n]."""
        middle = np.zeros(len(g))
        level = 0.0
        if self.offset:
            middle = g @ weights
            level = float(losses @ weights)
        centred = g - middle[:, None]
        a = np.maximum(
            (centred * weights) @ (losses - level) / np.maximum((centred**2) @ weights, 1e-30), 0.0
        )
        c = level - a * middle
        return a, c, ((c[:, None] + a[:, None] * g - losses) ** 2) @ weights


@dataclass(frozen=True)
class Linked:
    """A family that is linear in its parameters after a transformation of the loss.

    Args:
        features: Function that returns features [n, d] at x [n].
        link: Function that transforms losses.
        inverse: Inverse of `link`.
    """

    features: Callable[[Floats], Floats]
    link: Callable[[Floats], Floats]
    inverse: Callable[[Floats], Floats]

    def fit(self, x: Floats, losses: Floats, weights: Floats) -> Fit:
        """Fit the transformed losses by weighted linear regression."""
        root = np.sqrt(weights)
        coefficients = np.linalg.lstsq(
            self.features(x) * root[:, None], self.link(losses) * root, rcond=1e-10
        )[0]

        def fitted(at: Floats) -> Floats:
            return self.inverse(self.features(at) @ coefficients)

        return fitted


def _saturating(x: Floats, p: Floats) -> Floats:
    """Return 1 / (1 + (κx)^δ)."""
    powers: Floats = (p[0] * x) ** p[1]
    return 1 / (1 + powers)


FAMILIES: Mapping[str, Family] = {
    "pow3": Separable(lambda x, p: x ** -p[0], ((0.03, 5.0),)),
    "pow4": Separable(lambda x, p: (x + p[1]) ** -p[0], ((0.03, 5.0), (1e-3, 3.0))),
    "log-log-linear": Linked(
        lambda x: np.stack([np.log(x), np.ones_like(x)], axis=1),
        lambda losses: np.exp(-losses),
        lambda z: -np.log(np.clip(z, 1e-300, 1.0)),
    ),
    "vapor-pressure": Linked(
        lambda x: np.stack([np.ones_like(x), 1 / x, np.log(x)], axis=1),
        np.log,
        lambda z: np.exp(np.clip(z, -50.0, 50.0)),
    ),
    "mmf": Separable(_saturating, ((0.1, 100.0), (0.2, 5.0))),
    "weibull": Separable(lambda x, p: np.exp(-((p[0] * x) ** p[1])), ((0.1, 100.0), (0.1, 3.0))),
    "log-power": Separable(_saturating, ((1e-3, 100.0), (0.03, 5.0)), offset=False),
    "ilog2": Linked(
        lambda x: np.stack([np.ones_like(x), 1 / np.log(x + 1)], axis=1), np.array, np.array
    ),
    "exponential": Separable(lambda x, p: np.exp(-p[0] * x), ((0.1, 100.0),)),
}
DOMHAN: tuple[str, ...] = tuple(name for name in FAMILIES if name != "exponential")
