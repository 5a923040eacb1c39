"""How many branches, of which kinds, how long: what stays the same over a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trainenv.types import UserError
from trainenv.worldmodel.dataset.actions import Randomised

DECISIONS = 4  # of a sequence: the horizon is as many decisions
LOOKS = 8  # validations over the horizon, evenly spaced


@dataclass(frozen=True)
class Lengths:
    """Step counts of one trunk.

    Attributes:
        horizon: steps of a branch, N.
        decision: steps from one decision to the next, N / 4.
        look: steps from one clean validation to the next, N / 8.
        cooldown: steps of the reference cool-down after it.
    """

    horizon: int
    decision: int
    look: int
    cooldown: int


@dataclass(frozen=True, kw_only=True)
class Design:
    """What is done with every trunk.

    Args:
        horizon_share: length of a branch, as a share of the trunk's budget (SPEC's 2000 steps of a
            run of 16 000).
        cooldown_share: length of the reference cool-down, likewise.
        random, after_faults, fired, rewound: snapshots of each origin, at most; see `points`.
        singles: branches with one intervention at their start.
        sequences: branches with one at each of their four decisions.
        exhaustive: share of snapshots, of trunks that are folded, at which beside these every legal
            action is tried by itself (but for data reorder and skipping).
        replicated: share of snapshots whose control is repeated with noise.
        replicas: how often, for each kind of noise.
        continued: share of snapshots whose branches go on to the end of the schedule.
        first, later: policies of single interventions, and of each decision of a sequence.
        tolerance: nats above the level before at which a run has recovered.
        divergence: validation loss, in units of a uniform guess's, from which a run counts as
            diverged.
        fold: the greatest width of models whose branches are folded, and most branches in one fold.

    Raises:
        UserError: a share or a count is out of range.
    """

    horizon_share: float = 0.12
    cooldown_share: float = 0.1
    random: int = 2
    after_faults: int = 2
    fired: int = 1
    rewound: int = 1
    singles: int = 8
    sequences: int = 6
    exhaustive: float = 0.06
    replicated: float = 0.35
    replicas: int = 2
    continued: float = 0.35
    first: Randomised = field(default_factory=lambda: Randomised(nothing=0.0))
    later: Randomised = field(default_factory=Randomised)
    tolerance: float = 0.02
    divergence: float = 1.0
    fold: tuple[int, int] = (48, 16)

    def __post_init__(self) -> None:
        for name in ("horizon_share", "cooldown_share"):
            if not 0 < getattr(self, name) <= 0.5:
                raise UserError(
                    f"{name} must be above 0 and at most 0.5, found {getattr(self, name)!r}"
                )
        for name in ("replicated", "continued", "exhaustive"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be from 0 to 1, found {getattr(self, name)!r}")
        for name in (
            "random",
            "after_faults",
            "fired",
            "rewound",
            "singles",
            "sequences",
            "replicas",
        ):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 0):
                raise UserError(
                    f"{name} must be a whole number, 0 or more, found {getattr(self, name)!r}"
                )
        if not (
            len(self.fold) == 2
            and all(isinstance(number, int) for number in self.fold)
            and self.fold[1] >= 1
        ):
            raise UserError(
                f"fold must be a width and a number of branches, 1 or more, found {self.fold!r}"
            )
        if not self.divergence > 0:
            raise UserError(f"divergence must be above 0, found {self.divergence!r}")

    def folds(self, width: int) -> bool:
        """Whether branches of a model so wide are faster folded."""
        return width <= self.fold[0]

    def lengths(self, budget: int) -> Lengths:
        """Of a trunk of `budget` steps."""
        look = max(1, round(self.horizon_share * budget / LOOKS))
        horizon = LOOKS * look
        return Lengths(
            horizon, horizon // DECISIONS, look, max(1, round(self.cooldown_share * budget))
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            **asdict(self),
            "first": _plain(self.first),
            "later": _plain(self.later),
            "fold": list(self.fold),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Design:
        """The design that `to_json` was taken of."""
        policies = {
            name: Randomised(**{**values[name], "lr_factors": tuple(values[name]["lr_factors"])})
            for name in ("first", "later")
        }
        return cls(**{**values, **policies, "fold": tuple(values["fold"])})


def _plain(policy: Randomised) -> dict[str, Any]:
    return {**asdict(policy), "lr_factors": list(policy.lr_factors)}
