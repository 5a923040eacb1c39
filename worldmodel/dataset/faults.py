"""Faults of a trunk, and training that applies them to a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from trainenv.tools.spelling import nearest
from trainenv.types import RunGroup, Telemetry, UserError
from trainenv.worldmodel.dataset.contract import Run

FaultKind = Literal["random_tokens", "rare_tokens", "lr_spike", "weight_kick", "lost_moments"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
# Planted by the configuration, in data or schedule; the others are applied to the run by `train`.
PLANTED: tuple[FaultKind, ...] = ("random_tokens", "rare_tokens", "lr_spike")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    | kind | changes | size |
    |---|---|---|
    | `random_tokens`, `rare_tokens` | tokens of `steps` steps | share of positions |
    | `lr_spike` | learning rate of `steps` steps | factor |
    | `weight_kick` | weights, before one step | noise, in 2 % of a tensor's deviation |
    | `lost_moments` | optimizer's moments, before one step | unused |

    Args:
        kind: Kind of fault.
        at: Number of steps completed before the first affected step.
        steps: Number of affected steps; 1 for `weight_kick` and `lost_moments`.
        size: Strength of the fault, in the unit of its kind.

    Raises:
        UserError: The kind is unknown.
    """

    kind: FaultKind
    at: int
    steps: int = 1
    size: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS:
            raise UserError(
                f"the kind of a fault must be one of {', '.join(FAULT_KINDS)}, found {self.kind!r}"
                f"{nearest(self.kind, FAULT_KINDS)}"
            )

    @property
    def end(self) -> int:
        """Number of steps completed after the last planted step; `at` for the other kinds."""
        if self.kind not in PLANTED:
            return self.at
        return self.at + self.steps


def train(
    together: RunGroup[Run], steps: int, faults: Sequence[Fault], among: Sequence[int] = (0,)
) -> list[list[Telemetry]]:
    """Train runs, and apply the faults that are not planted when they are due.

    Args:
        together: Runs; those that take part are at the same step.
        steps: Number of optimizer steps.
        faults: Faults of the trunk.
        among: Numbers of the runs that take part.

    Returns:
        The telemetry of each step, for each run that takes part.
    """
    measured: list[list[Telemetry]] = [[] for _ in among]
    runs = [together.runs[number] for number in among]
    if not runs:
        return measured
    here = runs[0].step
    end = runs[0].step + steps
    due = [fault for fault in faults if fault.kind not in PLANTED and here <= fault.at < end]
    due.sort(key=lambda fault: fault.at)
    for stop, fault in [*((fault.at, fault) for fault in due), (end, None)]:
        for log, fresh in zip(measured, together.advance(stop - here, among)):
            log += fresh
        here = stop
        if fault is not None:
            for run in runs:
                _apply(fault, run)
    return measured


def _apply(fault: Fault, run: Run) -> None:
    import torch

    if fault.kind == "weight_kick":
        # The noise is the same in all branches.
        generator = torch.Generator().manual_seed(fault.at)
        with torch.no_grad():
            for parameter in run.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.add_(noise * parameter.std(correction=0) * 0.02 * fault.size)
        return
    for state in run.optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            # Like a restart without the optimizer's file; step count and learning rate stay.
            state[name].zero_()
