"""Every noun of the project, as frozen dataclasses and protocols. Imports nothing of ours.

One word a thing: an `Intervention` changes a run, `Telemetry` is what one optimizer step measured, a `Snapshot` is the
whole state of a run at a step, a `Reading` is what the uncertainty index says of a step. *Step* always means an optimizer
step; *decision* means an environment step. Losses are in nats per token, norms are L2, times are in steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

ClipName = Literal["none", "zclip", "arc", "spam"]
CLIP_NAMES: tuple[ClipName, ...] = get_args(ClipName)
TENSOR = "__tensor__"  # key of the mark that stands for a tensor in `Snapshot.state`: {"__tensor__": its name}
Tier = Literal["exact", "8bit"]


class UserError(ValueError):
    """A mistake the user can mend: says what was expected, what was found and what to do. Exit code 2 on the command line."""


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """A bounded change to a run. `Intervention()` does nothing.

    Args:
        lr_scale: factor on the learning rate in force (cumulative: two of 0.9 make 0.81 of the base schedule).
        weight_decay_scale: factor on the weight decay in force (cumulative).
        clip: clip policy to put in force until changed; None keeps the present one.
        momentum_reset: zero the optimizer's moments and its step count once, then warm the learning rate up again.
        data_reorder: shuffle the blocks of data still to come in this epoch.
        skip_batch: drop the batches still to come that the monitor has flagged.

    Raises:
        UserError: a scale is not a finite positive number, or the clip policy is unknown.
    """

    lr_scale: float = 1.0
    weight_decay_scale: float = 1.0
    clip: ClipName | None = None
    momentum_reset: bool = False
    data_reorder: bool = False
    skip_batch: bool = False

    def __post_init__(self) -> None:
        for name in ("lr_scale", "weight_decay_scale"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and 0 < float(value) < math.inf):
                raise UserError(f"{name} must be a finite number above 0, found {value!r}; 1.0 leaves it as it is")
        if self.clip is not None and self.clip not in CLIP_NAMES:
            raise UserError(f"clip must be None (keep) or one of {', '.join(CLIP_NAMES)}, found {self.clip!r}")

    @property
    def does_nothing(self) -> bool:
        return self == Intervention()


@dataclass(frozen=True, slots=True)
class Batch:
    """The data of one optimizer step.

    Attributes:
        micro: one entry a micro-batch. Ours are int64 tokens of shape [B, T + 1]: inputs [:, :-1], targets [:, 1:].
        index: the data index it was made from (never repeats; differs from the step once batches were skipped).
        stressors: names of what was planted in it, empty for a clean batch.
    """

    micro: tuple[Any, ...]
    index: int
    stressors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClipReport:
    """What a clip policy did to one gradient. All 0-dimensional float32 tensors on the gradient's device, so that nothing waits.

    Attributes:
        norm: global norm before clipping (may be inf or NaN).
        clipped_norm: global norm of what the optimizer sees (always finite unless the policy is `none`).
        threshold: the norm (SPAM: the mean of its element bounds, 0 for unseen elements) that was in force; inf where nothing
            could have been clipped.
        score: the policy's own measure of how odd the norm is (ZClip: z; ARC, and `none` with a fixed norm: norm ÷ threshold;
            SPAM: share of elements clipped); inf or NaN where the norm is.
        momentum_reset: the policy asks for the optimizer's moments to be reset before the next update (SPAM).
    """

    norm: Tensor
    clipped_norm: Tensor
    threshold: Tensor
    score: Tensor
    momentum_reset: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """The uncertainty index after one step. Each axis is a z-score against its own history; 0 while there is too little of it."""

    volatility: float = 0.0
    entropy: float = 0.0
    disagreement: float = 0.0
    index: float = 0.0
    threshold: float = math.inf
    fired: bool = False


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What one optimizer step measured, as Python numbers, strings and tuples; NaN where nothing was measured.

    `configs/log_schema.json` gives the unit of each. `step` is the number of steps completed *after* this one.
    """

    step: int
    data_index: int
    tokens: int
    loss: float
    grad_norm: float
    grad_norm_clipped: float
    clip_threshold: float
    clip_score: float
    clip: str
    lr: float
    lr_scale: float
    weight_decay: float
    weight_decay_scale: float
    steps_since_reset: int
    progress: float
    hypergradient_cosine: float = math.nan
    update_ratio: float = math.nan
    probe_loss: float = math.nan
    attention_entropy: float = math.nan
    activation_entropy: float = math.nan
    embedding_rms: float = math.nan
    shortcut_ratio: float = math.nan
    loss_scale: float = math.nan
    stressors: tuple[str, ...] = ()
    reading: Reading = field(default_factory=Reading)

    @property
    def clipped(self) -> bool:
        """Whether the clip policy made the gradient smaller (or replaced a non-finite one)."""
        return not (self.grad_norm <= self.grad_norm_clipped * (1 + 1e-6))


