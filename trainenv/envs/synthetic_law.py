"""The law that the synthetic environment follows, and the exact optimum of a sum over a path of multipliers.

The law, with r = base × schedule × multiplier, the learning rate in units of the critical one, at
decision k of K:

    loss      L = floor + A·(P/P₀)^−α + X            P₀: where L is the loss of a uniform guess
    progress  P = P₀ + Σ gain(r) − Σ costs − D       the learning-rate sum, less what noise hides of
    it noise     D ← ρ·D + (1 − ρ)·(k + 1)·noise(r) excess    X ← recovery·X + a spike, at rate
    hazard(r)

A power law of the learning-rate sum with a part that annealing gives back is the shape of measured
curves (Tissue 2024; Luo 2025, multi-power law). Here that part is written as progress hidden by
noise, the hills of the river valley (Wen 2024), so that the final loss depends on the path through
*one sum*, and `optimum` can be exact. It follows that short horizons lie: cutting the learning rate
gives D back at once and costs gain for good. Above the critical learning rate progress stalls and
spikes set in steeply (Cohen 2021, the edge of stability). How far the base learning rate is off is
hidden, drawn at reset.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trainenv.training.data_order import DataOrder
from trainenv.training.schedules import Cosine, Horizon
from trainenv.types import UserError

Number = TypeVar("Number", float, NDArray[np.float64])

REFERENCE = math.log(256)  # loss of a uniform guess over bytes, nats per token
EPOCH = 256  # data indices, one a decision, until the data (and their spikes) come round again
SCHEDULE = Cosine(warmup=2, final=0.1)


@dataclass(frozen=True, kw_only=True)
class Law:
    """The constants, losses in nats per token and progress in decisions at the critical learning rate.

    Attributes:
        floor: loss that no training removes.
        exponent: α of the power law.
        start: P₀.
        noise: progress that noise hides in the long run at small r, per decision so far and per r².
        memory: ρ, the share of hidden progress that is still hidden a decision later.
        hazard: odds of a spike are hazard × (1/4 + r⁴).
        recovery: share of the excess left after a decision; `recovery_reset`: after one that began
            with a momentum reset.
        stall: how much excess slows progress: gain ÷ (1 + stall·X).
        reset_gain: share of the gain that the warm-up after a momentum reset leaves of its
            decision.
        decay_cost: progress lost in a decision, × schedule, per squared doubling of the weight
            decay away from its optimum.
        clip_cost: progress lost in a decision, by clip policy.
        damping: share of a spike that gets through, by clip policy.
    """

    floor: float = 1.2
    exponent: float = 0.5
    start: float = 1.5
    noise: float = 0.25
    memory: float = 0.5
    hazard: float = 0.02
    recovery: float = 0.6
    recovery_reset: float = 0.2
    stall: float = 4.0
    reset_gain: float = 0.5
    decay_cost: float = 0.01
    clip_cost: tuple[float, ...] = (0.0, 0.004, 0.006, 0.008)
    damping: tuple[float, ...] = (1.0, 0.4, 0.3, 0.25)

    def gain(self, r: Number) -> Number:
        """Progress of a decision: 2r well below the critical learning rate, 1 at it, falling above."""
        return 2 * r / (1 + r * r)

    def hidden(self, r: Number) -> Number:
        """Progress that noise hides, per decision so far: quadratic in r, then level."""
        return self.noise * r * r / (1 + r * r / 4)

    def chance(self, r: Number) -> Number:
        """Chance of a spike in a decision."""
        odds = self.hazard * (0.25 + r * r * r * r)
        return odds / (1 + odds)

    def loss(self, progress: float) -> float:
        """Loss without spikes.

        Noise alone lifts it to at most 1.2 × that of a uniform guess, so never diverges.
        """
        reducible = (REFERENCE - self.floor) * math.pow(
            max(progress, 1e-9) / self.start, -self.exponent
        )
        return min(self.floor + reducible, 1.2 * REFERENCE)


@dataclass(frozen=True)
class World:
    """What is hidden: a pure function of the seed, so that branches meet the same draws.

    Attributes:
        base: the base learning rate in units of the critical one, 1/4 to 6.
        decay: log2 of the best weight decay scale, −2 to 2.
        draws: for each data index, what is held against the chance of a spike.
        sizes: of those spikes, in nats at r = 1.
        noise: on what is measured, in standard deviations.
    """

    base: float
    decay: float
    draws: tuple[float, ...]
    sizes: tuple[float, ...]
    noise: tuple[float, ...]

    @staticmethod
    @lru_cache(maxsize=256)
    def of(seed: int) -> World:
        rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
        base = math.exp(rng.uniform(math.log(1 / 4), math.log(6)))
        decay = float(rng.integers(-2, 3))
        draws = rng.random(EPOCH)
        sizes = 0.8 * np.exp(0.5 * rng.standard_normal(EPOCH))
        noise = rng.standard_normal(EPOCH)
        return World(
            base, decay, tuple(draws.tolist()), tuple(sizes.tolist()), tuple(noise.tolist())
        )


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that the future depends on beside the seed. Counts in decisions.

    Attributes:
        gained: P + D. `hidden` is D, `excess` X.
        reset_at: decision of the last momentum reset, None without one.
        gradient: mean gradient norm of the last decision, None before the first.
        owed: share of the budget that was spent elsewhere and is charged with the next decision.
    """

    decision: int = 0
    horizon: Horizon
    order: DataOrder
    lr_scale: float = 1.0
    weight_decay_scale: float = 1.0
    clip: str = "zclip"
    flagged: tuple[int, ...] = ()
    gained: float
    hidden: float = 0.0
    excess: float = 0.0
    reset_at: int | None = None
    validation: float
    validation_before: float
    gradient: float | None = None
    owed: float = 0.0
    over: bool = False

    @cached_property
    def flagged_ahead(self) -> tuple[int, ...]:
        """Data indices that were flagged and are still to come (after a rewind)."""
        return self.order.ahead(self.decision, self.flagged) if self.flagged else ()

    def schedule(self, decision: int) -> float:
        return SCHEDULE(decision, self.horizon.progress(decision))


