"""The law of the synthetic environment, and the best path of multipliers under it.

The law at decision k of K, where r = base × schedule × multiplier is the learning rate in units of
the critical one:

    loss      L = floor + A·(P/P₀)^−α + X           at P₀, L is the loss of a uniform guess
    progress  P = P₀ + Σ gain(r) − Σ costs − D      learning-rate sum less hidden progress
    hidden    D ← ρ·D + (1 − ρ)·(k + 1)·hidden(r)   progress that noise hides
    excess    X ← recovery·X + spike                a spike comes with probability chance(r)

Measured curves have this shape: a power law of the learning-rate sum, and a part that annealing
gives back (Tissue 2024; Luo 2025, multi-power law). Here that part is progress hidden by noise, the
hills of the river valley (Wen 2024). The final loss then depends on the path through *one sum*, and
`optimum` can be exact.

Two consequences. Short horizons mislead: a cut of the learning rate gives D back at once, and costs
gain for the rest of the run. Above the critical learning rate progress stalls, and spikes become
frequent steeply (Cohen 2021, the edge of stability). The base learning rate is hidden; it is drawn
at reset.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trainenv.config.schema import InterventionConfig
from trainenv.training.data_order import DataOrder
from trainenv.training.schedules import Cosine, Horizon
from trainenv.types import ClipName, Intervention, UserError

Number = TypeVar("Number", float, NDArray[np.float64])

REFERENCE = math.log(256)  # loss of a uniform guess over bytes, nats per token
EPOCH = 256  # data indices, one for each decision, before the data (and their spikes) repeat
SCHEDULE = Cosine(warmup=2, final=0.1)


@dataclass(frozen=True, kw_only=True)
class Law:
    """The constants of the law.

    Losses are in nats per token. The unit of progress is one decision at the critical learning
    rate.

    Attributes:
        floor: Loss that no training removes.
        exponent: Exponent α of the power law.
        start: Progress P₀ at the start.
        noise: Progress that noise hides in the long run at small r, per decision so far and per r².
        memory: Share ρ of hidden progress that is still hidden one decision later.
        hazard: Factor in the odds of a spike, hazard × (1/4 + r⁴).
        recovery: Share of the excess that is left after a decision.
        recovery_reset: Share of the excess that is left after a decision with a momentum reset.
        stall: Slowing of progress by excess: gain ÷ (1 + stall·X).
        reset_gain: Share of its gain that a decision with a momentum reset keeps, because of the
            warm-up after it.
        decay_cost: Progress lost in a decision, × schedule, per squared doubling of the weight
            decay away from its optimum.
        clip_cost: Progress lost in a decision, for each clip policy.
        damping: Share of a spike that a clip policy lets through, for each policy.
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
        """Return the progress of a decision: 2r for small r, 1 at r = 1, falling above."""
        return 2 * r / (1 + r * r)

    def hidden(self, r: Number) -> Number:
        """Return the progress that noise hides, per decision so far: quadratic in r, then level."""
        return self.noise * r * r / (1 + r * r / 4)

    def chance(self, r: Number) -> Number:
        """Return the probability of a spike in a decision."""
        odds = self.hazard * (0.25 + r * r * r * r)
        return odds / (1 + odds)

    def loss(self, progress: float) -> float:
        """Return the loss without spikes.

        It is at most 1.2 × that of a uniform guess, so that noise alone is no divergence.
        """
        ratio = max(progress, 1e-9) / self.start
        reducible = (REFERENCE - self.floor) * math.pow(ratio, -self.exponent)
        return min(self.floor + reducible, 1.2 * REFERENCE)


