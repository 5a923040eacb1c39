"""Which interventions branches try: drawn at random from what is legal, with the probability of each on record.

A draw is of one of four families: *nothing*; *rate*, a learning-rate factor, log-uniform over a
wide range; *part*, one part of the action changed; *joint*, any legal action but doing nothing, all
alike. An action that two families can give has the sum of their probabilities: what is logged is
the chance of the intervention, not of the family, so that it can be weighed against that under
another policy.
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
    """An intervention and its chance.

    Attributes:
        intervention: what to apply.
        propensity: its probability; where `wide`, the density per unit of ln(lr_scale).
        wide: a learning-rate factor of the family *rate*.
    """

    intervention: Intervention
    propensity: float
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Randomised:
    """A policy over interventions.

    Args:
        nothing, rate, part, joint: weights of the families; what has no legal action is left out,
            the others share its weight.
        lr_factors: least and greatest factor of the family *rate*; the bounds of the run narrow it.

    Raises:
        UserError: a weight is negative or all are 0, or the factors are no range.
    """

    nothing: float = 0.25
    rate: float = 0.25
    part: float = 0.3
    joint: float = 0.2
    lr_factors: tuple[float, float] = (0.1, 4.0)

    def __post_init__(self) -> None:
        weights = (self.nothing, self.rate, self.part, self.joint)
        if not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
            raise UserError(f"weights of families must be 0 or more, not all 0, found {weights}")
        if not 0 < self.lr_factors[0] < self.lr_factors[1] < math.inf:
            raise UserError(
                f"lr_factors must be (least, greatest) above 0, found {self.lr_factors}"
            )

    def draw(self, codec: ActionCodec, run: InForce, uniform: float) -> Draw:
        """The intervention at `uniform` in [0, 1) of the policy's distribution in the state of `run`.

        Near numbers give the same or a near intervention: numbers spread evenly over [0, 1) give
        interventions that differ.
        """
        actions, chances = self.table(codec, run)
        rate = max(0.0, 1.0 - float(chances.sum()))
        if uniform < rate or not len(actions):
            low, high = self._range(codec, run)
            factor = low * (high / low) ** (uniform / rate)
            return Draw(Intervention(lr_scale=factor), rate / math.log(high / low), wide=True)
        place = int(np.searchsorted(np.cumsum(chances), uniform - rate, side="right"))
        place = min(place, len(actions) - 1)  # for the rounding of the sum
        return Draw(codec.decode(actions[place].tolist()), float(chances[place]))

    def table(
        self, codec: ActionCodec, run: InForce
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Every action vector that has a chance, [A, 6], and its probability, [A].

        What is missing to 1 is the family *rate*.
        """
        masks = codec.masks(run)
        grid = np.stack(
            np.meshgrid(*(np.flatnonzero(mask) for mask in masks), indexing="ij"), axis=-1
        ).reshape(-1, len(masks))
        changed = (grid != 0).sum(axis=1)  # [A] how many parts an action changes
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
        if not total:  # nothing that this policy does is legal here
            return grid[nothing], np.ones(1)
        chances = weights["nothing"] * nothing.astype(np.float64)
        if single.any():
            # Each part alike, then each of its values alike.
            part = np.argmax(grid != 0, axis=1)  # [A]
            sizes = np.bincount(part[single], minlength=len(masks))  # values of each part
            chances[single] += weights["part"] / np.count_nonzero(sizes) / sizes[part[single]]
        if some.any():
            chances[some] += weights["joint"] / some.sum()
        likely = chances > 0
        # Those that change the same part stand side by side, so that evenly spread numbers fall on
        # different parts.
        order = np.lexsort((*grid[likely].T[::-1], changed[likely]))
        return grid[likely][order], chances[likely][order] / total

    def _range(self, codec: ActionCodec, run: InForce) -> tuple[float, float]:
        """Factors of the family *rate* that stay within the run's bounds."""
        least, greatest = codec.config.lr_bounds
        return max(self.lr_factors[0], least / run.lr_scale), min(
            self.lr_factors[1], greatest / run.lr_scale
        )


def spread(rng: np.random.Generator, count: int, decisions: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), [count, decisions]: each uniform, and those of a column spread evenly (systematic sampling).

    Branches of one snapshot so seldom try the same thing twice, and each one's probabilities are
    what they would be if alone.
    """
    columns = [(rng.permutation(count) + rng.random()) / count for _ in range(decisions)]
    return np.stack(columns, axis=1) if count else np.zeros((0, decisions))
