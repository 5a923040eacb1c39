"""AcceptanceStats of verified branches: how often drafts are accepted, how wide their intervals must be, and a model that learns."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from trainenv.types import DECISIONS, LOOKS, Learner, Rollout, RunHistory, Verdict

_DECAY = 0.7  # of the acceptance rate
# share of branches that may lie outside their intervals; how fast the width follows
_MISSED = 0.1
_RATE = 0.5


@dataclass
class AcceptanceStats:
    """Acceptance rate and interval width, learned from verified drafts.

    Attributes:
        accepted: share of the drafts that were accepted, the newest weighing most.
        width: factor on the width of the drafts' intervals.
    """

    accepted: float = 0.5
    width: float = 1.0

    def learn(self, verdict: Verdict) -> None:
        """From one verification.

        The width follows the misses (adaptive conformal inference, Gibbs and Candès 2021, on its
        logarithm); the branches of one verification share their fate, so together they weigh as
        one.
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
        """Number of branches worth verifying: fewer where drafts are mostly accepted."""
        return max(1, round(most * (1 - self.accepted)))

    def steps(self, usual: int) -> int:
        """Steps that each branch is trained: fewer where drafts are mostly accepted."""
        return max(1, round(usual * (1.25 - 0.5 * self.accepted)))

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values."""
        return asdict(self)


def update_model(
    model: Learner, run: str, history: RunHistory, verdict: Verdict, left: float = math.inf
) -> float:
    """Hand what was measured to a model that learns, where it has a place for it.

    Returns the FLOPs that learning took.

    A model may have a method `price(rollouts)`, the FLOPs that learning from so many takes at most:
    beyond what is `left` it does not learn.
    """
    looks = DECISIONS * history.decision_steps / LOOKS
    near = abs(verdict.steps - looks) <= 0.25 * looks
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
