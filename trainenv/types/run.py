"""Nouns of a training run: its state, its history, and `Run`, the protocol of a steered run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, get_args

from trainenv.types.step import Batches, Intervention, Telemetry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

TENSOR = "__tensor__"  # key that marks a tensor in `Snapshot.state`: {"__tensor__": its name}
Tier = Literal["exact", "8bit"]
Purpose = Literal["main", "rewound", "verify", "plan", "evaluate", "model"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Snapshot:
    """Whole state of a run at a step, in host memory.

    It shares nothing with the live run. Snapshots of one run share the tensors that did not change
    between them: never write into one.

    Attributes:
        step: Number of completed optimizer steps.
        tensors: Tensors by flat name ("model/…", "optimizer/…", "clip/…", "rng/…"), held by
            snapshots alone.
        state: Everything that is not a tensor, as JSON values.
        tier: `exact`, or `8bit` if a compact checkpoint has rounded the optimizer's moments: a run
            restored from it continues nearly, not exactly, as the original.
    """

    step: int
    tensors: Mapping[str, Tensor] = field(repr=False)
    state: Mapping[str, Any] = field(repr=False)
    tier: Tier = "exact"

    @property
    def nbytes(self) -> int:
        """Memory of the tensors in bytes, those shared with other snapshots included."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a run and is marked on its loss curve.

    Attributes:
        step: Number of completed optimizer steps when it happened.
        kind: `fired`, `non_finite`, `replay`, `rewind`, `intervention`, `decision`, `skipped`,
            `gave_up`, `diverged` or `interrupted`.
        detail: Numbers and words that belong to it, as JSON values.
    """

    step: int
    kind: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHistory:
    """Facts about a run from which its futures are forecast.

    Attributes:
        telemetry: Telemetry of the steps so far, in order. The last 512 steps, or 40 decisions, are
            enough.
        lrs_ahead: Learning rate of each step left in the budget without further interventions.
        base_lr: Base learning rate of the optimizer.
        uniform_loss: Loss of a uniform guess over the vocabulary, in nats.
        decision_steps: Steps from one decision to the next; a forecast's horizon N is four of them.
        validation: Clean validation loss now, in nats per token; NaN if it was not measured.
        flagged_ahead: Number of flagged data indices that are still to come.
        usual_lr: Learning rate that usually suits a model of this size; NaN if unknown.
        sparse: One entry of telemetry for each `stride` steps so far, in order, for what looks back
            further; empty if `stride` is 1.
        stride: Steps from one entry of `sparse` to the next.
    """

    telemetry: Sequence[Telemetry] = field(repr=False)
    lrs_ahead: Sequence[float] = field(repr=False)
    base_lr: float
    uniform_loss: float
    decision_steps: int
    validation: float = math.nan
    flagged_ahead: int = 0
    usual_lr: float = math.nan
    sparse: Sequence[Telemetry] = field(default=(), repr=False)
    stride: int = 1


class InForce(Protocol):
    """Interventions in force in a run, on which the legal actions depend."""

    @property
    def lr_scale(self) -> float:
        """Factor on the scheduled learning rate."""
        ...

    @property
    def weight_decay_scale(self) -> float:
        """Factor on the configured weight decay."""
        ...

    @property
    def clip(self) -> str:
        """Name of the clip policy."""
        ...

    @property
    def flagged_ahead(self) -> tuple[int, ...]:
        """Data indices that the monitor flagged and that are still to come, after a rewind."""
        ...


class Horizon(Protocol):
    """Budget of a run."""

    @property
    def end(self) -> int:
        """Step at which the budget is spent."""
        ...

    def progress(self, step: int, /) -> float:
        """Return the share of the budget's annealing that is done after `step` steps, 0 to 1."""
        ...


