"""Adaptive conformal inference for labels that arrive late and come from many runs.

ACI: Gibbs & Candès 2021, arXiv:2106.00170, eq. 2.

    α_{t+1} = α_t + γ·(α − err_t)       err_t = 1 if the outcome fell outside its interval, else 0

Each interval is issued at the level in force and gets a ticket. Its label may arrive later, in any
order, and then moves the level. All runs that share a state share the level, because one run has
too few labels.

The level in force is α_t clipped to [0, `highest`]. At 0 the interval is infinite and never misses,
so α_t rises again. The state itself is clipped at `highest` only, so that a long series of easy
runs does not delay the reaction to misses; this errs on the safe side. So, for *any* outcomes,
after T labels with at most D intervals waiting at a time (D = 1 in the paper's proposition 4.1):

    share of misses ≤ α + (α_1 + γ·(1 − α)·D) / (γ·T)         α_1 = α

`report` returns this bound with the measured share. With few labels it is weak: T = 40, D = 4,
γ = 0.05 and α = 0.1 give 0.24. It holds for labels that arrived; forgotten intervals (`forget`) are
counted, not covered.

After a drift beyond all past scores, the level alone can keep the bound only by infinite intervals:
67 % of them in `benchmarks/conformal.py`, but 19 % if the scores are those of recent labels. So
calibrate on recent labels as well; the bound holds for any intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainenv.types import UserError
from trainenv.worldmodel.conformal.quantile import share


@dataclass(frozen=True, kw_only=True)
class AdaptiveLevel:
    """The rule of ACI; its state is a dict of JSON values, which the methods change in place.

    Args:
        alpha: Target share of misses, above 0 and below 1.
        gamma: Step by which one label moves the level.
        highest: Greatest level in force, at least `alpha` and below 1; so intervals never aim at
            less coverage than 1 − `highest`.

    Raises:
        UserError: a hyperparameter is out of range.
    """

    alpha: float = 0.1
    gamma: float = 0.05
    highest: float = 0.5

    def __post_init__(self) -> None:
        share("alpha", self.alpha)
        share("gamma", self.gamma)
        if not self.alpha <= share("highest", self.highest):
            raise UserError(
                f"highest must be alpha = {self.alpha} or above, found {self.highest!r}"
            )

    def init(self) -> dict[str, Any]:
        """Return a new state: level, waiting tickets with their runs, [labels, misses] by run."""
        return {
            "alpha": self.alpha,
            "issued": 0,
            "waiting": {},
            "most_waiting": 0,
            "forgotten": 0,
            "runs": {},
        }

    def level(self, state: Mapping[str, Any]) -> float:
        """Return the level in force, from 0 to `highest`, for `Calibration.interval(alpha=…)`."""
        return min(max(float(state["alpha"]), 0.0), self.highest)

    def issue(self, state: dict[str, Any], *, run: str) -> tuple[str, float]:
        """Return a ticket for a new interval, and the level to make it at."""
        ticket = str(state["issued"])
        state["issued"] += 1
        state["waiting"][ticket] = run
        state["most_waiting"] = max(state["most_waiting"], len(state["waiting"]))
        return ticket, self.level(state)

    def learn(self, state: dict[str, Any], missed: Mapping[str, bool]) -> None:
        """Learn from labels, in the order in which their intervals were issued.

        Args:
            state: State to change.
            missed: True for each ticket whose outcome fell outside its interval, else False.

        Raises:
            UserError: a ticket is not waiting; the state is not changed.
        """
        self._check(state, missed)
        for ticket in sorted(missed, key=int):
            miss = int(bool(missed[ticket]))
            state["alpha"] = min(state["alpha"] + self.gamma * (self.alpha - miss), self.highest)
            counts = state["runs"].setdefault(state["waiting"].pop(ticket), [0, 0])
            counts[0] += 1
            counts[1] += miss

    def forget(self, state: dict[str, Any], tickets: Iterable[str]) -> None:
        """Drop tickets whose labels will never arrive, for instance of a branch that was killed."""
        tickets = set(tickets)
        self._check(state, tickets)
        for ticket in tickets:
            del state["waiting"][ticket]
        state["forgotten"] += len(tickets)

    def report(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Return the counts of labels and misses, and the bound on the share of misses.

        `missed` is the share of misses (0 without labels), `bound` the bound on it (1 without
        labels), and `worst_run` the greatest share in a single run. The level is pooled over runs,
        and so is the bound: it does not hold for each run.
        """
        counts = state["runs"].values()
        labels = sum(count for count, _ in counts)
        misses = sum(count for _, count in counts)
        slack = self.alpha + self.gamma * (1 - self.alpha) * state["most_waiting"]
        bound = 1.0
        if labels:
            bound = min(bound, self.alpha + slack / (self.gamma * labels))
        return {
            "labels": labels,
            "misses": misses,
            "missed": misses / max(labels, 1),
            "bound": bound,
            "worst_run": max((b / a for a, b in counts), default=0.0),
            "waiting": len(state["waiting"]),
            "forgotten": state["forgotten"],
            "level": self.level(state),
        }

    def _check(self, state: Mapping[str, Any], tickets: Iterable[str]) -> None:
        unknown = sorted(set(tickets) - set(state["waiting"]))
        if unknown:
            raise UserError(
                "tickets must be issued and waiting, "
                f"found {', '.join(map(repr, unknown))}; give each label once"
            )