def best_path(
    scales: tuple[float, ...],
    start: float,
    bounds: tuple[float, float],
    steps: int,
    value: Callable[[int, NDArray[np.float64]], NDArray[np.float64]],
) -> list[float]:
    """The factors, one a step, that maximise Σ value(step, multiplier in force): backward dynamic programming.

    A state is how often each factor has been used, so an array of the values of step k has the
    shape (k + 1,) × n.

    Args:
        scales: the factors to choose from, 1 first.
        start: the multiplier before the first step.
        bounds: of the multiplier.
        steps: how many.
        value: of a step (counted from 0), for an array of multipliers.
    """
    factors = scales[1:]
    if (steps + 1) ** len(factors) > 2e7:
        raise UserError(
            f"an exact optimum over {steps} decisions needs at most 3 factors beside 1, found {len(factors)}"
        )
    grid = np.array(start, dtype=np.float64)
    for factor in factors:
        grid = np.multiply.outer(
            grid, np.float64(factor) ** np.arange(steps + 1)
        )  # (steps + 1,) × n
    legal = (grid >= bounds[0] * (1 - 1e-9)) & (grid <= bounds[1] * (1 + 1e-9))
    best = np.zeros_like(grid)
    choices: list[NDArray[np.int8]] = []
    for k in reversed(range(steps)):
        after = (slice(0, k + 2),) * len(factors)
        values = np.where(
            legal[after], value(k, grid[after]) + best[after], -np.inf
        )  # (k + 2,) × n
        starts = [
            (0,) * len(factors),
            *np.eye(len(factors), dtype=int).tolist(),
        ]  # doing nothing, then each factor once more
        options = np.stack([values[tuple(slice(i, i + k + 1) for i in first)] for first in starts])
        best = options.max(0)
        choices.append(options.argmax(0).astype(np.int8))
    path = []
    used = [0] * len(factors)
    for choice in reversed(choices):
        taken = int(choice[tuple(used)])
        path.append(scales[taken])
        if taken:
            used[taken - 1] += 1
    return path
