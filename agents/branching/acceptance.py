"""Statistics of verified branches, and a model that learns from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from trainenv.types import DECISIONS, LOOKS, Learner, Rollout, RunHistory, Verdict

_DECAY = 0.7  # of the acceptance rate, a decision
_MISSED = 0.1  # share of the branches that may lie outside their intervals
_RATE = 0.5  # rate at which the width follows the misses


@dataclass
class AcceptanceStats:
    """Acceptance rate and interval width, learned from verified drafts.

    Attributes:
        accepted: Share of the drafts that were accepted; the newest count most.
        width: Factor on the width of the forecast intervals.
    """

    accepted: float = 0.5
    width: float = 1.0

    def learn(self, verdict: Verdict) -> None:
        """Update both figures from one verification.

        The width follows the misses: adaptive conformal inference (Gibbs and Candès 2021), on the
        logarithm of the width. The branches of one verification are not independent, so together
        they count as one.
        """
        self.accepted = _DECAY * self.accepted + (1 - _DECAY) * (verdict.accepted is not None)
        missed = [
            not b.expected[0] <= b.delta <= b.expected[2]
            for b in verdict.branches[1:]
            if b.expected and not b.lost
        ]
        if missed and not verdict.control.lost:
            self.width *= math.exp(_RATE * (sum(missed) / len(missed) - _MISSED))

    def branches(self, most: int) -> int:
        """Return the number of branches to verify: fewer where drafts are mostly accepted."""
        return max(1, round(most * (1 - self.accepted)))

    def steps(self, usual: int) -> int:
        """Return the number of steps of each branch: fewer where drafts are mostly accepted."""
        return max(1, round(usual * (1.25 - 0.5 * self.accepted)))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return asdict(self)


def update_model(
    model: Learner, run: str, history: RunHistory, verdict: Verdict, left: float = math.inf
) -> float:
    """Let a model learn from verified branches, and return the FLOPs that this took.

    Args:
        model: Model that learns. It may have a method `price(rollouts)`: the most FLOPs that
            learning from a number of rollouts takes. If that is more than `left`, it does not
            learn.
        run: Name of the run.
        history: History that the branches start from.
        verdict: Verified branches.
        left: FLOPs that learning may take.
    """
    horizon = DECISIONS * history.decision_steps / LOOKS
    near = abs(verdict.steps - horizon) <= 0.25 * horizon
    rollouts = [
        Rollout(
            run=run,
            history=history,
            interventions=branch.interventions,
            looks=(branch.delta,) if near else (),
            annealed=branch.annealed_delta,
        )
        for branch in verdict.branches[1:]
        if not branch.lost
        and ((near and math.isfinite(branch.delta)) or math.isfinite(branch.annealed_delta))
    ]
    if verdict.control.lost or not rollouts:
        return 0.0
    price = getattr(model, "price", None)
    if price is not None and price(len(rollouts)) > left:
        return 0.0
    before = float(getattr(model, "flops", 0.0))
    model.learn(rollouts)
    return float(getattr(model, "flops", 0.0)) - before
