"""The reference cool-down: what a run's loss would be if it were annealed from here.

It ranks futures where raw losses lie.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainenv.types import Branchable, RunGroup, Telemetry

_STAIRS = 16  # of the line to 0: a call a step would cost a twentieth of it


def cool_down(
    together: RunGroup[Branchable], steps: int, among: Sequence[int] = (0,)
) -> list[list[Telemetry]]:
    """Train with the learning rate of the schedule times a line that falls to 0 over `steps`, in 16 stairs."""
    measured: list[list[Telemetry]] = [[] for _ in among]
    runs = [together.runs[number] for number in among]
    if not runs:
        return measured
    scales = [run.lr_scale for run in runs]
    done = 0
    for bound in sorted({round(stair * steps / _STAIRS) for stair in range(1, _STAIRS + 1)} - {0}):
        # No interventions: they are bounded below, and would stand in the run's record.
        middle = (done + bound) / 2
        for run, scale in zip(runs, scales):
            run.lr_scale = scale * (1 - middle / steps)
        for log, fresh in zip(measured, together.advance(bound - done, among)):
            log += fresh
        done = bound
    return measured
