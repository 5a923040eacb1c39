"""The history of a loss curve, and checks of the learning rates that may follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainenv.types import UserError

Floats = NDArray[np.float64]

LARGEST_LOSS = 1e6  # nats per token; a larger value is an overflow, not a loss


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """A loss curve up to now, at every step or at some steps. *Now* is the last listed step.

    Args:
        steps: [n] completed optimizer steps, rising, from 0 on.
        losses: [n] losses in nats per token. A value that is not finite, not above 0 or above 1e6
            counts as not measured.
        lrs: [n] learning rates of these steps. Each is taken to hold for the steps since the row
            before, too.
        first_lr_sum: Sum of the learning rates of the steps up to the first listed one, included.
            None if not known: all are taken to have had the learning rate of the first listed step.
            (At the end of a linear warm-up the true sum is half of that.)

    Raises:
        UserError: the lengths differ or are 0, steps do not rise, a learning rate is negative, a
            value other than a loss is not finite, or no loss was measured.
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
                "a history needs as many steps, losses and learning rates, at least one; "
                f"found {found}"
            )
        _check_rising(self.steps, above=-1)
        _check_rates(self.lrs)
        first = self.first_lr_sum
        if first is None:
            first = self.steps[0] * self.lrs[0]
        if not (isinstance(first, Real) and 0 <= float(first) < np.inf):
            raise UserError(
                f"first_lr_sum must be a finite number, at least 0, found {first!r}; "
                "leave it out where unknown"
            )
        object.__setattr__(self, "first_lr_sum", float(first))
        if not self.measured.any():
            raise UserError(
                "a history needs a loss that is finite and above 0, found none; "
                "wait for the first steps"
            )

    @property
    def measured(self) -> NDArray[np.bool_]:
        """[n] True where a loss was measured."""
        with np.errstate(invalid="ignore"):
            return (self.losses > 0) & (self.losses < LARGEST_LOSS)

    @property
    def now(self) -> float:
        """The last listed step."""
        return float(self.steps[-1])

    @property
    def lr_sums(self) -> Floats:
        """[n] sums S of the learning rates of the steps up to each listed one."""
        gaps = np.diff(self.steps)
        assert self.first_lr_sum is not None
        return self.first_lr_sum + np.concatenate([[0.0], np.cumsum(gaps * self.lrs[1:])])

    @property
    def last_loss(self) -> float:
        """The last measured loss, in nats per token."""
        return float(self.losses[self.measured][-1])

    @property
    def gap(self) -> float:
        """Mean number of steps between two rows; 1 for a single row."""
        if len(self.steps) == 1:
            return 1.0
        return float(self.steps[-1] - self.steps[0]) / (len(self.steps) - 1)

    def means(self, most: int) -> tuple[Floats, Floats]:
        """Return mean steps and mean losses of at most `most` groups of neighbouring measured rows.

        Returns:
            [m] mean steps and [m] mean losses in nats per token.
        """
        steps = self.steps[self.measured]
        losses = self.losses[self.measured]
        starts = np.unique(np.arange(most) * len(steps) // most)
        counts = np.diff(starts, append=len(steps))
        return np.add.reduceat(steps, starts) / counts, np.add.reduceat(losses, starts) / counts

    def until(self, step: float) -> History:
        """Return the history as it was at `step`: the rows up to it, included."""
        count = int(np.searchsorted(self.steps, step, side="right"))
        return History(
            steps=self.steps[:count],
            losses=self.losses[:count],
            lrs=self.lrs[:count],
            first_lr_sum=self.first_lr_sum,
        )


def futures(history: History, steps: ArrayLike, lrs: ArrayLike) -> tuple[Floats, Floats]:
    """Check steps and learning rates to come.

    Args:
        history: History that they follow.
        steps: [H] steps, rising, after the last of the history.
        lrs: [H] or [K, H] learning rates of these steps, as in a history; one row per candidate.

    Returns:
        Steps [H] and learning rates, [H] or [K, H], as float64.

    Raises:
        UserError: the shapes do not fit, steps do not rise or are not after the history, or a
            learning rate is negative or not finite.
    """
    ahead = _vector("steps", steps)
    _check_rising(ahead, above=history.now)
    rates = np.asarray(lrs, dtype=np.float64)
    if rates.ndim not in (1, 2) or rates.shape[-1] != len(ahead) or not rates.size:
        raise UserError(
            f"future learning rates must have the shape [{len(ahead)}] of the steps, "
            f"or [candidates, {len(ahead)}], found {list(rates.shape)}; give one for each step"
        )
    _check_rates(rates)
    return ahead, rates


def wanted(steps: Floats, at: Sequence[int] | None) -> NDArray[np.intp]:
    """Return the positions in `steps` [H] at which to forecast, [Q].

    These are the positions in `at`, counted from the end where negative; all if `at` is None.

    Raises:
        UserError: `at` is empty, or a position does not exist.
    """
    rows = np.arange(len(steps))
    if at is None:
        return rows
    positions = list(at)
    wrong = [one for one in positions if not -len(steps) <= one < len(steps)]
    if wrong or not positions:
        raise UserError(
            f"at must hold positions among the {len(steps)} steps ahead, "
            f"found {wrong or 'none'}; -1 is the last"
        )
    return rows[positions]


def _vector(name: str, values: ArrayLike) -> Floats:
    """Return a read-only copy as float64, [n]."""
    vector = np.array(values, dtype=np.float64)
    if vector.ndim != 1:
        raise UserError(
            f"{name} must be a list of numbers, found shape {list(vector.shape)}; "
            "give one curve at a time"
        )
    vector.flags.writeable = False
    return vector


def _check_rising(steps: Floats, *, above: float) -> None:
    if not len(steps):
        raise UserError("steps must not be empty, found none; list the steps to forecast")
    wrong = ~(np.isfinite(steps) & (np.diff(steps, prepend=above) > 0))
    if wrong.any():
        index = int(np.argmax(wrong))
        raise UserError(
            f"steps must be finite, rise, and be above {above:g}, "
            f"found {steps[index]:g} at position {index}; sort them and leave doubles out"
        )


def _check_rates(lrs: Floats) -> None:
    if not (lrs.min() >= 0 and lrs.max() < np.inf):  # false where a rate is NaN, too
        wrong = lrs[~((lrs >= 0) & (lrs < np.inf))][0]
        raise UserError(
            f"learning rates must be finite and at least 0, found {wrong:g}; give those in force"
        )
