"""What is known of a loss curve, and the learning rates it may go on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainenv.types import UserError

Floats = NDArray[np.float64]

LARGEST_LOSS = 1e6  # nats per token: what is above it is an overflow, not a loss


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """A loss curve up to now, at every step or at some steps only. *Now* is the last step listed.

    Args:
        steps: [n] optimizer steps completed, rising, from 0 on.
        losses: [n] losses in nats per token. What is not finite, not above 0 or above 1e6 counts as
            not measured.
        lrs: [n] learning rates of these steps. The steps since the row before are taken to have had
            the same.
        first_lr_sum: sum of the learning rates of the steps up to the first listed (that one
            included), where it is known; without it they are taken to have had the learning rate of
            the first. (After a linear warm-up to the peak, just ended, it is half of that.)

    Raises:
        UserError: the lengths differ or are 0, steps do not rise, a learning rate is negative,
            something but a loss is not finite, or no loss was measured.
    """

    steps: Floats
    losses: Floats
    lrs: Floats
    first_lr_sum: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "losses", "lrs"):
            object.__setattr__(self, name, _vector(name, getattr(self, name)))
        lengths = {name: len(getattr(self, name)) for name in ("steps", "losses", "lrs")}
        if len(set(lengths.values())) > 1 or not lengths["steps"]:
            found = ", ".join(f"{length} {name}" for name, length in lengths.items())
            raise UserError(
                f"a history needs as many steps, losses and learning rates, at least one; found {found}"
            )
        _rising(self.steps, above=-1)
        _rates(self.lrs)
        first = self.steps[0] * self.lrs[0] if self.first_lr_sum is None else self.first_lr_sum
        if not (isinstance(first, Real) and 0 <= float(first) < np.inf):
            raise UserError(
                f"first_lr_sum must be a finite number, at least 0, found {first!r}; leave it out where unknown"
            )
        object.__setattr__(self, "first_lr_sum", float(first))
        if not self.measured.any():
            raise UserError(
                "a history needs a loss that is finite and above 0, found none; wait for the first steps"
            )

    @property
    def measured(self) -> NDArray[np.bool_]:
        """[n] where a loss was measured."""
        with np.errstate(invalid="ignore"):
            return (self.losses > 0) & (self.losses < LARGEST_LOSS)

    @property
    def now(self) -> float:
        """The last step listed."""
        return float(self.steps[-1])

    @property
    def lr_sums(self) -> Floats:
        """[n] S: the sum of the learning rates of the steps up to each listed one."""
        gaps = np.diff(self.steps)
        assert self.first_lr_sum is not None
        return self.first_lr_sum + np.concatenate([[0.0], np.cumsum(gaps * self.lrs[1:])])

    @property
    def last_loss(self) -> float:
        """The last loss measured, in nats."""
        return float(self.losses[self.measured][-1])

    @property
    def gap(self) -> float:
        """Steps between two rows, on average; 1 for a single row."""
        return (
            float(self.steps[-1] - self.steps[0]) / (len(self.steps) - 1)
            if len(self.steps) > 1
            else 1.0
        )

    def means(self, most: int) -> tuple[Floats, Floats]:
        """Mean step and mean loss of at most `most` groups of neighbouring measured rows, [m] each."""
        steps = self.steps[self.measured]
        losses = self.losses[self.measured]
        starts = np.unique(np.arange(most) * len(steps) // most)
        counts = np.diff(starts, append=len(steps))
        return np.add.reduceat(steps, starts) / counts, np.add.reduceat(losses, starts) / counts

    def until(self, step: float) -> History:
        """The history as it was at `step`: the rows up to it, that one included."""
        count = int(np.searchsorted(self.steps, step, side="right"))
        return History(
            steps=self.steps[:count],
            losses=self.losses[:count],
            lrs=self.lrs[:count],
            first_lr_sum=self.first_lr_sum,
        )


def futures(history: History, steps: ArrayLike, lrs: ArrayLike) -> tuple[Floats, Floats]:
    """Checked steps and learning rates still to come.

    Args:
        history: what they go on from.
        steps: [H] steps, rising, after the last of the history.
        lrs: [H] or [K, H] learning rates of these steps, as in a history; one row a candidate.

    Returns:
        Steps [H] and learning rates, [H] or [K, H], as float64.

    Raises:
        UserError: the shapes do not fit, steps do not rise or are not to come, or a learning rate
            is negative or not finite.
    """
    ahead = _vector("steps", steps)
    _rising(ahead, above=history.now)
    rates = np.asarray(lrs, dtype=np.float64)
    if rates.ndim not in (1, 2) or rates.shape[-1] != len(ahead) or not rates.size:
        raise UserError(
            f"future learning rates must have the shape [{len(ahead)}] of the steps, or [candidates, {len(ahead)}], "
            f"found {list(rates.shape)}; give one for each step"
        )
    _rates(rates)
    return ahead, rates


def wanted(steps: Floats, at: Sequence[int] | None) -> NDArray[np.intp]:
    """Positions in `steps` [H] at which a forecast is wanted, [Q]: those of `at`, counted from the end where negative, or all.

    Raises:
        UserError: there is none, or one that does not exist.
    """
    rows = np.arange(len(steps))
    if at is None:
        return rows
    positions = list(at)
    wrong = [one for one in positions if not -len(steps) <= one < len(steps)]
    if wrong or not positions:
        raise UserError(
            f"at must hold positions among the {len(steps)} steps ahead, found {wrong or 'none'}; -1 is the last"
        )
    return rows[positions]


def _vector(name: str, values: ArrayLike) -> Floats:
    """A copy that nobody else can write into."""
    vector = np.array(values, dtype=np.float64)
    if vector.ndim != 1:
        raise UserError(
            f"{name} must be a list of numbers, found shape {list(vector.shape)}; give one curve at a time"
        )
    vector.flags.writeable = False
    return vector


def _rising(steps: Floats, *, above: float) -> None:
    if not len(steps):
        raise UserError("steps must not be empty; list those that a forecast is wanted of")
    wrong = ~(np.isfinite(steps) & (np.diff(steps, prepend=above) > 0))
    if wrong.any():
        index = int(np.argmax(wrong))
        raise UserError(
            f"steps must be finite, rise, and be above {above:g}, found {steps[index]:g} at position {index}; "
            "sort them and leave doubles out"
        )


def _rates(lrs: Floats) -> None:
    if not (lrs.min() >= 0 and lrs.max() < np.inf):  # not where it is NaN either
        wrong = lrs[~((lrs >= 0) & (lrs < np.inf))][0]
        raise UserError(
            f"learning rates must be finite and at least 0, found {wrong:g}; give those in force"
        )
