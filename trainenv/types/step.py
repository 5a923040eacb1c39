"""Nouns of one optimizer step: batches, interventions, telemetry, and the protocols of a run's parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    get_args,
    runtime_checkable,
)

from trainenv.types.errors import UserError
from trainenv.types.numbers import as_bool, as_whole, scalar

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

ClipName = Literal["none", "zclip", "arc", "spam"]


CLIP_NAMES: tuple[ClipName, ...] = get_args(ClipName)


# key of the mark that stands for a tensor in `Snapshot.state`: {"__tensor__": its name}


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """A bounded change to a run. `Intervention()` does nothing.

    Args:
        lr_scale: factor on the learning rate in force (cumulative: two of 0.9 make 0.81 of the base
            schedule).
        weight_decay_scale: factor on the weight decay in force (cumulative).
        clip: clip policy to put in force until changed; None keeps the present one.
        momentum_reset: zero the optimizer's moments and its step count once, then warm the learning
            rate up again.
        data_reorder: shuffle the blocks of data still to come in this epoch.
        skip_batch: drop the batches still to come that the monitor has flagged.

    Raises:
        UserError: a scale is not a finite positive number, the clip policy is unknown, or another
            part is neither True nor False.
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
            scale = scalar(value)
            if not (isinstance(scale, Real) and 0 < float(scale) < math.inf):
                raise UserError(
                    f"{name} must be a finite number above 0, found {value!r}; 1.0 leaves it as it is"
                )
            object.__setattr__(self, name, float(scale))
        if self.clip is not None and not (isinstance(self.clip, str) and self.clip in CLIP_NAMES):
            raise UserError(
                f"clip must be None (keep) or one of {', '.join(CLIP_NAMES)}, found {self.clip!r}"
            )
        if self.clip is not None:
            object.__setattr__(self, "clip", str(self.clip))
        for name in ("momentum_reset", "data_reorder", "skip_batch"):
            object.__setattr__(self, name, as_bool(getattr(self, name), name))

    @property
    def does_nothing(self) -> bool:
        return self == Intervention()


@dataclass(frozen=True, slots=True)
class Batch:
    """The data of one optimizer step.

    Attributes:
        micro: one entry a micro-batch. Ours are int64 tokens of shape [B, T + 1]: inputs [:, :-1],
            targets [:, 1:].
        index: the data index it was made from (never repeats; differs from the step once batches
            were skipped).
        stressors: names of what was planted in it, empty for a clean batch.

    Raises:
        UserError: `micro` is not a tuple of micro-batches, or `index` is not a whole number.
    """

    micro: tuple[Any, ...]
    index: int
    stressors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        micro: Any = self.micro
        if not isinstance(micro, tuple | list):
            found = type(micro).__name__
            raise UserError(
                f"a Batch's micro must be a tuple of micro-batches, found {found}; give (data,) for one"
            )
        object.__setattr__(self, "micro", tuple(micro))
        object.__setattr__(self, "index", as_whole(self.index, "a Batch's index"))


class LossSum(NamedTuple):
    """Loss of a micro-batch as a sum and a count, for objectives that count their tokens themselves.

    Attributes:
        total: sum of the losses of the labelled tokens, in nats; a scalar tensor that carries
            gradients.
        tokens: number of labelled tokens, 0 or more; a number or a scalar tensor.
    """

    total: Tensor
    tokens: Tensor | float


@dataclass(frozen=True, slots=True)
class ClipReport:
    """What a clip policy did to one gradient.

    All 0-dimensional float32 tensors on the gradient's device, so that nothing waits.

    Attributes:
        norm: global norm before clipping (may be inf or NaN).
        clipped_norm: global norm of what the optimizer sees (always finite unless the policy is
            `none`).
        threshold: the norm (SPAM: the mean of its element bounds, 0 for unseen elements) that was
            in force; inf where nothing could have been clipped.
        score: the policy's own measure of how odd the norm is (ZClip: z; ARC, and `none` with a
            fixed norm: norm ÷ threshold; SPAM: share of elements clipped); inf or NaN where the
            norm is.
        momentum_reset: the policy asks for the optimizer's moments to be reset before the next
            update (SPAM).
    """

    norm: Tensor
    clipped_norm: Tensor
    threshold: Tensor
    score: Tensor
    momentum_reset: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """The uncertainty index after one step.

    Each axis is a z-score against its own history; 0 while there is too little of it.
    """

    volatility: float = 0.0
    entropy: float = 0.0
    disagreement: float = 0.0
    index: float = 0.0
    threshold: float = math.inf
    fired: bool = False


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What one optimizer step measured, as Python numbers, strings and tuples; NaN where nothing was measured.

    `configs/log_schema.json` gives the unit of each. `step` is the number of steps completed
    *after* this one.
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


@runtime_checkable
class Batches(Protocol):
    """Where a run gets its data.

    Called once a step by `TrainingRun`; must be a pure function of its argument.
    """

    def __call__(self, index: int, /) -> Any:
        """The data of index `index` ≥ 0: a `Batch`, or anything that the run's objective takes as one micro-batch.

        With accumulation n, a tensor, a mapping or a tuple of tensors is one batch, and is cut into
        n micro-batches of equally many rows; a list of n entries holds the micro-batches. See
        `trainenv.training.micro_batches.as_batch`.
        """
        ...


@runtime_checkable
class Objective(Protocol):
    """A training loss.

    Called once a micro-batch by `TrainingRun` under autocast, and without gradients for validation.
    """

    def __call__(
        self, model: nn.Module, micro_batch: Any, /
    ) -> Tensor | LossSum | tuple[Tensor, Tensor | float]:
        """Mean loss in nats per token, a scalar with gradients; or a pair (loss sum, labelled tokens).

        Micro-batches are weighed by their labelled tokens. Those of a plain mean are counted in the
        data, by the rule of `trainenv.training.micro_batches.labelled`; where that rule does not
        fit the data, return a `LossSum` or a plain pair.
        """
        ...


@runtime_checkable
class Schedule(Protocol):
    """A learning-rate schedule over the budget.

    Called once a step by `TrainingRun`; must be a pure function.
    """

    def __call__(self, step: int, progress: float, /) -> float:
        """Factor on the base learning rate for the step after `step` completed ones.

        Args:
            step: optimizer steps completed.
            progress: share of the budget's annealing done, 0 at the start and 1 at the end of the
                run. It speeds up when budget is spent elsewhere (on branches, say), so that the run
                still ends annealed.
        """
        ...


class ClipPolicy(Protocol):
    """How a gradient is made safe.

    Called once a step by `TrainingRun`, after the backward pass and before the optimizer.

    A policy is a frozen dataclass of hyperparameters; its state lives in a dict of tensors that
    `Clipper` keeps, so that one policy can serve many runs and a run's state can be saved.
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
            parameters: those with a gradient; `p.grad` holds the mean over micro-batches (or, where
                `workers` is given, is to be filled with it).
            state: what `init` made, changed in place; no value of it is read on the host.
            workers: the gradients of each micro-batch, [n][parameter], where `needs_workers` and n
                > 1; else None.
            optimizer: the run's, for policies that look at its moments; may be None.
        """
        ...