TELEMETRY_FIELDS: tuple[str, ...] = tuple(f.name for f in fields(Telemetry))


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Snapshot:
    """The whole state of a run at a step, in host memory. Nothing in it is shared with the live run; never write into it.

    Snapshots of one run share the tensors that had not changed between them: what is written into one shows in others.

    Attributes:
        step: optimizer steps completed.
        tensors: flat names ("model/…", "optimizer/…", "clip/…", "rng/…") to tensors that only snapshots hold.
        state: everything that is no tensor, as JSON values.
        tier: `exact`, or `8bit` where a compact checkpoint has rounded the optimizer's moments: then a run that is restored
            from it goes on nearly, not exactly, as the one it was taken of.
    """

    step: int
    tensors: Mapping[str, Tensor] = field(repr=False)
    state: Mapping[str, Any] = field(repr=False)
    tier: Tier = "exact"

    @property
    def nbytes(self) -> int:
        """Memory of the tensors in bytes, those shared with other snapshots included."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


@runtime_checkable
class Batches(Protocol):
    """Where a run gets its data. Called once a step by `TrainingRun`; must be a pure function of its argument."""

    def __call__(self, index: int, /) -> Any:
        """The data of index `index` ≥ 0: a `Batch`, or anything that the run's objective takes as one micro-batch."""
        ...


@runtime_checkable
class Objective(Protocol):
    """A training loss. Called once a micro-batch by `TrainingRun` under autocast, and without gradients for validation."""

    def __call__(self, model: nn.Module, micro_batch: Any, /) -> Tensor:
        """Mean loss in nats per token, a scalar tensor that carries gradients."""
        ...


@runtime_checkable
class Schedule(Protocol):
    """A learning-rate schedule over the budget. Called once a step by `TrainingRun`; must be a pure function."""

    def __call__(self, step: int, progress: float, /) -> float:
        """Factor on the base learning rate for the step after `step` completed ones.

        Args:
            step: optimizer steps completed.
            progress: share of the budget's annealing done, 0 at the start and 1 at the end of the run. It speeds up
                when budget is spent elsewhere (on branches, say), so that the run still ends annealed.
        """
        ...


class ClipPolicy(Protocol):
    """How a gradient is made safe. Called once a step by `TrainingRun`, after the backward pass and before the optimizer.

    A policy is a frozen dataclass of hyperparameters; its state lives in a dict of tensors that `Clipper` keeps, so that
    one policy can serve many runs and a run's state can be saved.
    """

    needs_workers: ClassVar[bool]

    def init(self, parameters: Sequence[Tensor], /) -> dict[str, Tensor]:
        """Fresh state, on the parameters' device."""
        ...

    def clip(
        self,
        parameters: Sequence[Tensor],
        state: dict[str, Tensor],
        /,
        *,
        workers: Sequence[Sequence[Tensor]] | None,
        optimizer: Optimizer | None,
    ) -> ClipReport:
        """Change the gradients and the state in place.

        Args:
            parameters: those with a gradient; `p.grad` holds the mean over micro-batches (or, where `workers` is given,
                is to be filled with it).
            state: what `init` made, changed in place; no value of it is read on the host.
            workers: the gradients of each micro-batch, [n][parameter], where `needs_workers` and n > 1; else None.
            optimizer: the run's, for policies that look at its moments; may be None.
        """
        ...


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a run and that a person would want to see marked on its curve.

    Attributes:
        step: optimizer steps completed when it happened.
        kind: `fired`, `rewind`, `intervention`, `diverged`, `interrupted`.
        detail: numbers and words that belong to it, as JSON values.
    """

    step: int
    kind: str
    detail: Mapping[str, Any] = field(default_factory=dict)
