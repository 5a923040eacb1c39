"""Risk that means what it says: calibrated P(divergence), and limits on risk and disagreement with a guarantee.

`Platt` and `Isotonic` map a forecast probability to a calibrated one. Neither has a finite-sample
guarantee: measure them on trunks held out. Divergences are few, so they start from Platt's (two
numbers; one below `least_positives`), not from isotonic.

`risk_limit` is conformal risk control (Angelopoulos, Bates, Fisch, Lei & Schuster 2024,
arXiv:2208.02814): with R_k(τ) the share of trunk k's rows that have a risk < τ and diverge, it is
the greatest τ with

    (Σ_k R_k(τ) + 1) / (K + 1) ≤ α

and guarantees E[R(τ)] ≤ α on a new trunk, exchangeable with the K: the probability that a random
row of it is let through *and* diverges (not that of diverging if let through, which is no monotone
loss). Pass only the rows that diverged, and it bounds the share of divergences let through instead,
among trunks that have any.

`disagreement_limit` is a conformal quantile: a random row of a new trunk disagrees more with
probability ≤ α. It says how rarely one abstains without need, not how wrong the rest is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trainenv.types import UserError
from trainenv.worldmodel.conformal.quantile import (
    Array,
    aligned,
    conformal_quantile,
    share,
    trunk_codes,
)


@dataclass(frozen=True, kw_only=True)
class Platt:
    """p → 1/(1 + e^−(slope·logit p + intercept)): Platt 1999, with his smoothed targets; Newton's method as in Lin et al. 2007.

    Each trunk has the mass of one, so K₊ and K₋ (which sum to the number of trunks K) are effective
    numbers of diverged and sound trunks, and the targets (K₊ + 1)/(K₊ + 2) and 1/(K₋ + 2) keep any
    risk off 0 and 1.
    """

    slope: float = 1.0
    intercept: float = 0.0

    @classmethod
    def fit(
        cls, risk: ArrayLike, diverged: ArrayLike, *, trunks: ArrayLike, least_positives: int = 5
    ) -> Platt:
        """From forecast probabilities and what happened (0 or 1), [n] each.

        With fewer than `least_positives` trunks that diverged the slope stays 1; one that would
        reverse the ranking becomes 0.
        """
        p, y, mass, codes = _labelled(risk, diverged, trunks)
        x = _logit(p)
        positive = float(mass @ y)
        negative = float(mass @ (1 - y))
        target = np.where(y > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
        if len(np.unique(codes[y > 0])) < least_positives:
            return cls(slope=1.0, intercept=_newton(x, target, mass, free=False)[1])
        slope, intercept = _newton(x, target, mass, free=True)
        if slope < 0:
            slope = 0.0
            intercept = float(_logit(mass @ target / mass.sum()))
        return cls(slope=slope, intercept=intercept)

    def __call__(self, risk: ArrayLike) -> Array:
        """Calibrated probabilities, [n]."""
        return _sigmoid(self.slope * _logit(_probabilities(risk)) + self.intercept)

    @property
    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Platt:
        return cls(**state)


@dataclass(frozen=True, kw_only=True)
class Isotonic:
    """The non-decreasing step fit of least squares (pool adjacent violators), linear between its corners, trunks of mass one.

    Kept between 1/(K + 2) and its complement for K trunks: none that diverged at a risk is no proof
    that none would.
    """

    risk: tuple[float, ...]
    calibrated: tuple[float, ...]

    @classmethod
    def fit(cls, risk: ArrayLike, diverged: ArrayLike, *, trunks: ArrayLike) -> Isotonic:
        """From forecast probabilities and what happened (0 or 1), [n] each; wants some tens of trunks that diverged."""
        p, y, mass, codes = _labelled(risk, diverged, trunks)
        x, index = np.unique(p, return_inverse=True)
        weight = np.bincount(index, mass)
        level = _pool(np.bincount(index, mass * y) / weight, weight.astype(np.float64))
        least = 1 / (codes.max() + 3)
        return cls(
            risk=tuple(x.tolist()), calibrated=tuple(np.clip(level, least, 1 - least).tolist())
        )

    def __call__(self, risk: ArrayLike) -> Array:
        """Calibrated probabilities, [n]."""
        return np.interp(_probabilities(risk), self.risk, self.calibrated)

    @property
    def state(self) -> dict[str, Any]:
        return {"risk": list(self.risk), "calibrated": list(self.calibrated)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Isotonic:
        return cls(risk=tuple(state["risk"]), calibrated=tuple(state["calibrated"]))


def risk_limit(
    risk: ArrayLike,
    diverged: ArrayLike,
    *,
    alpha: float,
    trunks: ArrayLike,
    decisions: ArrayLike | None = None,
) -> float:
    """The limit below which a risk may be let through; −inf where there are too few trunks to let anything through.

    Args:
        risk: what is forecast, [n], on any scale: a probability, or an upper quantile.
        diverged: what it cost to let through, [n], 0 to 1.
        alpha: bound on the expected cost, above 0 and below 1.
        trunks: which run each row belongs to, [n].
        decisions: which decision (within its trunk) each row was a candidate of, [n]. Where given,
            a decision costs as much as its worst candidate let through, so that the bound holds
            whichever of them a planner picks, by any rule.
    """
    share("alpha", alpha)
    r, cost = aligned(risk=risk, diverged=diverged)
    if cost.min() < 0 or cost.max() > 1:
        raise UserError(
            f"diverged must lie between 0 and 1, found {cost.min():g} to {cost.max():g}"
        )
    codes = trunk_codes(trunks, len(r))
    units = (
        np.arange(len(r)) if decisions is None else _pairs(codes, trunk_codes(decisions, len(r)))
    )
    trunk_of = np.zeros(units.max() + 1, dtype=np.intp)  # [units]
    trunk_of[units] = codes
    mass = 1 / np.bincount(trunk_of)[trunk_of]
    order = np.argsort(r, kind="stable")
    # Letting rows through from the least risk upwards; a limit at a row's own risk is the greatest
    # that keeps it out.
    so_far = np.zeros(len(mass))
    budget = alpha * (codes.max() + 2) - 1 + 1e-9
    spent = 0.0
    if budget < 0:
        return -math.inf
    for row in order.tolist():
        unit = units[row]
        spent += max(0.0, cost[row] - so_far[unit]) * mass[unit]
        so_far[unit] = max(so_far[unit], cost[row])
        if spent > budget:
            return float(r[row])
    return math.inf


def disagreement_limit(disagreement: ArrayLike, *, alpha: float = 0.1, trunks: ArrayLike) -> float:
    """Abstain where the ensemble's disagreement is above this: on a share ≤ α of what is like the rows given (picks, say).

    Raises:
        UserError: too few trunks for a finite limit (an infinite one would never abstain).
    """
    (values,) = aligned(disagreement=disagreement)
    limit = conformal_quantile(values, alpha=share("alpha", alpha), trunks=trunks)
    if math.isinf(limit):
        count = len(np.unique(np.asarray(trunks)))
        needed = math.ceil(1 / alpha - 1e-9) - 1
        raise UserError(
            f"alpha = {alpha} needs finite disagreements of {needed} trunks, found {count}; raise alpha or add some"
        )
    return limit


def _labelled(
    risk: ArrayLike, diverged: ArrayLike, trunks: ArrayLike
) -> tuple[Array, Array, Array, Any]:
    """Probabilities, labels, masses (one a trunk) and trunks of the rows, [n] each."""
    p = _probabilities(risk)
    y = aligned(risk=risk, diverged=diverged)[1]
    if not np.isin(y, (0, 1)).all():
        raise UserError(f"diverged must be 0 or 1, found {y[~np.isin(y, (0, 1))][0]:g}")
    codes = trunk_codes(trunks, len(p))
    return p, y, 1 / np.bincount(codes)[codes], codes


def _probabilities(risk: ArrayLike) -> Array:
    (p,) = aligned(risk=risk)
    if p.min() < 0 or p.max() > 1:
        raise UserError(
            f"risk must lie between 0 and 1, found {p.min():g} to {p.max():g}; pass a probability"
        )
    return p


def _logit(p: Any) -> Any:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(p) - np.log1p(-p)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(x / 2))  # no overflow, unlike 1/(1 + e^−x)


def _newton(x: Array, target: Array, mass: Array, *, free: bool) -> tuple[float, float]:
    """Slope and intercept of least cross-entropy; the slope stays 1 unless `free`.

    It is convex: halve any step that climbs.
    """

    def loss(at: Array) -> float:
        z = at[0] * x + at[1]
        return float(mass @ (np.logaddexp(0, z) - target * z))

    at = np.array([1.0, 0.0])
    for _ in range(100):
        p = _sigmoid(at[0] * x + at[1])
        design = np.stack([x * free, np.ones_like(x)])  # [2, n]
        gradient = design @ (mass * (p - target))
        hessian = (design * (mass * p * (1 - p))) @ design.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        length = 1.0
        while length > 1e-9 and loss(at - length * step) > loss(at):
            length /= 2
        at = at - length * step
        if np.abs(step).max() < 1e-10:
            break
    return float(at[0]), float(at[1])


def _pool(level: Array, weight: Array) -> Array:
    """Pool adjacent violators: the non-decreasing sequence nearest to `level`, [n]."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for block in zip(level.tolist(), weight.tolist(), [1] * len(level)):
        while blocks and blocks[-1][0] >= block[0]:
            mean, mass, length = blocks.pop()
            total = mass + block[1]
            block = ((mean * mass + block[0] * block[1]) / total, total, length + block[2])
        blocks.append(block)
    return np.repeat(np.array([mean for mean, _, _ in blocks]), [length for _, _, length in blocks])


def _pairs(trunks: Any, decisions: Any) -> Any:
    """One number from 0 a pair, [n]."""
    return np.unique(np.stack([trunks, decisions]), axis=1, return_inverse=True)[1].reshape(-1)
