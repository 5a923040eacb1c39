"""Nouns of one optimizer step: batch, intervention, telemetry, protocols of a run's parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
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

ClipName = Literal["none", "zclip", "arc", "spam", "skip_step", "adagc", "gradient_stabilizer"]
CLIP_POLICIES: tuple[ClipName, ...] = get_args(ClipName)
"""Names of all clip policies."""

CLIP_NAMES: tuple[ClipName, ...] = ("none", "zclip", "arc", "spam")
"""Policies of the default action space, for which observations and models have a feature each."""
IGNORED = -100
"""Label of a token that has none, as in torch and transformers."""
Emphasis = Literal["less", "more"]
EMPHASES: tuple[Emphasis, ...] = get_args(Emphasis)


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """Bounded change to a run. `Intervention()` does nothing.

    Args:
        lr_scale: Factor on the learning rate in force. Factors multiply: two of 0.9 make 0.81 of
            the base schedule.
        weight_decay_scale: Factor on the weight decay in force. Factors multiply.
        clip: Clip policy to put in force until it is changed; None keeps the present one.
        momentum_reset: True to zero the optimizer's moments and step count once, and then warm the
            learning rate up again.
        data_reorder: True to shuffle the blocks of data still to come in this epoch.
        skip_batch: True to drop the flagged batches still to come.
        emphasis: Change of an objective that can be steered, such as `trainenv.objectives.MTP`:
            fewer or more tokens kept, or further heads weighed less or more; None for no change.

    Raises:
        UserError: A scale is not a finite positive number, the clip policy or the emphasis is
            unknown, or another part is neither True nor False.
    """

    lr_scale: float = 1.0
    weight_decay_scale: float = 1.0
    clip: ClipName | None = None
    momentum_reset: bool = False
    data_reorder: bool = False
    skip_batch: bool = False
    emphasis: Emphasis | None = None

    def __post_init__(self) -> None:
        for name in ("lr_scale", "weight_decay_scale"):
            value = getattr(self, name)
            scale = scalar(value)
            if not (isinstance(scale, Real) and 0 < float(scale) < math.inf):
                raise UserError(
                    f"{name} must be a finite number above 0, found {value!r}; 1.0 changes nothing"
                )
            object.__setattr__(self, name, float(scale))
        if self.clip is not None:
            if not (isinstance(self.clip, str) and self.clip in CLIP_POLICIES):
                names = ", ".join(CLIP_POLICIES)
                raise UserError(f"clip must be None (keep) or one of {names}, found {self.clip!r}")
            object.__setattr__(self, "clip", str(self.clip))
        if self.emphasis is not None and self.emphasis not in EMPHASES:
            raise UserError(
                f"emphasis must be None (keep) or one of {', '.join(EMPHASES)}, found "
                f"{self.emphasis!r}"
            )
        for name in ("momentum_reset", "data_reorder", "skip_batch"):
            object.__setattr__(self, name, as_bool(getattr(self, name), name))

    @property
    def does_nothing(self) -> bool:
        """True if no part changes anything."""
        return self == Intervention()

    def as_dict(self) -> dict[str, Any]:
        """Return the parts by name, without `emphasis` if it is None: earlier files lack it."""
        parts = asdict(self)
        if self.emphasis is None:
            del parts["emphasis"]
        return parts


@dataclass(frozen=True, slots=True)
class Batch:
    """Data of one optimizer step.

    Attributes:
        micro: Micro-batches. Those of our corpora are int64 tokens [B, T + 1]: inputs [:, :-1],
            targets [:, 1:].
        index: Data index that the batch is made from. It never repeats, and differs from the step
            once batches were skipped.
        stressors: Names of planted faults; empty for a clean batch.

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
                f"a Batch's micro must be a tuple of micro-batches, found {found}; "
                "give (data,) for one"
            )
        object.__setattr__(self, "micro", tuple(micro))
        object.__setattr__(self, "index", as_whole(self.index, "a Batch's index"))


class LossSum(NamedTuple):
    """Loss of a micro-batch as a sum and a count, for objectives that count their tokens.

    Attributes:
        total: Sum of the losses of the labelled tokens in nats, a scalar tensor with gradients.
        tokens: Number of labelled tokens, 0 or more; a number or a scalar tensor.
    """

    total: Tensor
    tokens: Tensor | float


