"""Interventions that need no planner: clipping from the start, and backing off after divergence."""

from __future__ import annotations

from trainenv.interventions import ActionCodec
from trainenv.types import Event, Intervention, Run
from trainenv.verification import record


def enable_default_clipping(run: Run) -> list[Event]:
    """Put ZClip in force if no clip policy was chosen, and return the events.

    It has no measurable cost, and no model can foresee a bad batch. It holds from the first step
    on, because the gradient of that step is the largest of many runs: after it, it is in the
    optimizer's moments. Without clipping there, a model of 25 million parameters was 0.2 nats
    behind for hundreds of steps.
    """
    chosen = any(one.clip for _, one in run.applied)
    if chosen or run.clip != "none" or run.config.clip.policy == "norm":
        return []
    return [apply(run, Intervention(clip="zclip"))]


def back_off(run: Run) -> list[Event]:
    """Take the lowest legal learning rate and clip, as people do by hand; return the events.

    The rule applies after a run has diverged and no verified branch shows a better way.
    """
    interventions = run.config.interventions
    legal = ActionCodec(interventions).masks(run)[0]
    lowest = min(scale for scale, allowed in zip(interventions.lr_scales, legal) if allowed)
    if run.clip == "zclip":
        return [apply(run, Intervention(lr_scale=lowest))]
    return [apply(run, Intervention(lr_scale=lowest, clip="zclip"))]


def apply(run: Run, intervention: Intervention, *, pending: bool = False) -> Event:
    """Put an intervention in force and return the event.

    Args:
        run: Run.
        intervention: Intervention.
        pending: True for a later part of a sequence that was accepted.

    Raises:
        UserError: It would leave the bounds.
    """
    run.apply(intervention)
    detail = record.changes(intervention)
    if pending:
        detail["pending"] = True
    return Event(run.step, "intervention", detail)
