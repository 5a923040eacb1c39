"""The reference cool-down: an estimate of the loss that a run would reach if it annealed now.

It ranks futures where their raw losses mislead.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainenv.types import Branchable, RunGroup, Telemetry

_STAIRS = 16  # constant rates on the line to 0: a call each step would take 1/20 of the time


def cool_down(
    together: RunGroup[Branchable], steps: int, among: Sequence[int] = (0,)
) -> list[list[Telemetry]]:
    """Train runs while their learning rate falls linearly to 0, and return their steps.

    The learning rate is that of the schedule times a line in 16 stairs.

    Args:
        together: Group of runs; their learning rates are left near 0.
        steps: Optimizer steps of the cool-down.
        among: Numbers of the runs that take part.
    """
    measured: list[list[Telemetry]] = [[] for _ in among]
    runs = [together.runs[number] for number in among]
    if not runs:
        return measured
    scales = [run.lr_scale for run in runs]
    done = 0
    for bound in sorted({round(stair * steps / _STAIRS) for stair in range(1, _STAIRS + 1)} - {0}):
        # Not by interventions: their learning rates have a lower bound, and the run would record
        # them.
        middle = (done + bound) / 2
        for run, scale in zip(runs, scales):
            run.lr_scale = scale * (1 - middle / steps)
        for log, fresh in zip(measured, together.advance(bound - done, among)):
            log += fresh
        done = bound
    return measured
