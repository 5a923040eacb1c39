"""Design of a data set: numbers, kinds and lengths of the branches of every trunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trainenv.types import UserError
from trainenv.worldmodel.dataset.actions import Randomised

DECISIONS = 4  # decisions over the horizon of a branch
LOOKS = 8  # validations over the horizon, evenly spaced


@dataclass(frozen=True)
class Lengths:
    """Step counts of one trunk.

    Attributes:
        horizon: Steps of a branch, N.
        decision: Steps between two decisions, N / 4.
        look: Steps between two evaluation points, N / 8.
        cooldown: Steps of the reference cool-down after the branch.
    """

    horizon: int
    decision: int
    look: int
    cooldown: int


@dataclass(frozen=True, kw_only=True)
class Design:
    """Design of the branches of every trunk.

    Args:
        horizon_share: Length of a branch, as a share of the trunk's budget; the default is 2000
            steps of a run of 16 000.
        cooldown_share: Length of the reference cool-down, as a share of the trunk's budget.
        random, after_faults, fired, rewound: Greatest numbers of snapshots of each origin, see
            `branch_points`.
        singles: Number of branches with one intervention at their start.
        sequences: Number of branches with an intervention at each of their four decisions.
        exhaustive: Share of snapshots, of folded trunks, that have an additional branch for each
            legal action, without data reorder and skipping.
        replicated: Share of snapshots whose control is repeated with noise.
        replicas: Number of repetitions for each kind of noise.
        continued: Share of snapshots whose branches run to the end of the schedule.
        first: Policy of the branches with one intervention.
        later: Policy of each decision of a sequence.
        tolerance: Difference to the level before the fault at which a run has recovered, nats.
        divergence: Validation loss from which a run counts as diverged, in units of the loss of a
            uniform guess.
        fold: Greatest width of models whose branches are folded, and greatest number of branches
            in one fold.

    Raises:
        UserError: A share or a count is out of range.
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
        """Tell whether branches of a model of this width are folded, because it is faster."""
        return width <= self.fold[0]

    def lengths(self, budget: int) -> Lengths:
        """Return the step counts of a trunk of `budget` steps."""
        look = max(1, round(self.horizon_share * budget / LOOKS))
        horizon = LOOKS * look
        cooldown = max(1, round(self.cooldown_share * budget))
        return Lengths(horizon, horizon // DECISIONS, look, cooldown)

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {
            **asdict(self),
            "first": _plain(self.first),
            "later": _plain(self.later),
            "fold": list(self.fold),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Design:
        """Return the design from what `to_json` returned."""
        policies = {
            name: Randomised(**{**values[name], "lr_factors": tuple(values[name]["lr_factors"])})
            for name in ("first", "later")
        }
        return cls(**{**values, **policies, "fold": tuple(values["fold"])})


def _plain(policy: Randomised) -> dict[str, Any]:
    return {**asdict(policy), "lr_factors": list(policy.lr_factors)}