class Run(Protocol):
    """Training run as a value: the part of it that agents, rollouts and records use.

    `trainenv.TrainingRun` is one; a run attached to somebody else's trainer is another. Every
    member means what it means there. FLOPs are counted by the run's own ledger.
    """

    lr_scale: float
    purpose: Purpose
    ledger: Any  # a `trainenv.training.ledger.Ledger`
    model: nn.Module
    optimizer: Optimizer

    @property
    def config(self) -> Any:
        """Configuration, a `trainenv.config.TrainingConfig`."""
        ...

    @property
    def retrains(self) -> bool:
        """True if others follow its steps, so that a branch is trained again to become the run."""
        ...

    @property
    def step(self) -> int:
        """Number of optimizer steps that were completed."""
        ...

    @property
    def horizon(self) -> Horizon:
        """Budget: the step at which it is spent, and the progress of its annealing."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        ...

    @property
    def batches(self) -> Batches:
        """Training data, a pure function of the data index."""
        ...

    @property
    def weight_decay_scale(self) -> float:
        """Factor on the configured weight decay."""
        ...

    @property
    def clip(self) -> str:
        """Name of the clip policy in force."""
        ...

    @property
    def applied(self) -> tuple[tuple[int, Intervention], ...]:
        """Interventions so far, each with the step it was applied at."""
        ...

    @property
    def flagged(self) -> tuple[int, ...]:
        """Data indices that the monitor flagged as harmful."""
        ...

    @property
    def flagged_ahead(self) -> tuple[int, ...]:
        """Flagged data indices that are still to come, after a rewind."""
        ...

    @property
    def emphases(self) -> tuple[str, ...]:
        """Changes of the objective's emphasis that are possible now; none for most objectives."""
        ...

    @property
    def done(self) -> bool:
        """True once the budget is spent."""
        ...

    @property
    def diverged(self) -> bool:
        """True if further training is useless."""
        ...

    @property
    def vocabulary(self) -> int | None:
        """Number of tokens that the model knows; None without an embedding."""
        ...

    @property
    def uniform_loss(self) -> float:
        """Loss of a uniform guess over the vocabulary, in nats per token."""
        ...

    @property
    def base_lr(self) -> float:
        """Base learning rate of the first parameter group, before schedule and interventions."""
        ...

    @property
    def flops_per_step(self) -> float:
        """Mean FLOPs of a step so far; 0 before the first."""
        ...

    @property
    def flops_ahead(self) -> float:
        """FLOPs of a step to come."""
        ...

    @property
    def flops_per_evaluation(self) -> float:
        """FLOPs of one `evaluate`."""
        ...

    def flops_of_probes(self, steps: int, /) -> float:
        """Return the most FLOPs that the monitor's probes take over `steps` steps."""
        ...

    def lrs_ahead(self) -> list[float]:
        """Return the scheduled learning rate of each step left in the budget."""
        ...

    def upcoming(self, steps: int, /) -> tuple[int, ...]:
        """Return the data indices of the next `steps` steps."""
        ...

    def advance(self, steps: int, /) -> list[Telemetry]:
        """Train for `steps` optimizer steps and return what each measured."""
        ...

    def evaluate(self) -> float:
        """Return the validation loss in nats per token."""
        ...

    def evaluate_fully(self) -> float:
        """Return the loss of the whole validation part in nats per token."""
        ...

    @property
    def has_test_set(self) -> bool:
        """True if the run has a test set."""
        ...

    def test_loss(self) -> float:
        """Return the test loss in nats per token; it is charged to no budget."""
        ...

    def apply(self, intervention: Intervention, /) -> None:
        """Put an intervention in force from the next step on, whole or not at all."""
        ...

    def flag(self, data_indices: Iterable[int], /) -> None:
        """Mark data indices as harmful."""
        ...

    def rewind(self, snapshot: Snapshot, /) -> None:
        """Go back to a snapshot of this run; flagged data and spent compute are kept."""
        ...

    def spend(self, steps: int, /) -> None:
        """Take the compute of `steps` steps off the budget."""
        ...

    def end_at(self, step: int, /) -> None:
        """Set the step at which the budget is spent."""
        ...

    def snapshot(self, extra: Mapping[str, Any] | None = None, /) -> Snapshot:
        """Return the whole state, with further parts by name."""
        ...

    def restore(self, snapshot: Snapshot, /) -> None:
        """Take on the state of a snapshot; the ledger keeps what was spent."""
        ...

    def fork(self, purpose: Purpose = "verify", /) -> Self:
        """Return an independent run in the same state; its steps are charged to `purpose`."""
        ...

    def check_forkable(self) -> None:
        """Raise `UserError` if the run cannot be forked."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of everything that the future depends on."""
        ...
