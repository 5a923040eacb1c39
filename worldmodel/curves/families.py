"""Families of learning curves that know nothing of the learning rate (Domhan, Springenberg & Hutter 2015, table 1), for losses.

The paper's families rise, as accuracies do; here each is written as it falls. Of its eleven, some
are one and the same curve once their coefficients are free: exp4 and Janoschek are Weibull's, and
Hill3 falling is the log-power. Eight are left, and the exponential beside them. x is the number of
steps completed plus 1.

    pow3         c + a·x^−α                 MMF             c + a / (1 + (κx)^δ)
    (Morgan–Mercer–Flodin) pow4         c + a·(x + b)^−α           log-power       a / (1 + (κx)^δ)
    exponential  c + a·exp(−κx)             ilog2           c + a / ln(x + 1) Weibull      c +
    a·exp(−(κx)^δ)         vapor pressure  exp(a + b/x + c·ln x)
                                            log-log linear  −ln(a·ln x + b)

Fitted by weighted least squares. The paper samples all parameters with MCMC; here a and c follow
from the others by regression (separable least squares: Golub & Pereyra 1973), and these are
searched on a grid that zooms in, with a ≥ 0. The last three of the table are linear regressions. So
every fit ends, and ends the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trainenv.worldmodel.curves.history import Floats

_CELLS = 10  # of the grid, a dimension
_ZOOMS = 4
_CLOSER = 0.35  # what a zoom leaves of the range

Fit = Callable[[Floats], Floats]
"""A fitted curve: losses [m] at x [m]."""


class Family(Protocol):
    """A shape of learning curves."""

    def fit(self, x: Floats, losses: Floats, weights: Floats) -> Fit:
        """The curve closest to losses [n] at x [n] ≥ 1, by least squares with weights [n] that sum to 1."""
        ...


@dataclass(frozen=True)
class Separable:
    """c + a·g(x ÷ now; p): two numbers by regression, up to two by search.

    Args:
        shape: g, [G, n], at x ÷ now [n] and parameters [d, G, 1].
        ranges: from and to of each parameter; searched on a logarithmic scale.
        offset: whether there is a c.
    """

    shape: Callable[[Floats, Floats], Floats]
    ranges: tuple[tuple[float, float], ...]
    offset: bool = True

    def fit(self, x: Floats, losses: Floats, weights: Floats) -> Fit:
        """Search the grid, then closer around the best, several times."""
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
        """The a ≥ 0, the c and the weighted squared error of each candidate [G], from its shape [G, n]."""
        middle, level = (
            (g @ weights, float(losses @ weights)) if self.offset else (np.zeros(len(g)), 0.0)
        )
        centred = g - middle[:, None]
        a = np.maximum(
            (centred * weights) @ (losses - level) / np.maximum((centred**2) @ weights, 1e-30), 0.0
        )
        c = level - a * middle
        return a, c, ((c[:, None] + a[:, None] * g - losses) ** 2) @ weights


@dataclass(frozen=True)
class Linked:
    """A family that is linear once the loss is transformed.

    Args:
        features: [n, d] at x [n].
        link: of losses to what is linear.
        inverse: of `link`.
    """

    features: Callable[[Floats], Floats]
    link: Callable[[Floats], Floats]
    inverse: Callable[[Floats], Floats]

    def fit(self, x: Floats, losses: Floats, weights: Floats) -> Fit:
        """Ordinary weighted least squares of the transformed losses."""
        root = np.sqrt(weights)
        coefficients = np.linalg.lstsq(
            self.features(x) * root[:, None], self.link(losses) * root, rcond=1e-10
        )[0]

        def fitted(at: Floats) -> Floats:
            return self.inverse(self.features(at) @ coefficients)

        return fitted


def _saturating(x: Floats, p: Floats) -> Floats:
    """1 / (1 + (κx)^δ)."""
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
