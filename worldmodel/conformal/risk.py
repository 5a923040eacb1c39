"""Calibrated probabilities of divergence, and limits on risk and disagreement with a guarantee.

`Platt` and `Isotonic` map a forecast probability to a calibrated one. Neither has a finite-sample
guarantee: evaluate them on held-out trunks. Divergences are rare, so prefer Platt's method, which
has two parameters, or one if fewer than `least_positives` trunks diverged.

`risk_limit` is conformal risk control (Angelopoulos, Bates, Fisch, Lei & Schuster 2024,
arXiv:2208.02814). Let R_k(τ) be the share of trunk k's rows that have a risk < τ and diverge. The
limit is the greatest τ with

    (Σ_k R_k(τ) + 1) / (K + 1) ≤ α

It guarantees E[R(τ)] ≤ α on a new trunk that is exchangeable with the K: the probability that a
random row is let through *and* diverges. (The probability of divergence among rows let through is
no monotone loss.) With rows that diverged alone, it bounds the share of divergences let through,
over trunks that have any.

`disagreement_limit` is a conformal quantile: a random row of a new trunk exceeds it with
probability ≤ α. So it bounds how often one abstains without need, not the errors of the other rows.
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
    """Logistic calibration with smoothed targets (Platt 1999; Newton's method: Lin et al. 2007).

        p → 1/(1 + e^−(slope·logit p + intercept))

    Each trunk has a mass of 1. K₊ and K₋ are the masses of diverged and sound rows; they sum to the
    number of trunks K. The targets (K₊ + 1)/(K₊ + 2) and 1/(K₋ + 2) keep every risk away from 0
    and 1.
    """

    slope: float = 1.0
    intercept: float = 0.0

    @classmethod
    def fit(
        cls, risk: ArrayLike, diverged: ArrayLike, *, trunks: ArrayLike, least_positives: int = 5
    ) -> Platt:
        """Fit slope and intercept; a slope that would reverse the ranking becomes 0.

        Args:
            risk: [n] forecast probabilities.
            diverged: [n] outcomes, 0 or 1.
            trunks: [n] trunks of the rows.
            least_positives: Number of diverged trunks below which the slope stays 1.
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
        """Return calibrated probabilities, [n]."""
        return _sigmoid(self.slope * _logit(_probabilities(risk)) + self.intercept)

    @property
    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Platt:
        return cls(**state)


@dataclass(frozen=True, kw_only=True)
class Isotonic:
    """Isotonic calibration by pool adjacent violators, linear between the steps' corners.

    Each of the K trunks has a mass of 1. Probabilities are kept between 1/(K + 2) and its
    complement, because a risk at which no trunk diverged may still be above 0.
    """

    risk: tuple[float, ...]
    calibrated: tuple[float, ...]

    @classmethod
    def fit(cls, risk: ArrayLike, diverged: ArrayLike, *, trunks: ArrayLike) -> Isotonic:
        """Fit the steps; this needs some tens of trunks that diverged.

        Args:
            risk: [n] forecast probabilities.
            diverged: [n] outcomes, 0 or 1.
            trunks: [n] trunks of the rows.
        """
        p, y, mass, codes = _labelled(risk, diverged, trunks)
        x, index = np.unique(p, return_inverse=True)
        weight = np.bincount(index, mass)
        level = _pool(np.bincount(index, mass * y) / weight, weight.astype(np.float64))
        least = 1 / (codes.max() + 3)
        calibrated = np.clip(level, least, 1 - least)
        return cls(risk=tuple(x.tolist()), calibrated=tuple(calibrated.tolist()))

    def __call__(self, risk: ArrayLike) -> Array:
        """Return calibrated probabilities, [n]."""
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
    """Return the limit below which a risk is let through; −inf if there are too few trunks for any.

    Args:
        risk: [n] forecast risks on any scale, for instance probabilities or upper quantiles.
        diverged: [n] costs of letting the rows through, from 0 to 1.
        alpha: Bound on the expected cost, above 0 and below 1.
        trunks: [n] trunks of the rows.
        decisions: [n] decisions, within the trunk, of which the rows were candidates. If given, a
            decision costs as much as its worst candidate let through, so the bound holds for any
            rule by which a planner picks. None makes each row its own decision.
    """
    share("alpha", alpha)
    r, cost = aligned(risk=risk, diverged=diverged)
    if cost.min() < 0 or cost.max() > 1:
        raise UserError(
            f"diverged must lie between 0 and 1, found {cost.min():g} to {cost.max():g}; "
            "scale the costs"
        )
    codes = trunk_codes(trunks, len(r))
    units = np.arange(len(r))
    if decisions is not None:
        units = _pairs(codes, trunk_codes(decisions, len(r)))
    trunk_of = np.zeros(units.max() + 1, dtype=np.intp)  # [units]
    trunk_of[units] = codes
    mass = 1 / np.bincount(trunk_of)[trunk_of]
    order = np.argsort(r, kind="stable")
    # Let rows through from the lowest risk upwards. A limit equal to a row's own risk is the
    # greatest that keeps it out.
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
    """Return the disagreement above which to abstain: on a share ≤ α of rows like those given.

    Args:
        disagreement: [n] disagreements of the ensemble, for instance on picked candidates.
        alpha: Share of rows to abstain on, above 0 and below 1.
        trunks: [n] trunks of the rows.

    Raises:
        UserError: there are too few trunks for a finite limit; an infinite one never abstains.
    """
    (values,) = aligned(disagreement=disagreement)
    limit = conformal_quantile(values, alpha=share("alpha", alpha), trunks=trunks)
    if math.isinf(limit):
        count = len(np.unique(np.asarray(trunks)))
        needed = math.ceil(1 / alpha - 1e-9) - 1
        raise UserError(
            f"alpha = {alpha} needs finite disagreements of {needed} trunks, found {count}; "
            "raise alpha or add trunks"
        )
    return limit


def _labelled(
    risk: ArrayLike, diverged: ArrayLike, trunks: ArrayLike
) -> tuple[Array, Array, Array, Any]:
    """Check rows and return probabilities, labels, masses (1 per trunk) and trunks, [n] each."""
    p = _probabilities(risk)
    y = aligned(risk=risk, diverged=diverged)[1]
    if not np.isin(y, (0, 1)).all():
        wrong = y[~np.isin(y, (0, 1))][0]
        raise UserError(f"diverged must be 0 or 1, found {wrong:g}; pass what happened")
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
    """Return slope and intercept with the least cross-entropy; the slope stays 1 unless `free`.

    The cross-entropy is convex, so halving every step that increases it is enough.
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
    """Return the non-decreasing sequence [n] nearest to `level`, by pool adjacent violators."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for block in zip(level.tolist(), weight.tolist(), [1] * len(level)):
        while blocks and blocks[-1][0] >= block[0]:
            mean, mass, length = blocks.pop()
            total = mass + block[1]
            block = ((mean * mass + block[0] * block[1]) / total, total, length + block[2])
        blocks.append(block)
    return np.repeat(np.array([mean for mean, _, _ in blocks]), [length for _, _, length in blocks])


def _pairs(trunks: Any, decisions: Any) -> Any:
    """Number the distinct pairs of trunk and decision from 0, [n]."""
    return np.unique(np.stack([trunks, decisions]), axis=1, return_inverse=True)[1].reshape(-1)