@dataclass(frozen=True, slots=True)
class ClipReport:
    """Effect of a clip policy on one gradient.

    All tensors are on the gradient's device, so that nothing waits; the first four are
    0-dimensional float32.

    Attributes:
        norm: Global norm before clipping; may be inf or NaN.
        clipped_norm: Global norm after clipping; finite, except for the policy `none`.
        threshold: Norm above which the gradient is clipped (SPAM: mean of its bounds on elements, 0
            for unseen elements); inf if nothing could have been clipped.
        score: The policy's own measure of how odd the norm is. ZClip: z. ARC, and `none` with a
            fixed norm: norm ÷ threshold. SPAM: share of clipped elements. Skip-step: the larger z
            of loss and norm. AdaGC and GradientStabilizer: the largest norm of a tensor ÷ its
            usual norm. Inf or NaN if the norm is.
        momentum_reset: True if the policy asks to reset the optimizer's moments before the next
            update (SPAM).
        skip: Bool tensor, 0-d, that is true if weights and moments must stay as they are this step
            (skip-step); None for a policy that never asks for it.
        tensor_norms: Norm of each tensor's gradient before clipping, float32 [tensors]; None where
            the policy does not need them.
    """

    norm: Tensor
    clipped_norm: Tensor
    threshold: Tensor
    score: Tensor
    momentum_reset: bool = False
    skip: Tensor | None = None
    tensor_norms: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """Uncertainty index after one step.

    Attributes:
        volatility: z-score of the loss and the gradient norm; 0 without enough history.
        entropy: z-score of the probe's entropies; 0 without enough history.
        disagreement: z-score of the disagreement of online forecasters; 0 without enough history.
        index: Weighted sum of the three.
        threshold: Value of the index above which it fires.
        fired: True if the index has fired at this step.
    """

    volatility: float = 0.0
    entropy: float = 0.0
    disagreement: float = 0.0
    index: float = 0.0
    threshold: float = math.inf
    fired: bool = False


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Measurements of one optimizer step, as Python numbers, strings and tuples.

    NaN marks what was not measured. `configs/log_schema.json` gives meaning and unit of each
    field. `step` is the number of completed steps *after* this one. `objective` holds numbers of
    the objective by name, for example the loss of each head; it is empty for most objectives.
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
    objective: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def clipped(self) -> bool:
        """True if the clip policy made the gradient smaller or replaced a non-finite one."""
        return not (self.grad_norm <= self.grad_norm_clipped * (1 + 1e-6))


TELEMETRY_FIELDS: tuple[str, ...] = tuple(f.name for f in fields(Telemetry))


@runtime_checkable
class Batches(Protocol):
    """Training data of a run, a pure function of the data index.

    `TrainingRun` calls it once a step.
    """

    def __call__(self, index: int, /) -> Any:
        """Return the data of an index ≥ 0: a `Batch`, or one micro-batch as the objective takes it.

        With accumulation n, a tensor, a mapping or a tuple of tensors is one batch and is cut into
        n micro-batches with equally many rows; a list of n entries holds the micro-batches. See
        `trainenv.training.micro_batches.as_batch`.
        """
        ...


@runtime_checkable
class Objective(Protocol):
    """Training loss.

    `TrainingRun` calls it once a micro-batch, under autocast; for validation without gradients.
    """

    def __call__(
        self, model: nn.Module, micro_batch: Any, /
    ) -> Tensor | LossSum | tuple[Tensor, Tensor | float]:
        """Return the mean loss in nats per token, or a pair (loss sum, number of labelled tokens).

        The loss is a scalar with gradients. Micro-batches are weighted by their labelled tokens.
        Those of a plain mean are counted in the data as `trainenv.training.micro_batches.labelled`
        does; return a `LossSum` or a pair if that does not fit your data.
        """
        ...


@runtime_checkable
class MeasuredObjective(Protocol):
    """Objective that describes its last step in numbers. Objectives may have this or not."""

    def measured(self) -> Mapping[str, Tensor]:
        """Return numbers of the last step by name, 0-d tensors; `TrainingRun` calls it once a step.

        They appear in `Telemetry.objective`.
        """
        ...


@runtime_checkable
class CountedObjective(Protocol):
    """Objective whose passes cost more or less than those of the model. May be left out."""

    def flops_per_token(
        self, model: nn.Module, context: int | None, of: Callable[[nn.Module], float], /
    ) -> float:
        """Return the FLOPs of a training step for one token.

        Args:
            model: Model that is trained.
            context: Length of a sequence in tokens; None if unknown.
            of: Function that returns the FLOPs of forward and backward pass of a model.
        """
        ...


@runtime_checkable
class SteeredObjective(Protocol):
    """Objective that interventions can change. May be left out."""

    @property
    def emphases(self) -> tuple[Emphasis, ...]:
        """Changes that stay within the bounds now."""
        ...

    def adjust(self, emphasis: Emphasis, /) -> None:
        """Put a change in force."""
        ...


@runtime_checkable
class Schedule(Protocol):
    """Learning-rate schedule over the budget, a pure function.

    `TrainingRun` calls it once a step.
    """

    def __call__(self, step: int, progress: float, /) -> float:
        """Return the factor on the base learning rate for the step after `step` completed ones.

        Args:
            step: Number of completed optimizer steps.
            progress: Share of the budget's annealing that is done, 0 at the start and 1 at the end
                of the run. It advances faster once budget is spent elsewhere, on branches for
                example, so that the run still ends annealed.
        """
        ...


class ClipPolicy(Protocol):
    """Rule that makes a gradient safe.

    `TrainingRun` calls it once a step, after the backward pass and before the optimizer. A policy
    is a frozen dataclass of hyperparameters; its state is a dict of tensors that `Clipper` holds,
    so that one policy serves many runs and the state of each can be saved.

    Two further class attributes are optional, and false where they are left out. With `needs_loss`,
    `clip` gets the keyword `loss`, the loss of the step as a 0-d tensor, or None where the caller
    has none. With `per_tensor`, the parameters without a gradient are among `parameters`, so that
    each parameter keeps its place from step to step.
    """

    needs_workers: ClassVar[bool]

    def init(self, parameters: Sequence[Tensor], /) -> dict[str, Tensor]:
        """Return a fresh state on the parameters' device."""
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
            parameters: Parameters with a gradient. `p.grad` is the mean over micro-batches, or is
                to be filled with it if `workers` is given.
            state: Return value of `init`, changed in place; no value of it is read on the host.
            workers: Gradients of each micro-batch, [n][parameter], if `needs_workers` and n > 1;
                else None.
            optimizer: Optimizer of the run, for policies that read its moments; may be None.
        """
        ...
