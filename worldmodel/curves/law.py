"""The multi-power law of loss curves, as a function of sums of learning rates.

Luo et al. 2025, arXiv:2503.12811, eq. 1.

    L(t)  = L₀ + A·S(t)^−α − LD(t)
    LD(t) = B·Σ_{k ≤ t} (η_{k−1} − η_k)·G(C·η_k^−γ·S_k(t))
    G(z)  = 1 − (1 + z)^−β
    S(t)  = Σ_{τ ≤ t} η_τ, the warm-up included          S_k(t) = Σ_{k ≤ τ ≤ t} η_τ

L₀ + A·S^−α is the loss at a constant learning rate. LD is the gain from lowering it, which shows
after a delay.

Time enters only through S: with P_k = S(k − 1), LD = Σ_k B·Δ_k·G(C·η_k^−γ·(S − P_k)). This sum over
changes is slow, so neighbouring changes are gathered into one (`gather`) with their sum and their
mean position. The result is correct to first order, and exact if only one of the changes is not 0.

Deviations from the paper: η_k^−γ has a floor on η_k, because the learning rate may be 0. As in the
paper's code, the rise of the learning rate during the warm-up is no change; a later rise (a
re-warm-up) is a change, with Δ < 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainenv.types import UserError
from trainenv.worldmodel.curves.history import Floats

Ends = NDArray[np.intp]

_FLOOR = 1e-6  # floor on η in η^−γ, as a share of the greatest learning rate


@dataclass(frozen=True, kw_only=True)
class Law:
    """The seven parameters of the law, in the paper's letters.

    η is a learning rate, S a sum of learning rates over steps.

    Args:
        L0: Loss in nats for S → ∞ at a constant learning rate.
        A: Factor of S^−α, in nats · (unit of S)^α.
        alpha: Exponent of S, above 0.
        B: Nats per unit of η: annealing from η to 0 finally gains B·η.
        C: Speed at which the gain shows, in (unit of η)^γ / (unit of S).
        beta: Exponent of the saturation of the gain, above 0.
        gamma: Exponent of the slow-down at lower learning rates.

    Raises:
        UserError: a parameter is not finite or below 0, or alpha or beta is 0.
    """

    L0: float
    A: float
    alpha: float
    B: float
    C: float
    beta: float
    gamma: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            limit = "at least 0"
            sound = value >= 0
            if field.name in ("alpha", "beta"):
                limit = "above 0"
                sound = value > 0
            if not (math.isfinite(value) and sound):
                raise UserError(
                    f"{field.name} of the multi-power law must be a finite number {limit}, "
                    f"found {value!r}"
                )


class Changes(NamedTuple):
    """M changes of the learning rate, in order.

    Attributes:
        drop: [..., M] drops Δ_k = η_{k−1} − η_k.
        position: [..., M] positions P_k = S(k − 1).
        lr: [..., M] learning rates η_k, with a floor above 0; for gathered changes, the mean
            weighted by Δ_k.
    """

    drop: Floats
    position: Floats
    lr: Floats


def gather(
    first_lr: ArrayLike, first_sum: ArrayLike, gaps: Floats, lrs: Floats, ends: Ends
) -> tuple[Changes, Floats]:
    """Gather the changes of a schedule into one change for each block of rows.

    Args:
        first_lr: [...] learning rate before the schedule.
        first_sum: [...] S before the schedule.
        gaps: [n] number of steps in each row.
        lrs: [..., n] learning rates of the rows.
        ends: [M] last row of each block, rising, int64.

    Returns:
        Changes [..., M], and [..., M] S at the end of each block.
    """
    starts = np.concatenate([[0], ends[:-1] + 1])
    shape = (*lrs.shape[:-1], 1)
    lr_before = np.broadcast_to(np.asarray(first_lr)[..., None], shape)
    sum_before = np.broadcast_to(np.asarray(first_sum)[..., None], shape)
    after = lrs[..., ends]  # [..., M]
    before = np.concatenate([lr_before, after[..., :-1]], axis=-1)
    drop = before - after
    rows = gaps * lrs  # [..., n]; one array serves three sums over blocks, which take the time
    sums = sum_before + np.cumsum(np.add.reduceat(rows, starts, axis=-1), axis=-1)  # [..., M]
    width = sums - np.concatenate([sum_before, sums[..., :-1]], axis=-1)
    # Both means follow from sums by parts, P counted from the start of the block:
    #   Σ Δ_k·P_k = Σ gap_k·η_k² − η_end·width          2·Σ Δ_k·η_k = η_before² − η_end² − Σ Δ_k²
    rows *= lrs
    moment = np.add.reduceat(rows, starts, axis=-1) - after * width
    rows[..., :1] = lr_before - lrs[..., :1]
    np.subtract(lrs[..., :-1], lrs[..., 1:], out=rows[..., 1:])
    rows *= rows
    square = (before**2 - after**2 - np.add.reduceat(rows, starts, axis=-1)) / 2
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shift = np.where(drop == 0, 0.0, moment / drop)
        lr = np.where(drop == 0, after, square / drop)
    # Where the learning rate rises and falls within a block, the means may lie anywhere; they are
    # clipped, because such a block changes the loss very little.
    position = sums - width + np.clip(shift, 0.0, width)
    lr = np.clip(lr, np.minimum(before, after), np.maximum(before, after))
    greatest = float(max(before.max(initial=0.0), after.max(initial=0.0)))
    floor = 1.0
    if greatest > 0:
        floor = _FLOOR * greatest
    return Changes(drop, position, np.maximum(lr, floor)), sums


def gain(law: Law, sums: Floats, changes: Changes) -> Floats:
    """Return LD in nats at each S of `sums` [..., P], from changes [..., M].

    Changes at or after an S do not contribute to it.
    """
    rate = law.C * changes.lr ** (-law.gamma)  # [..., M]
    since = sums[..., :, None] - changes.position[..., None, :]  # [..., P, M]
    np.maximum(since, 0.0, out=since)
    since *= rate[..., None, :]
    since += 1.0
    np.log(since, out=since)
    since *= -law.beta
    np.exp(since, out=since)
    np.subtract(1.0, since, out=since)  # G
    total: Floats = law.B * (since @ changes.drop[..., None])[..., 0]
    return total


def loss(law: Law, sums: Floats, changes: Changes) -> Floats:
    """Return L in nats at each S > 0 of `sums` [..., P], from changes [..., M]."""
    return law.L0 + law.A * sums ** (-law.alpha) - gain(law, sums, changes)
