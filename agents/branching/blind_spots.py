"""Measurements that a run cannot make, said before it starts."""

from __future__ import annotations

from trainenv.agents.branching.lr_range import SHORTEST
from trainenv.models.spec import spec_of
from trainenv.rollouts.in_place import reason_in_place
from trainenv.types import Run


def blind_spots(run: Run) -> tuple[str, ...]:
    """Return a sentence for each part of the monitoring that a run cannot have; empty if none.

    Args:
        run: Run that is not steered yet.
    """
    monitor = run.config.monitor
    warmup = run.config.schedule.warmup
    found = []
    if not monitor.enabled:
        found.append("the index and the range test are blind, as monitor.enabled is false")
    elif not monitor.probe_every:
        found.append("the range test is blind and harm is not seen, as monitor.probe_every is 0")
    elif not run.flops_of_probes(1):
        found.append(
            "the index sees loss and gradients alone and harm is not seen, as the run has no probe "
            "(probe=a clean micro-batch)"
        )
    elif not _sees_attention(run):
        found.append(f"the index sees no attention, which is unknown in {type(run.model).__name__}")
    if monitor.enabled and monitor.probe_every and warmup < SHORTEST:
        found.append(
            f"the range test is blind, as the warm-up has {warmup} steps, fewer than {SHORTEST} "
            "(schedule.warmup)"
        )
    if reason := reason_in_place(run):
        found.append(reason)
    return tuple(found)


def _sees_attention(run: Run) -> bool:
    """Return True if the probe finds the projections of attention."""
    spec = spec_of(run.model)
    return any(spec.attention(block) for block in spec.blocks(run.model))