@dataclass(frozen=True)
class World:
    """The hidden constants of a run: a pure function of its seed, hence equal for all branches.

    Attributes:
        base: Base learning rate in units of the critical one, 1/4 to 6.
        decay: log2 of the best weight decay scale, −2 to 2.
        draws: Random number of each data index, 0 to 1; below the chance of a spike there is one.
        sizes: Size of the spike of each data index, nats at r = 1.
        noise: Measurement noise of each data index, standard deviations.
    """

    base: float
    decay: float
    draws: tuple[float, ...]
    sizes: tuple[float, ...]
    noise: tuple[float, ...]

    @staticmethod
    @lru_cache(maxsize=256)
    def of(seed: int) -> World:
        """Draw the constants of a seed."""
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
    """The state that the future depends on, in addition to the seed.

    Attributes:
        decision: Decisions taken.
        horizon: Budget, in decisions.
        order: Order of the data.
        lr_scale: Multiplier on the learning rate in force.
        weight_decay_scale: Multiplier on the weight decay in force.
        clip: Name of the clip policy in force.
        flagged: Data indices that are flagged as harmful.
        gained: Progress without the hidden part, P + D.
        hidden: Hidden progress D.
        excess: Excess loss X, nats.
        reset_at: Decision of the last momentum reset; None without one.
        validation: Validation loss, nats per token.
        validation_before: Validation loss one decision ago, nats per token.
        gradient: Mean gradient norm of the last decision; None before the first.
        owed: Share of the budget, 0 to 1, that was spent elsewhere and is charged with the next
            decision.
        over: True once the episode has ended.
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
        """Flagged data indices that are still to come (after a rewind)."""
        if not self.flagged:
            return ()
        return self.order.ahead(self.decision, self.flagged)

    def schedule(self, decision: int) -> float:
        """Return the factor of the schedule at a decision."""
        return SCHEDULE(decision, self.horizon.progress(decision))


def best_plan(
    law: Law,
    world: World,
    state: State,
    config: InterventionConfig,
    *,
    toll: float,
    clip: ClipName,
) -> list[Intervention]:
    """Return the interventions, one for each decision left, that maximise the final progress.

    Args:
        law: Constants of the law.
        world: Hidden constants of the run.
        state: State of the run.
        config: Configuration of the action space.
        toll: Progress lost for each spike.
        clip: Name of the clip policy.
    """
    first = state.decision
    steps = max(0, state.horizon.end - state.decision)
    if state.over:
        steps = 0

    def rate_value(k: int, scale: NDArray[np.float64]) -> NDArray[np.float64]:
        r = world.base * state.schedule(first + k) * scale
        still_hidden = law.memory ** (steps - 1 - k) * (1 - law.memory) * (first + k + 1)
        return law.gain(r) - still_hidden * law.hidden(r) - toll * law.chance(r)

    def decay_value(k: int, scale: NDArray[np.float64]) -> NDArray[np.float64]:
        return -law.decay_cost * state.schedule(first + k) * (np.log2(scale) - world.decay) ** 2

    rates = best_path(config.lr_scales, state.lr_scale, config.lr_bounds, steps, rate_value)
    decays = best_path(
        config.weight_decay_scales,
        state.weight_decay_scale,
        config.weight_decay_bounds,
        steps,
        decay_value,
    )
    plan = [
        Intervention(lr_scale=rate, weight_decay_scale=decay) for rate, decay in zip(rates, decays)
    ]
    if plan and state.clip != clip:
        plan[0] = replace(plan[0], clip=clip)
    return plan


def best_path(
    scales: tuple[float, ...],
    start: float,
    bounds: tuple[float, float],
    steps: int,
    value: Callable[[int, NDArray[np.float64]], NDArray[np.float64]],
) -> list[float]:
    """Return the factors, one for each step, that maximise Σ value(step, multiplier in force).

    The method is backward dynamic programming. A state counts the uses of each of the n factors, so
    the values of step k are an array of shape (k + 1,) × n.

    Args:
        scales: Factors to choose from, 1 first.
        start: Multiplier before the first step.
        bounds: Smallest and largest legal multiplier.
        steps: Number of steps.
        value: Value of a step, counted from 0, for an array of multipliers.

    Raises:
        UserError: There are too many factors for the number of steps.
    """
    factors = scales[1:]
    if (steps + 1) ** len(factors) > 2e7:
        raise UserError(
            f"an exact optimum over {steps} decisions needs at most 3 factors other than 1, "
            f"found {len(factors)}; take fewer decisions or factors"
        )
    grid = np.array(start, dtype=np.float64)
    for factor in factors:  # → (steps + 1,) × n
        grid = np.multiply.outer(grid, np.float64(factor) ** np.arange(steps + 1))
    legal = (grid >= bounds[0] * (1 - 1e-9)) & (grid <= bounds[1] * (1 + 1e-9))
    best = np.zeros_like(grid)
    choices: list[NDArray[np.int8]] = []
    for k in reversed(range(steps)):
        after = (slice(0, k + 2),) * len(factors)
        values = np.where(
            legal[after], value(k, grid[after]) + best[after], -np.inf
        )  # (k + 2,) × n
        # Doing nothing, then each factor once more.
        starts = [(0,) * len(factors), *np.eye(len(factors), dtype=int).tolist()]
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
