"""Fits of the multi-power law to one loss curve, or to several of one model, around a belief.

Each fit is least squares on ln loss with Huber's loss (Luo et al. 2025: δ = 1e-3), in coordinates
without units, from several starts.

A constant learning rate carries no information about B, C, β and γ. So each coordinate has a prior
belief with a centre and a width. It counts like one more row of the curve: its residual is δ where
the coordinate is one width away from its centre. Informative rows outweigh it.

Deviations from the paper's fit: the beliefs; δ is the noise of the rows where that exceeds 1e-3,
because noisy rows would otherwise weigh too much; trust-region least squares with exact derivatives
instead of L-BFGS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainenv.worldmodel.curves.history import Floats, History
from trainenv.worldmodel.curves.law import Changes, Ends, Law, gather

ROWS = 96  # rows of a curve that are fitted, each a mean of neighbouring rows
_DELTA = 1e-3  # Huber's δ, relative to the loss
_EVALUATIONS = 100  # most evaluations of the residuals from one start

# Coordinates of a law, at a sum of learning rates S, a learning rate η and a loss L (`Scale`):
#
#     0  L₀/L                    4  ln(C·η^−γ·S)
#     1  ln(A·S^−α/L)            5  ln β
#     2  ln α                    6  γ
#     3  ln(B·η / (α·A·S^−α))
#
# Coordinate 3 compares the gain of annealing with the gain of e times the steps at a constant rate.
# Models agree best in it: it was ln 1.2 for the published 25M curves, ln 1.4 for the 400M curves,
# and ln 0.4 and ln 0.8 for a tiny run (0.12 M parameters, 1500 steps) at learning rates of 1e-3 and
# 3e-3. In all of them half of the gain showed after 0.6–2 % of S.
CENTRE = np.array([0.75, np.log(0.2), np.log(0.4), np.log(0.9), np.log(30.0), np.log(1.5), 0.5])
WIDTH = np.array([0.3, 1.0, 0.5, 0.5, 1.0, 0.5, 0.3])
_LOWEST = np.array([0.0, np.log(1e-4), np.log(0.02), np.log(0.01), np.log(0.3), np.log(0.05), 0.0])
_HIGHEST = np.array([1.0, np.log(20.0), np.log(4.0), np.log(20.0), np.log(1e4), np.log(8.0), 1.5])


class Scale(NamedTuple):
    """Units in which a law is measured, all above 0.

    Attributes:
        sum: Sum of learning rates.
        lr: Learning rate.
        loss: Loss in nats.
    """

    sum: float
    lr: float
    loss: float


class Curve(NamedTuple):
    """A history in blocks of rows, with gathered changes, for a fit.

    Attributes:
        sums: [n] mean S of the measured rows of each block.
        losses: [n] mean loss of these rows, in nats.
        changes: [M] changes of the learning rate in the whole history, after its warm-up.
        first_sum: S at the end of the warm-up, or at the first row.
        last_sum: S now.
        last_lr: Learning rate now.
        greatest_lr: Greatest learning rate so far, the warm-up included.
    """

    sums: Floats
    losses: Floats
    changes: Changes
    first_sum: float
    last_sum: float
    last_lr: float
    greatest_lr: float


def curve(history: History, *, recent: float = 0.0) -> Curve:
    """Gather a history into at most `ROWS` blocks.

    Rows before the share `recent` of S are left out; their changes are kept.
    """
    rising = np.append(np.diff(history.lrs) > 0, False)
    start = int(np.argmin(rising))  # the end of the warm-up; 0 without one
    sums = history.lr_sums
    lrs = history.lrs
    ends = blocks(len(lrs) - start, ROWS)
    gaps = np.diff(history.steps[start:], prepend=history.steps[start])
    changes, _ = gather(lrs[start], sums[start], gaps, lrs[start:], ends)
    measured = (
        history.measured & (np.arange(len(lrs)) >= start) & (sums >= recent * sums[-1]) & (sums > 0)
    )
    block = np.searchsorted(ends, np.flatnonzero(measured) - start)  # of each measured row
    count = np.bincount(block, minlength=len(ends))
    filled = count > 0
    mean_sums = np.bincount(block, sums[measured], len(ends))[filled] / count[filled]
    mean_losses = np.bincount(block, history.losses[measured], len(ends))[filled] / count[filled]
    return Curve(
        mean_sums,
        mean_losses,
        changes,
        float(sums[start]),
        float(sums[-1]),
        float(lrs[-1]),
        float(lrs.max()),
    )


def blocks(rows: int, most: int) -> Ends:
    """Divide rows into at most `most` blocks of about equal size; return the last row of each."""
    count = min(rows, most)
    return (np.arange(1, count + 1) * rows) // count - 1


def to_law(x: Floats, scale: Scale) -> Law:
    """Return the law with coordinates `x` [7] at a scale."""
    alpha = float(np.exp(x[2]))
    gamma = float(x[6])
    power = float(np.exp(x[1])) * scale.loss
    return Law(
        L0=float(x[0]) * scale.loss,
        A=power * scale.sum**alpha,
        alpha=alpha,
        B=float(np.exp(x[3])) * alpha * power / scale.lr,
        C=float(np.exp(x[4])) * scale.lr**gamma / scale.sum,
        beta=float(np.exp(x[5])),
        gamma=gamma,
    )


def to_coordinates(law: Law, scale: Scale) -> Floats:
    """Return the coordinates [7] of a law at a scale, within the bounds of a fit."""
    power = max(law.A * scale.sum**-law.alpha, 1e-300)
    drop = law.B * scale.lr / (law.alpha * power)
    rate = law.C * scale.lr**-law.gamma * scale.sum
    with np.errstate(divide="ignore"):
        logs = np.log([power / scale.loss, law.alpha, drop, rate, law.beta])
    x: Floats = np.clip(np.array([law.L0 / scale.loss, *logs, law.gamma]), _LOWEST, _HIGHEST)
    return x


def fit(
    curves: Sequence[Curve], scale: Scale, centre: Floats, width: Floats, *, starts: int
) -> tuple[Floats, Floats]:
    """Fit a law to curves.

    Args:
        curves: Curves of one model, at least one, with at least one row each.
        scale: Scale of the coordinates.
        centre: [7] centre of the belief.
        width: [7] widths of the belief, each above 0.
        starts: Number of starts, 1 to 5: the centre, then points that differ from it in the speed
            and the saturation of the gain.

    Returns:
        The best coordinates [7], and their covariance [7, 7] from the curvature at the optimum.
    """
    from scipy.optimize import least_squares

    observed = [np.log(one.losses) for one in curves]
    delta = max(_DELTA, *(_noise(logs) for logs in observed))
    known: dict[bytes, tuple[Floats, Floats]] = {}

    def both(x: Floats) -> tuple[Floats, Floats]:
        # The optimizer asks for residuals and derivatives at the same point, one after the other.
        key = x.tobytes()
        if key not in known:
            known.clear()
            parts = [_logarithms(x, one, scale) for one in curves]
            residuals = [logs - seen for (logs, _), seen in zip(parts, observed)]
            belief = delta * (x - centre) / width
            jacobian = np.concatenate([*(slopes for _, slopes in parts), np.diag(delta / width)])
            known[key] = np.concatenate([*residuals, belief]), jacobian
        return known[key]

    shifts = np.zeros((5, 7))
    shifts[1:, 4] = (1.5, 1.5, -1.5, -1.5)
    shifts[1:, 5] = (-1.0, 1.0, -1.0, 1.0)
    found = [
        least_squares(
            lambda x: both(x)[0],
            np.clip(centre + shift, _LOWEST + 1e-6, _HIGHEST - 1e-6),
            lambda x: both(x)[1],
            bounds=(_LOWEST, _HIGHEST),
            x_scale=WIDTH,
            loss="huber",
            f_scale=delta,
            max_nfev=_EVALUATIONS,
        )
        for shift in shifts[:starts]
    ]
    best = min(found, key=lambda one: one.cost)  # the first of equals
    residuals, jacobian = both(best.x)
    weights = np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300))  # Huber's
    curvature = (jacobian * weights[:, None]).T @ jacobian
    coordinates = np.asarray(best.x, dtype=np.float64)
    covariance = np.asarray(delta**2 * np.linalg.pinv(curvature), dtype=np.float64)
    return coordinates, covariance


def _logarithms(x: Floats, one: Curve, scale: Scale) -> tuple[Floats, Floats]:
    """Evaluate ln L by the law with coordinates `x` at the rows of a curve.

    Returns:
        ln L [n] and its derivatives by the coordinates [n, 7].
    """
    alpha = np.exp(x[2])
    rate = np.exp(x[4])
    beta = np.exp(x[5])
    gamma = x[6]
    power = np.exp(x[1]) * scale.loss
    logs = np.log(one.sums / scale.sum)
    left = power * np.exp(-alpha * logs)  # [n] A·S^−α
    drop = one.changes.drop / scale.lr  # [M]
    lr = np.log(one.changes.lr / scale.lr)  # [M]
    since = np.maximum(one.sums[:, None] - one.changes.position, 0.0) / scale.sum  # [n, M]
    z = rate * np.exp(-gamma * lr) * since
    u = np.log1p(z)
    h = np.exp(-beta * u)
    k = beta * h * z / (1 + z)  # dG / d ln z
    whole = np.exp(x[3]) * alpha * power  # B·η
    gained = whole * ((1 - h) @ drop)  # [n] LD
    value = x[0] * scale.loss + left - gained
    slopes = np.stack(
        [
            np.full_like(value, scale.loss),
            left - gained,
            -alpha * logs * left - gained,
            -gained,
            -whole * (k @ drop),
            -whole * beta * ((h * u) @ drop),
            whole * (k @ (drop * lr)),
        ],
        axis=1,
    )
    bounded = np.maximum(value, 1e-3 * scale.loss)
    return np.log(bounded), slopes / bounded[:, None]


def _noise(logs: Floats) -> float:
    """Estimate the standard deviation of the noise of a smooth series [n].

    It is taken from second differences; 0 for fewer than 8 rows.
    """
    if len(logs) < 8:
        return 0.0
    second = logs[2:] - 2 * logs[1:-1] + logs[:-2]
    return float(1.4826 * np.median(np.abs(second)) / np.sqrt(6))
