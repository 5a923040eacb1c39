"""Replay of the steps before an alarm: hardware is suspected where they do not repeat to the bit.

A run is a value, so the same steps from the same snapshot have the same bits. If they do, the alarm
comes from the data or from the state of the run. If they do not, the machine has computed something
else than before: memory or an arithmetic unit may be faulty.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainenv.rollouts.in_place import fork_of
from trainenv.types import Event, Run, Snapshot, Telemetry

# What must be the same now as in the snapshot, because later steps depend on it.
_UNCHANGED = ("applied", "horizon", "order")


def comparable(run: Run, snapshot: Snapshot, seen: Sequence[Telemetry]) -> bool:
    """Return True if training again from a snapshot must give the steps that were seen.

    It must not where an intervention or a shorter budget has come in between.

    Args:
        run: Run at the end of the steps.
        snapshot: Snapshot of the run from before them.
        seen: Telemetry of the steps.
    """
    if snapshot.tier != "exact" or len(seen) != run.step - snapshot.step:
        return False
    now = run.snapshot().state
    return all(now.get(name) == snapshot.state.get(name) for name in _UNCHANGED)


def replay(run: Run, snapshot: Snapshot, seen: Sequence[Telemetry]) -> Event:
    """Train the steps again on a fork, and return the finding as an event; the run stays as it is.

    Args:
        run: Run at the end of the steps.
        snapshot: Snapshot of the run from before them.
        seen: Telemetry of the steps.
    """
    fork = fork_of(run)
    fork.restore(snapshot)
    again = fork.advance(len(seen))
    differs = next((a.step for a, b in zip(again, seen) if _bits(a) != _bits(b)), None)
    if differs is None:
        reason = (
            f"steps {snapshot.step + 1} to {run.step} repeat to the bit, so the alarm comes from "
            "the data or the state"
        )
    else:
        reason = (
            f"step {differs} does not repeat to the bit from step {snapshot.step}: suspect hardware"
        )
    return Event(run.step, "replay", {"repeats": differs is None, "reason": reason})


def _bits(telemetry: Telemetry) -> tuple[str, ...]:
    """Return the numbers of a step that any other arithmetic would change."""
    return tuple(map(repr, (telemetry.loss, telemetry.grad_norm, telemetry.data_index)))
