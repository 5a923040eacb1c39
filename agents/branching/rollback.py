"""Rollback that is tried once harm is seen: from before it to where the run is now.

    rewind      to the newest snapshot from before the last probe that saw no harm
    skip        the data since, and as much ahead as lies between two probes
    lower       the learning rate to ⅓ of what it is now, until the run is as far as it was

The rollback is compared with what the run has done since, which was trained already. So it costs
its own steps only, and a rollback that is not accepted leaves the run as if it had not been tried.
It serves both causes of harm: bad data is skipped, and a rate that is too high, in itself or after
lost optimizer moments, is lower for a while. People do the same by hand, but without the trial
(PaLM, Chowdhery 2022, §5.1; OPT, Zhang 2022, §2.5).
"""

from __future__ import annotations

import math
from dataclasses import replace

from trainenv.agents.branching.decision import Proposal
from trainenv.agents.branching.rewind_points import RewindPoint
from trainenv.rollouts.executor import NOTHING
from trainenv.types import (
    Candidate,
    Intervention,
    Plan,
    Run,
)
from trainenv.verification.rules import Better
from trainenv.verification.verify import Verification

_RATE = 1 / 3  # factor on the learning rate during the rollback
# Least gain in ln loss where the run is now. In healthy runs whose probe rose by chance, the lower
# rate alone gained up to 0.03 for as long as it lasted; after planted faults, rollbacks gained more
# than 0.045.
_MARGIN = 0.03
# Score of a candidate that no model has seen: only just better than the run left alone.
_UNSEEN = -1e-9


def plan_rollback(run: Run, point: RewindPoint, usual: Verification) -> Proposal:
    """Plan a lower learning rate on other data, from before the harm to where the run is now.

    Args:
        run: Run, which is left as it is.
        point: Fork of the run from before the harm.
        usual: Verification of drafts. That of a rollback is not folded, so that it trains with the
            same bits as a single run.
    """
    start = point.start
    steps = len(point.since)
    # Decisions since then hold, except for a higher rate.
    rate = min(run.lr_scale, start.lr_scale) / start.lr_scale
    later = [one for _, one in run.applied[len(start.applied) :]]
    clip = next((one.clip for one in reversed(later) if one.clip), None)
    lower = Intervention(lr_scale=rate * _RATE, clip=clip, skip_batch=True)
    back = Intervention(lr_scale=1 / _RATE)
    way = Candidate(interventions=(lower, back), score=_UNSEEN)
    nothing = Candidate(interventions=NOTHING, score=0.0)
    return Proposal(
        point=point,
        plan=Plan(planner="detour", candidates=(way, nothing)),
        verification=replace(
            usual, top_k=1, rule=Better(margin=_MARGIN), worth=0.0, stopping=None, fold=False
        ),
        steps=steps,
        decision_steps=steps,
        limit=math.inf,
    )


def price_of_rollback(run: Run, steps: int) -> float:
    """Return the most FLOPs that a rollback of this many steps wastes.

    Wasted are its steps or those of the run since, and validations at its start and at both ends.
    """
    return steps * run.flops_ahead + run.flops_of_probes(steps) + 3 * run.flops_per_evaluation
