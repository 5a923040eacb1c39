"""Placement of forks: folded into one model, in worker processes, in turn, or in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from trainenv.distributed.executors import LOCAL
from trainenv.models.spec import spec_of
from trainenv.rollouts.folded import Folded, check_foldable
from trainenv.rollouts.fork import Start, fork_at
from trainenv.rollouts.group import InTurn
from trainenv.rollouts.in_place import has_no_room
from trainenv.rollouts.remote import remote_group
from trainenv.run import TrainingRun
from trainenv.types import Branchable, Run, RunGroup, UserError

FOLDS_UP_TO = 48
"""Largest width of a model that is folded on a CPU.

Folding is 2.8 times as fast at width 16, 2.0 times at 48, and no faster at 64.
"""


def side_by_side(
    run: Run, starts: Sequence[Start], *, fold: bool, workers: int, executor: str = LOCAL
) -> RunGroup[Branchable]:
    """Return forks of a run: folded where that is faster, else in worker processes, else in turn.

    Where the run cannot be copied, or the device has no room for copies, they take turns in place.

    Args:
        run: Run that is forked. Only a `TrainingRun` can be folded or sent to another process.
        starts: One start for each fork.
        fold: True to fold models that are narrow enough.
        workers: Number of worker processes; 0 to train in this one.
        executor: Place of the worker processes, see `trainenv.distributed.executors`.
    """
    forks = len(starts)
    if not isinstance(run, TrainingRun) or has_no_room(run, forks):
        return InTurn([fork_at(run, start, forks=forks) for start in starts])
    if fold and _is_narrow(run):
        with suppress(UserError):  # these forks cannot be folded
            return Folded([fork_at(run, start) for start in starts])
    if workers and forks > 1 and (group := remote_group(run, starts, workers, executor)):
        return group
    return InTurn([fork_at(run, start) for start in starts])


def reason_not_folded(run: Run) -> str:
    """Return a sentence that says why branches of a run cannot be folded into one.

    It is empty if they can be, and for a GPT-2 that is too wide to gain from it.
    """
    if not isinstance(run, TrainingRun):
        return ""
    wide_gpt2 = type(run.model).__name__ == "GPT2" and not _is_narrow(run)
    try:
        check_foldable(run)
    except UserError as error:
        if not wide_gpt2:
            reason, _, _ = str(error).partition(";")
            return f"branches are trained in turn or in worker processes: {reason}"
    return ""


def _is_narrow(run: TrainingRun) -> bool:
    """Tell if a model is narrow enough to gain from folding; on a GPU each one is."""
    width = spec_of(run.model).shape(run.model).width or math.inf
    return run.device.type == "cuda" or width <= FOLDS_UP_TO
