"""Protocol of the runs that are branched; `trainenv.TrainingRun` is one.

    def make_run(overrides):     # at the top of a module, so that other processes can import it
        return TrainingRun.from_config("tiny", overrides)

This package never imports `TrainingRun`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

from trainenv.types import Intervention, Snapshot, Telemetry

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class Run(Protocol):
    """A training run as a value; each member is that of `TrainingRun`."""

    step: int
    lr_scale: float
    model: nn.Module
    optimizer: Optimizer
    ledger: Any  # `total`: FLOPs spent so far, for all purposes

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
"""Function from configuration overrides, by dotted key, to a fresh run.

It is called once for each trunk, perhaps in another process.
"""
