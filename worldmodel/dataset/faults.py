"""What goes wrong in a trunk, and how it is done to a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from trainenv.types import Run, RunGroup, Telemetry, UserError

FaultKind = Literal["random_tokens", "rare_tokens", "lr_spike", "weight_kick", "lost_moments"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
PLANTED: tuple[FaultKind, ...] = (
    "random_tokens",
    "rare_tokens",
    "lr_spike",
)  # by the configuration, in data and schedule


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong, once.

    Args:
        kind: tokens or learning rates of `steps` steps, or a blow to the weights or to the
            optimizer at one step.
        at: steps completed before the first step that it hits.
        steps: how long it lasts; 1 for a blow.
        size: tokens: share of positions; lr_spike: factor; weight_kick: noise in units of 2 % of a
            tensor's deviation.

    Raises:
        UserError: the kind is unknown.
    """

    kind: FaultKind
    at: int
    steps: int = 1
    size: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS:
            raise UserError(
                f"the kind of a fault must be one of {', '.join(FAULT_KINDS)}, found {self.kind!r}"
            )

    @property
    def end(self) -> int:
        """Steps completed after the last step that it hits."""
        return self.at + (self.steps if self.kind in PLANTED else 0)


def train(
    together: RunGroup[Run], steps: int, faults: Sequence[Fault], among: Sequence[int] = (0,)
) -> list[list[Telemetry]]:
    """Advance, struck on the way by the blows that are due.

    (What is planted is in the runs' batches already.)

    Args:
        together: the runs; those that take part are at the same step.
        steps: optimizer steps.
        faults: of the trunk.
        among: numbers of the runs that take part.

    Returns:
        What each step of each of them measured.
    """
    measured: list[list[Telemetry]] = [[] for _ in among]
    runs = [together.runs[number] for number in among]
    if not runs:
        return measured
    here = runs[0].step
    end = runs[0].step + steps
    blows = [fault for fault in faults if fault.kind not in PLANTED and here <= fault.at < end]
    for stop, blow in [
        *((blow.at, blow) for blow in sorted(blows, key=lambda fault: fault.at)),
        (end, None),
    ]:
        for log, fresh in zip(measured, together.advance(stop - here, among)):
            log += fresh
        here = stop
        if blow is not None:
            for run in runs:
                _strike(run, blow)
    return measured


def _strike(run: Run, fault: Fault) -> None:
    import torch

    if fault.kind == "weight_kick":
        # The blow is the same in every branch that it reaches.
        generator = torch.Generator().manual_seed(fault.at)
        with torch.no_grad():
            for parameter in run.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.add_(noise * parameter.std(correction=0) * 0.02 * fault.size)
        return
    for state in run.optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            state[
                name
                # as a restart without the optimizer's file does; the step count and the rate stay
            ].zero_()
