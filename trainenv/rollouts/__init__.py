"""Rollouts: futures of a run that are trained for real, on forks, while the run stays as it is.

    rollouts = Rollouts(run, decision_steps=25)
    outcomes = rollouts.run([NOTHING, (Intervention(lr_scale=0.8),)], 50, measure="horizon")
    rollouts.adopt((Intervention(lr_scale=0.8),), 50)         # the run becomes that future

- `executor`: `Rollouts`, which trains futures and keeps them; `branch_loop` is its loop.
- `group`, `folded`, `remote`: three ways to train forks side by side (in turn, folded into one
  model, in worker processes). `side_by_side` of `placement` picks the fastest.
- `pool`, `worker`: the worker processes, on either side of the connection.
- `cooldown`: the reference cool-down.

Each name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
    from trainenv.rollouts.cooldown import cool_down
    from trainenv.rollouts.executor import NOTHING, Rollouts
    from trainenv.rollouts.folded import Folded
    from trainenv.rollouts.fork import Start, fork_at
    from trainenv.rollouts.future import Future
    from trainenv.rollouts.group import InTurn
    from trainenv.rollouts.placement import reason_not_folded, side_by_side
    from trainenv.rollouts.remote import RemoteGroup, dismiss

__all__ = [
    "NOTHING",
    "Folded",
    "Future",
    "InTurn",
    "RemoteGroup",
    "Rollouts",
    "Start",
    "cool_down",
    "dismiss",
    "fork_at",
    "reason_not_folded",
    "side_by_side",
]

__getattr__ = lazy(
    __name__,
    {
        "NOTHING": ".executor",
        "Folded": ".folded",
        "Future": ".future",
        "InTurn": ".group",
        "RemoteGroup": ".remote",
        "Rollouts": ".executor",
        "Start": ".fork",
        "cool_down": ".cooldown",
        "dismiss": ".remote",
        "fork_at": ".fork",
        "reason_not_folded": ".placement",
        "side_by_side": ".placement",
    },
)
