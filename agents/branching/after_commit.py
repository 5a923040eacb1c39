"""Consequences of a commit: later interventions, statistics, a model that learns, the record."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from trainenv.agents.branching.acceptance import update_model
from trainenv.agents.branching.decision import Decision
from trainenv.agents.branching.decision_records import Verified
from trainenv.agents.branching.loop_state import LoopState
from trainenv.agents.branching.standing_rules import apply
from trainenv.tools.error_text import describe_error
from trainenv.types import Event, Learner, Run, Telemetry


def after_rollback(
    run: Run,
    verified: Verified,
    kept: Sequence[Telemetry],
    decision: Decision,
    state: LoopState,
) -> None:
    """Note a rollback and restore the learning rate if it was accepted; record the decision.

    Args:
        run: Run after the commit.
        verified: Verified rollback.
        kept: Steps of the rollback; empty if it was not accepted.
        decision: Decision, which the events are added to.
        state: State of the loop.
    """
    point = verified.proposal.point
    winner = verified.verdict.winner
    if winner is not None:
        flops = len(point.since) * run.flops_ahead
        event = state.note_rewind(
            decision.at, point.start, flops=flops, harm=decision.harm, rate=run.lr_scale
        )
        decision.events.append(event)
        state.triggers.note_rollback(decision.at)
        state.observe(kept)
        state.validation = winner.outcome.validation[-1]
    verified.record.finish(run)
    decision.events.append(verified.record.event(verified.verdict))
    if winner is not None:
        decision.events.append(apply(run, winner.interventions[-1], pending=True))


def after_draft(
    run: Run,
    verified: Verified,
    kept: Sequence[Telemetry],
    decision: Decision,
    state: LoopState,
    model: object,
) -> None:
    """Back off if the run has diverged, learn from the branches, and record the decision.

    Args:
        run: Run after the commit.
        verified: Verified drafts.
        kept: Steps that the run has gained; empty if the run left alone has diverged and no draft
            was accepted.
        decision: Decision, which the events are added to.
        state: State of the loop.
        model: Model, which learns if it is a `Learner`.
    """
    start = verified.proposal.point.step
    verdict = verified.verdict
    taken = verdict.winner or verdict.control
    if not kept:
        decision.events += state.go_back(run, start, decision.harm, diverged=True)
        decision.events += state.back_off(run)
    state.observe(kept)
    state.validation = math.nan if taken.lost else taken.outcome.validation[-1]
    verified.record.finish(run)
    if verdict.winner is not None:
        # Those within the branch are in force already; the later ones come due a decision apart.
        steps = itertools.count(start, verified.proposal.decision_steps)
        due = zip(steps, taken.interventions)
        state.pending = [(step, one) for step, one in due if step >= start + verdict.steps]
    if decision.trigger == "warmup":  # which tells nothing about the planner's drafts
        state.base_factor = run.lr_scale
    else:
        state.acceptance.learn(verdict)
    faults = _teach(model, run, verified, decision, state)
    events = [verified.record.event(verdict, faults), *state.apply_due(run)]
    if reason := state.triggers.note_verdict(accepted=verdict.accepted is not None):
        events.append(Event(run.step, "gave_up", {"reason": reason}))
    decision.events += events


def _teach(
    model: object, run: Run, verified: Verified, decision: Decision, state: LoopState
) -> list[str]:
    """Let a model learn from the branches, and return its faults."""
    history = verified.proposal.history
    if not isinstance(model, Learner) or history is None:
        return []
    name = f"{run.config.name}-{run.config.seed}"
    try:
        flops = update_model(model, name, history, verified.verdict, state.waste.left)
    except Exception as error:  # the model is as it was, or nearly; the run does not depend on it
        return [f"the model did not learn: {describe_error(error)}"]
    run.ledger.charge("model", flops)
    state.throw_away(run, decision, flops)
    return []
