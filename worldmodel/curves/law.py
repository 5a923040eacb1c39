"""The multi-power law of loss curves (Luo et al.

2025, arXiv:2503.12811, eq. 1), as a function of sums of learning rates.

    L(t) = L₀ + A·S(t)^−α − LD(t)                                        S(t) = Σ_{τ ≤ t} η_τ, the
    warm-up included LD(t) = B·Σ_{k ≤ t} (η_{k−1} − η_k)·G(C·η_k^−γ·S_k(t))                S_k(t) =
    Σ_{k ≤ τ ≤ t} η_τ G(z) = 1 − (1 + z)^−β

A·S^−α is what a constant learning rate would give; LD is what lowering it has gained, which takes a
while to show.

The law sees time only through S: with P_k = S(k − 1), LD is a function of S alone, Σ_k
B·Δ_k·G(C·η_k^−γ·(S − P_k)). What is slow in it is this sum over changes, so changes close together
are gathered into one (`gather`): with their sum and their mean position it is right to first order,
and exact where only one of them is not 0.

Deviations from the paper: η_k^−γ has a floor on η_k, since the learning rate may be 0; the rise of
the learning rate during the warm-up is no change (as in the paper's code), while a later rise (a
re-warm-up) is one, with Δ < 0.
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

_FLOOR = 1e-6  # of the learning rate in η^−γ, in parts of the greatest


@dataclass(frozen=True, kw_only=True)
class Law:
    """The seven numbers of the law, in the paper's letters.

    η is a learning rate, S a sum of them over steps.

    Args:
        L0: nats, what would be left for S → ∞ at a constant learning rate.
        A: nats · (unit of S)^α.
        alpha: exponent of S, above 0.
        B: nats per unit of η: B·η is what annealing from η to 0 gains in the end.
        C: (unit of η)^γ / (unit of S): how fast the gain shows.
        beta: exponent of its saturation, above 0.
        gamma: how much slower it shows at a lower learning rate.

    Raises:
        UserError: a number is not finite, or below 0, or an exponent of S or of the saturation is
            0.
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
            positive = field.name in ("alpha", "beta")
            if not (math.isfinite(value) and (value > 0 if positive else value >= 0)):
                least = "above 0" if positive else "at least 0"
                raise UserError(
                    f"{field.name} of the multi-power law must be a finite number {least}, found {value!r}"
                )


class Changes(NamedTuple):
    """Changes of the learning rate, [..., M] each, in order.

    Attributes:
        drop: Δ_k = η_{k−1} − η_k.
        position: P_k = S(k − 1).
        lr: η_k, with a floor above 0; of changes gathered, their mean weighted by Δ_k.
    """

    drop: Floats
    position: Floats
    lr: Floats


def gather(
    first_lr: ArrayLike, first_sum: ArrayLike, gaps: Floats, lrs: Floats, ends: Ends
) -> tuple[Changes, Floats]:
    """The changes of a schedule, those of one block as one, and S at the end of each block.

    Args:
        first_lr: [...] learning rate before the schedule.
        first_sum: [...] S before the schedule.
        gaps: [n] steps that each row stands for.
        lrs: [..., n] learning rates.
        ends: [M] the last row of each block, rising, int64.

    Returns:
        Changes [..., M] and sums [..., M].
    """
    starts = np.concatenate([[0], ends[:-1] + 1])
    shape = (*lrs.shape[:-1], 1)
    lr_before, sum_before = (
        np.broadcast_to(np.asarray(one)[..., None], shape) for one in (first_lr, first_sum)
    )
    after = lrs[..., ends]  # [..., M]
    before = np.concatenate([lr_before, after[..., :-1]], axis=-1)
    drop = before - after
    rows = gaps * lrs  # [..., n]; one array for three sums over blocks: it is what takes time
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
        shift, lr = (
            np.where(drop == 0, part, whole / drop)
            for part, whole in ((0.0, moment), (after, square))
        )
    # Up and down within a block: the means may lie anywhere, and what the block does hardly
    # matters.
    position = sums - width + np.clip(shift, 0.0, width)
    lr = np.clip(lr, np.minimum(before, after), np.maximum(before, after))
    greatest = float(max(before.max(initial=0.0), after.max(initial=0.0)))
    return Changes(drop, position, np.maximum(lr, _FLOOR * greatest if greatest > 0 else 1.0)), sums


def gain(law: Law, sums: Floats, changes: Changes) -> Floats:
    """LD in nats at each S of `sums` [..., P], from changes [..., M]; those at or after S count for nothing. Shape [..., P]."""
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
    """L in nats at each S of `sums` [..., P], all above 0, from changes [..., M].

    Shape [..., P].
    """
    return law.L0 + law.A * sums ** (-law.alpha) - gain(law, sums, changes)
