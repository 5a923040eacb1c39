"""`Stage`: the live parts of a training, and the run whose state they hold.

There is one set of live parts, whatever the number of branches. The run that is used next takes its
place there; the one that was there is parked as a snapshot in host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from trainenv.integrations.attach import parts as live_parts
from trainenv.integrations.attach.data import Data
from trainenv.integrations.attach.held_out import HeldOut
from trainenv.integrations.attach.rates import RatesInForce
from trainenv.tools import rng
from trainenv.training import snapshots
from trainenv.types import Snapshot

if TYPE_CHECKING:
    from trainenv.integrations.attach.run import InPlaceRun


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Model, optimizers and data of a framework.

    Attributes:
        model: Model.
        optimizers: Optimizers, at least one.
        parts: Everything that training changes, by name, but the random generators.
        data: Training data by position; None for a run that is only watched.
        lrs: Scheduled learning rate of the first group for each step of the budget.
        held_out: Held-out data and their loss.
        batch_size: Tokens or rows of a step, for the ledger.
        extra: True if branches come on top of the budget, false if they are taken off it.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    parts: Mapping[str, live_parts.Part]
    data: Data | None
    lrs: Sequence[float]
    held_out: HeldOut
    batch_size: float = 1.0
    extra: bool = True


@dataclass
class Stage:
    """The live parts, and the run whose state they hold.

    Attributes:
        trained: Model, optimizers and data of the framework.
        device: Device of the parameters.
        train_one: Function that lets the framework train one step of the run on the stage.
        on_rewind: Function that learns the step that the main run has gone back to.
        generators: State of the global random generators for the run on the stage, while something
            else than the framework has control.
        current: Run on the stage; None before there is one.
        rates: Factors on the learning rates during a step.
        recent: Newest snapshots, whose unchanged tensors the next one shares.
        sealed: True once the framework trains no further step.
    """

    trained: Trained
    device: torch.device
    train_one: Callable[[], None]
    on_rewind: Callable[[int], None]
    generators: dict[str, Any]
    current: InPlaceRun | None = None
    rates: RatesInForce = field(init=False)
    recent: snapshots.Recent = field(default_factory=snapshots.Recent)
    sealed: bool = False

    def __post_init__(self) -> None:
        self.rates = RatesInForce(self.trained.optimizers)

    def state(self) -> dict[str, Any]:
        """Return the state of the live parts, without copies."""
        return {
            "generators": rng.as_tensors(self.generators),
            **live_parts.state_of(self.trained.parts),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the live parts."""
        for optimizer in self.trained.optimizers:
            optimizer.zero_grad(set_to_none=True)
        live_parts.load_state(self.trained.parts, state)
        self.generators = rng.from_tensors(state["generators"])

    def capture(self, step: int, parts: Mapping[str, Any], **state: Any) -> Snapshot:
        """Return a snapshot in host memory; tensors unchanged since the last one are shared.

        Args:
            step: Number of completed steps.
            parts: State of the live parts.
            state: The rest of it.
        """
        run = {"parts": parts, **state.pop("run", {})}
        snapshot = snapshots.capture(step, {"run": run, **state}, self.recent.newest())
        self.recent.add(snapshot)
        return snapshot

    def enter(self, run: InPlaceRun) -> None:
        """Put a run on the stage, and park the one that was there."""
        if self.current is run:
            return
        if self.current is not None:
            self.current.parked = self.capture(self.current.step, self.state())
        if run.parked is not None:
            self.load(parts_in(run.parked))
        run.parked = None
        self.current = run


@dataclass
class Unfinished:
    """A step that the framework has trained and that the run has not taken in yet.

    Attributes:
        index: Data index of its batch.
        progress: Share of the annealing done before it.
        tokens: Predicted tokens so far.
        size: Tokens or rows that its passes worked on so far.
        measured: Telemetry that is still on the device.
        known: Telemetry that the host knows.
        complete: True once the optimizers have taken the step.
    """

    index: int
    progress: float
    tokens: int = 0
    size: float = 0.0
    measured: dict[str, Any] = field(default_factory=dict)
    known: dict[str, float] = field(default_factory=dict)
    complete: bool = False


def parts_in(snapshot: Snapshot) -> dict[str, Any]:
    """Return the state of the live parts in a snapshot; its tensors are the snapshot's own."""
    parts: dict[str, Any] = snapshots.expand(snapshot)["run"]["parts"]
    return parts
