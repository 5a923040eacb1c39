"""Interventions that need no draft: insurance at the start, and calm after a loss that was lost."""

from __future__ import annotations

from trainenv.interventions import ActionCodec
from trainenv.types import Event, Intervention, Run
from trainenv.verification import record


def enable_default_clipping(run: Run) -> list[Event]:
    """Clip where nothing does: it costs nothing that could be measured, and no model of the present foresees a bad batch.

    From the first step on, whose gradient is the largest of many runs: a step later it is in the
    moments of the optimizer, and a model of 25 million parameters was 0.2 nats behind for hundreds
    of steps.
    """
    chosen = any(one.clip for _, one in run.applied)  # by whoever knows better
    return [] if chosen or run.clip != "none" else [in_force(run, Intervention(clip="zclip"))]


def back_off(run: Run, codec: ActionCodec) -> list[Event]:
    """After a loss that was lost, with no draft to go by: what people do by hand, a lower learning rate and clipping."""
    legal = codec.masks(run)[0]
    lowest = min(
        scale for scale, allowed in zip(run.config.interventions.lr_scales, legal) if allowed
    )
    return [
        in_force(run, Intervention(lr_scale=lowest, clip=None if run.clip == "zclip" else "zclip"))
    ]


def in_force(run: Run, intervention: Intervention, *, pending: bool = False) -> Event:
    """Put an intervention in force. Returns what is noted of it.

    Args:
        run: where.
        intervention: what.
        pending: whether it is a later part of a sequence that was accepted.

    Raises:
        UserError: it would leave the bounds.
    """
    run.apply(intervention)
    return Event(
        run.step,
        "intervention",
        record.changes(intervention) | ({"pending": True} if pending else {}),
    )
