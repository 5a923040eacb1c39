"""What a run must be able to do to be branched; `trainenv.TrainingRun` can.

This package never imports it.

def make_run(overrides):                                   # at the top of a module, so that other
processes find it
    return TrainingRun.from_config("tiny", overrides)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

from trainenv.types import Intervention, Snapshot, Telemetry

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class Run(Protocol):
    """A training run as a value. Every method means what it means for `TrainingRun`."""

    step: int
    lr_scale: float
    model: nn.Module
    optimizer: Optimizer
    ledger: Any  # `total`: FLOPs spent so far, for whatever purpose

    @property
    def config(self) -> Any: ...
    @property
    def weight_decay_scale(self) -> float: ...
    @property
    def clip(self) -> str: ...
    @property
    def flagged(self) -> tuple[int, ...]: ...
    @property
    def flagged_ahead(self) -> tuple[int, ...]: ...
    @property
    def uniform_loss(self) -> float: ...
    def advance(self, steps: int, /) -> list[Telemetry]: ...
    def apply(self, intervention: Intervention, /) -> None: ...
    def flag(self, data_indices: Iterable[int], /) -> None: ...
    def evaluate(self) -> float: ...
    def snapshot(self) -> Snapshot: ...
    def restore(self, snapshot: Snapshot, /) -> None: ...
    def fork(self) -> Self: ...
    def fingerprint(self) -> str: ...


MakeRun = Callable[[Mapping[str, Any]], Run]
"""Configuration by dotted key → a fresh run.

Called once a trunk, in a process that may be another one.
"""
