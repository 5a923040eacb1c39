"""Random interventions of branches, drawn from the legal ones, each with its probability.

Each draw comes from one of four families:

- *nothing*: no intervention;
- *rate*: a learning-rate factor, log-uniform over a wide range;
- *part*: one part of the action changed;
- *joint*: any legal action except doing nothing, all equally likely.

An action that two families can give has the sum of their probabilities. The logged probability is
that of the intervention, not of the family, so it can be compared with that under another policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainenv.interventions import ActionCodec
from trainenv.types import InForce, Intervention, UserError


@dataclass(frozen=True)
class Draw:
    """An intervention and its probability.

    Attributes:
        intervention: Intervention to apply.
        propensity: Probability of the intervention; if `wide`, its density per unit of
            ln(lr_scale).
        wide: Flag: a learning-rate factor of the family *rate*.
    """

    intervention: Intervention
    propensity: float
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Randomised:
    """A random policy over interventions.

    Args:
        nothing, rate, part, joint: Weights of the families; the others share the weight of a family
            without a legal action.
        lr_factors: Least and greatest factor of the family *rate*; the bounds of the run narrow it.

    Raises:
        UserError: A weight is negative, all weights are 0, or the factors are no range.
    """

    nothing: float = 0.25
    rate: float = 0.25
    part: float = 0.3
    joint: float = 0.2
    lr_factors: tuple[float, float] = (0.1, 4.0)

    def __post_init__(self) -> None:
        weights = (self.nothing, self.rate, self.part, self.joint)
        if not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
            raise UserError(
                f"weights of families must be 0 or more, not all 0, found {weights}; raise one"
            )
        if not 0 < self.lr_factors[0] < self.lr_factors[1] < math.inf:
            raise UserError(
                f"lr_factors must be (least, greatest), above 0, found {self.lr_factors}; "
                "give two different numbers in this order"
            )

    def draw(self, codec: ActionCodec, run: InForce, uniform: float) -> Draw:
        """Return the intervention at a quantile of the policy in the state of a run.

        Close numbers give the same or a similar intervention, so numbers that are spread evenly
        over [0, 1) give different ones.

        Args:
            codec: Action space.
            run: Run that is steered; its state tells what is legal.
            uniform: Uniform random number in [0, 1).
        """
        actions, chances = self.table(codec, run)
        rate = max(0.0, 1.0 - float(chances.sum()))
        if uniform < rate or not len(actions):
            low, high = self._range(codec, run)
            factor = low * (high / low) ** (uniform / rate)
            return Draw(Intervention(lr_scale=factor), rate / math.log(high / low), wide=True)
        place = int(np.searchsorted(np.cumsum(chances), uniform - rate, side="right"))
        place = min(place, len(actions) - 1)  # the sum may be rounded below 1
        return Draw(codec.decode(actions[place].tolist()), float(chances[place]))

    def table(
        self, codec: ActionCodec, run: InForce
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the possible action vectors, [A, 6], and their probabilities, [A].

        The sum of the probabilities is 1 less that of the family *rate*.
        """
        masks = codec.masks(run)
        grid = np.stack(
            np.meshgrid(*(np.flatnonzero(mask) for mask in masks), indexing="ij"), axis=-1
        ).reshape(-1, len(masks))
        changed = (grid != 0).sum(axis=1)  # [A] number of changed parts
        nothing = changed == 0
        single = changed == 1
        some = changed > 0
        low, high = self._range(codec, run)
        weights = {
            "nothing": self.nothing,
            "rate": self.rate if low < high else 0.0,
            "part": self.part if single.any() else 0.0,
            "joint": self.joint if some.any() else 0.0,
        }
        total = sum(weights.values())
        if not total:  # no action of this policy is legal here
            return grid[nothing], np.ones(1)
        chances = weights["nothing"] * nothing.astype(np.float64)
        if single.any():
            # All parts are equally likely, then all values of a part.
            part = np.argmax(grid != 0, axis=1)  # [A]
            sizes = np.bincount(part[single], minlength=len(masks))  # values of each part
            chances[single] += weights["part"] / np.count_nonzero(sizes) / sizes[part[single]]
        if some.any():
            chances[some] += weights["joint"] / some.sum()
        likely = chances > 0
        # Actions that change the same part are adjacent, so that evenly spread numbers fall on
        # different parts.
        order = np.lexsort((*grid[likely].T[::-1], changed[likely]))
        return grid[likely][order], chances[likely][order] / total

    def _range(self, codec: ActionCodec, run: InForce) -> tuple[float, float]:
        """Return the least and greatest factor of the family *rate* within the run's bounds."""
        least, greatest = codec.config.lr_bounds
        low = max(self.lr_factors[0], least / run.lr_scale)
        high = min(self.lr_factors[1], greatest / run.lr_scale)
        return low, high


def spread(rng: np.random.Generator, count: int, decisions: int) -> NDArray[np.float64]:
    """Draw numbers in [0, 1), [count, decisions], by systematic sampling.

    Each number is uniform, and the numbers of a column are spread evenly. So the branches of a
    snapshot seldom try the same intervention twice, and each of them alone follows the policy.
    """
    if not count:
        return np.zeros((0, decisions))
    columns = [(rng.permutation(count) + rng.random()) / count for _ in range(decisions)]
    return np.stack(columns, axis=1)
