"""Following a plan to the end of the run: changes too small for a trial take effect at once.

A planner that plans to the end is asked anew at every checkpoint, and the run takes the first part
of its path (receding horizon). What such a change gains shows hundreds of steps later, so that a
few real steps cannot judge it. Harm shows on the clean probe, and the run then goes back to a
rewind point. A change of at most `branching.untried_change` is therefore not tried, and a larger
one is cut to that size: the next decision sees what it did.

Before the first step the plan knows the schedule and the usual rate of such a model alone. A rate
that is much too high does its harm in the first steps, so a lower one takes effect at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainenv.agents.branching.decision import Decision, Skipped
from trainenv.agents.branching.loop_state import LoopState
from trainenv.agents.branching.standing_rules import apply
from trainenv.types import Candidate, Event, Intervention, Plan, Run, RunHistory

# A cut may be so many times as large as a raise: a rate that is too low for a while costs little.
_DEEPER = 3.0
_LEAST_CHANGE = 1e-4  # nats of ln rate below which a change is none


@dataclass(frozen=True, kw_only=True)
class Followed:
    """First part of a path, to be put in force without a trial.

    Attributes:
        intervention: Change of the learning rate now.
        candidate: Path that it is the beginning of.
        end: 90 % interval of ln loss at the end of the run on this path; None if unknown.
    """

    intervention: Intervention
    candidate: Candidate
    end: tuple[float, float] | None = None


def first_part(
    plan: Plan, history: RunHistory, *, every: int, most: float, min_gain: float
) -> Followed:
    """Return the change of the rate that a plan has until the next decision, within a limit.

    Before the first step any cut is within it: there is nothing yet to lose.

    Args:
        plan: Ranked paths.
        history: History that the plan was made from.
        every: Steps until the next decision.
        most: Largest raise of ln learning rate.
        min_gain: Least gain for which anything is changed, nats.

    Raises:
        Skipped: No path gains enough, or the best one holds the rate until the next decision.
    """
    best = plan.best
    if plan.faults and best.does_nothing:
        raise Skipped("; ".join(plan.faults), fault=True)
    if best.does_nothing or best.score > plan.control.score - min_gain:
        raise Skipped("no path promises enough", no_gain=True)
    soon = max(1, round(every / history.decision_steps))
    change = sum(math.log(one.lr_scale) for one in best.interventions[:soon])
    highest = most
    lowest = -math.inf
    if history.telemetry:
        now = history.telemetry[-1].lr_scale
        seen = max(one.lr_scale for one in history.telemetry)
        highest = max(most, math.log(seen / now))  # a factor that the run has had is no risk
        lowest = -_DEEPER * most
    change = min(max(change, lowest), highest)
    if abs(change) < _LEAST_CHANGE:
        raise Skipped("the best path holds the rate for now")
    return Followed(intervention=Intervention(lr_scale=math.exp(change)), candidate=best)


def follow(run: Run, followed: Followed, decision: Decision, state: LoopState) -> Event:
    """Put the first part of a path in force, and return the event.

    Args:
        run: Run.
        followed: Change, and the path that it begins.
        decision: Decision.
        state: State of the loop; what is left of an earlier sequence is forgotten.
    """
    state.pending = []
    state.triggers.note_plan(followed=True)
    event = apply(run, followed.intervention)
    plan = {
        "number": decision.number,
        "why": decision.trigger,
        "forecast": followed.candidate.score,
        "end": None if followed.end is None else list(followed.end),
    }
    return Event(event.step, event.kind, {**event.detail, "plan": plan})
