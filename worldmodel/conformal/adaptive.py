"""Adaptive conformal inference (ACI: Gibbs & Candès 2021, arXiv:2106.00170, eq.

2), for labels that come late and of many runs.

    α_{t+1} = α_t + γ·(α − err_t)           err_t = 1 where the outcome fell outside the interval
    that was issued

An interval is issued at the level in force and gets a ticket; its label comes later, in any order,
and moves the level then. All runs that share a state share the level, since one run has too few
labels to learn from.

What is in force is α_t clipped to [0, `highest`]; at 0 the interval is everything, which never
misses, and so α_t comes back. The state is clipped at `highest` alone (else years of easy runs
would have to be paid back first), which errs on the safe side. So, for *any* outcomes, after T
labels with at most D intervals waiting at a time (the paper's proposition 4.1 has D = 1):

    share of misses ≤ α + (α_1 + γ·(1 − α)·D) / (γ·T)         α_1 = α

`report` gives this bound beside the measured share. With few labels it is vacuous: T = 40, D = 4, γ
= 0.05, α = 0.1 give 0.24. It speaks of the labels that came; intervals dropped (`forget`) are
counted, not covered. After a drift beyond all past scores the level alone keeps its promise by
infinite intervals (67 % of them in `benchmarks/conformal.py`, 19 % where the scores are those of
recent labels): calibrate on recent labels as well. The bound allows it, whatever the intervals are
made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainenv.types import UserError
from trainenv.worldmodel.conformal.quantile import share


@dataclass(frozen=True, kw_only=True)
class AdaptiveLevel:
    """The rule; its state is a dict of JSON values that `init` makes and the others change in place.

    Args:
        alpha: share of misses aimed at, between 0 and 1.
        gamma: how far one label moves the level.
        highest: greatest level in force, `alpha` or above and below 1: intervals never aim at less
            than 1 − `highest`.

    Raises:
        UserError: a setting is out of range.
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
        """A fresh state: the level, the tickets that wait (with their run), and what was measured by run: [labels, misses]."""
        return {
            "alpha": self.alpha,
            "issued": 0,
            "waiting": {},
            "most_waiting": 0,
            "forgotten": 0,
            "runs": {},
        }

    def level(self, state: Mapping[str, Any]) -> float:
        """The level in force, 0 to `highest`; `Calibration.interval(alpha=…)` takes it, 0 too."""
        return min(max(float(state["alpha"]), 0.0), self.highest)

    def issue(self, state: dict[str, Any], *, run: str) -> tuple[str, float]:
        """A ticket for an interval to be made now, and the level to make it at."""
        ticket = str(state["issued"])
        state["issued"] += 1
        state["waiting"][ticket] = run
        state["most_waiting"] = max(state["most_waiting"], len(state["waiting"]))
        return ticket, self.level(state)

    def learn(self, state: dict[str, Any], missed: Mapping[str, bool]) -> None:
        """Take in labels: for each ticket whether the outcome fell outside.

        Those of one call are taken in order of issue.

        Raises:
            UserError: a ticket is not waiting (the state is left as it was).
        """
        self._check(state, missed)
        for ticket in sorted(missed, key=int):
            miss = int(bool(missed[ticket]))
            state["alpha"] = min(state["alpha"] + self.gamma * (self.alpha - miss), self.highest)
            counts = state["runs"].setdefault(state["waiting"].pop(ticket), [0, 0])
            counts[0] += 1
            counts[1] += miss

    def forget(self, state: dict[str, Any], tickets: Iterable[str]) -> None:
        """Give up on labels that will never come (a branch that was killed)."""
        tickets = set(tickets)
        self._check(state, tickets)
        for ticket in tickets:
            del state["waiting"][ticket]
        state["forgotten"] += len(tickets)

    def report(self, state: Mapping[str, Any]) -> dict[str, float]:
        """What was measured: labels, misses, their share (0 of no labels), the bound on it (1 where vacuous), and the rest.

        `worst_run` is the greatest share of misses of any one run: the level is pooled, and so is
        what it promises.
        """
        labels, misses = (sum(counts[i] for counts in state["runs"].values()) for i in (0, 1))
        slack = self.alpha + self.gamma * (1 - self.alpha) * state["most_waiting"]
        return {
            "labels": labels,
            "misses": misses,
            "missed": misses / max(labels, 1),
            "bound": min(1.0, self.alpha + slack / (self.gamma * labels)) if labels else 1.0,
            "worst_run": max((b / a for a, b in state["runs"].values()), default=0.0),
            "waiting": len(state["waiting"]),
            "forgotten": state["forgotten"],
            "level": self.level(state),
        }

    def _check(self, state: Mapping[str, Any], tickets: Iterable[str]) -> None:
        unknown = sorted(set(tickets) - set(state["waiting"]))
        if unknown:
            raise UserError(
                f"tickets must be issued and waiting, found {', '.join(map(repr, unknown))}; give each label once"
            )
