"""Every noun of the project, as frozen dataclasses and protocols. Imports nothing of ours.

One word a thing: an `Intervention` changes a run, `Telemetry` is what one optimizer step measured, a `Snapshot` is the
whole state of a run at a step, a `Reading` is what the uncertainty index says of a step. *Step* always means an optimizer
step; *decision* means an environment step. Losses are in nats per token, norms are L2, times are in steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, get_args, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn
    from torch.optim import Optimizer

ClipName = Literal["none", "zclip", "arc", "spam"]
CLIP_NAMES: tuple[ClipName, ...] = get_args(ClipName)
TENSOR = "__tensor__"  # key of the mark that stands for a tensor in `Snapshot.state`: {"__tensor__": its name}
Tier = Literal["exact", "8bit"]


class UserError(ValueError):
    """A mistake the user can mend: says what was expected, what was found and what to do. Exit code 2 on the command line."""


def as_number(value: object, name: str, *, least: float | None = None, unit: str = "") -> float:
    """A number from outside as a Python float: also NumPy's, and arrays and tensors of one element.

    Raises:
        UserError: it is not a finite number, or below `least`.
    """
    number = _scalar(value)
    try:
        found = float(number) if isinstance(number, Real) else math.nan
    except OverflowError:  # an int that no float can hold
        found = math.inf
    if math.isfinite(found) and (least is None or found >= least):
        return found
    kind = "a finite number" if least is None else f"{least:g} {unit} or more and finite".replace("  ", " ")
    raise UserError(f"{name} must be {kind}, found {_short(value)}; give a number")


def as_whole(value: object, name: str, *, least: int | None = None) -> int:
    """A whole number from outside as a Python int: also NumPy's, 3.0, and arrays and tensors of one element.

    Raises:
        UserError: it is not a whole number, or below `least`.
    """
    number: Any = _scalar(value)
    whole = isinstance(number, Integral) or (isinstance(number, Real) and float(number).is_integer())
    if not whole:
        raise UserError(f"{name} must be a whole number, found {_short(value)}; give an integer")
    found = int(number)
    if least is not None and found < least:
        raise UserError(f"{name} must be {least} or more, found {found}")
    return found


def as_bool(value: object, name: str) -> bool:
    """A truth value from outside as a Python bool: also NumPy's, and arrays and tensors of one element.

    Raises:
        UserError: it is neither True nor False; "no" and 0 are refused too.
    """
    flag = _scalar(value)
    if not isinstance(flag, bool):
        raise UserError(f"{name} must be True or False, found {_short(value)}; give one of the two")
    return flag


def _scalar(value: object) -> object:
    """The one element of an array or a tensor as a Python number; anything else as it is."""
    if isinstance(value, bool | int | float) and type(value) in (bool, int, float):
        return value
    try:
        return float(value) if isinstance(value, Decimal) else value.item()  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError, RuntimeError):  # it has none, or more than one
        return value


def _short(value: object) -> str:
    return f"{value!r:.80}"


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
        UserError: a scale is not a finite positive number, the clip policy is unknown, or another part is neither True nor False.
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
            scale = _scalar(value)
            if not (isinstance(scale, Real) and 0 < float(scale) < math.inf):
                raise UserError(f"{name} must be a finite number above 0, found {value!r}; 1.0 leaves it as it is")
            object.__setattr__(self, name, float(scale))
        if self.clip is not None and not (isinstance(self.clip, str) and self.clip in CLIP_NAMES):
            raise UserError(f"clip must be None (keep) or one of {', '.join(CLIP_NAMES)}, found {self.clip!r}")
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
        micro: one entry a micro-batch. Ours are int64 tokens of shape [B, T + 1]: inputs [:, :-1], targets [:, 1:].
        index: the data index it was made from (never repeats; differs from the step once batches were skipped).
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
            raise UserError(f"a Batch's micro must be a tuple of micro-batches, found {found}; give (data,) for one")
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
        """The data of index `index` ≥ 0: a `Batch`, or anything that the run's objective takes as one micro-batch.

        With accumulation n, a tensor, a mapping or a tuple of tensors is one batch, and is cut into
        n micro-batches of equally many rows; a list of n entries holds the micro-batches. See
        `trainenv.batching.as_batch`.
        """
        ...


@runtime_checkable
class Objective(Protocol):
    """A training loss. Called once a micro-batch by `TrainingRun` under autocast, and without gradients for validation."""

    def __call__(self, model: nn.Module, micro_batch: Any, /) -> Tensor | LossSum | tuple[Tensor, Tensor | float]:
        """Mean loss in nats per token, a scalar with gradients; or a pair (loss sum, labelled tokens).

        Micro-batches are weighed by their labelled tokens. Those of a plain mean are counted in the
        data, by the rule of `trainenv.batching.labelled`; where that rule does not fit the data,
        return a `LossSum` or a plain pair.
        """
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
        kind: `fired`, `non_finite`, `rewind`, `intervention`, `decision`, `skipped`, `gave_up`, `diverged`, `interrupted`.
        detail: numbers and words that belong to it, as JSON values.
    """

    step: int
    kind: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHistory:
    """What is known of a run at the moment when its futures are drafted.

    Attributes:
        telemetry: of the steps so far in order, the last one now; the more of them, the better: 512, or 40 decisions, are plenty.
        lrs_ahead: learning rate of each step still to come if nothing is done: as many entries as there are steps left.
        base_lr: the optimizer's base learning rate.
        uniform_loss: loss of a uniform guess over the vocabulary, nats.
        decision_steps: steps from one decision to the next; a forecast's horizon N is four of them.
        validation: clean validation loss now, nats per token; NaN where it was not measured.
        flagged_ahead: how many data indices that were flagged are still to come.
    """

    telemetry: Sequence[Telemetry] = field(repr=False)
    lrs_ahead: Sequence[float] = field(repr=False)
    base_lr: float
    uniform_loss: float
    decision_steps: int
    validation: float = math.nan
    flagged_ahead: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number that is forecast: its mean and median, and an interval that is to hold it in 90 of 100 cases."""

    mean: float
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What the world model says of (history, intervention). Never NaN.

    Δ ln loss is the natural logarithm of the clean validation loss less that of doing nothing instead: below 0 is better, −0.01
    is about 1 % better. Doing nothing has 0 by definition.

    Attributes:
        horizon: Δ ln loss at +N steps.
        annealed: Δ ln loss after a reference cool-down that starts there.
        final: Δ ln loss at the end of the run.
        hazard: for each decision until +N, the probability that the run diverges in it if it has not before.
        divergence: probability that the run diverges within N steps.
        instability: probability that the uncertainty index fires within N steps.
        recovery: steps until the validation loss is back at its best so far; N stands for N or more.
        disagreement: standard deviation of the mean of `annealed` over the ensemble.
        abstain: the ensemble disagrees more than where its intervals were calibrated: do nothing, or try it for real.
    """

    horizon: Estimate
    annealed: Estimate
    final: Estimate
    hazard: tuple[float, ...]
    divergence: float
    instability: float
    recovery: Estimate
    disagreement: float
    abstain: bool


@dataclass(frozen=True, slots=True)
class Inference:
    """One step of a model that is searched, for B states at once; float32.

    Attributes:
        latent: [B, …] states, to be handed back to `recurrent_inference`; nobody else reads them.
        reward: [B] fall of ln loss over the decision just taken, nats; 0 at a root.
        value: [B] further fall of ln loss until the end of the run, nats.
        logits: [B, L] of the policy: those of each part of the action one after the other, L = Σ sizes. The policy is the product
            of a softmax over each part.
    """

    latent: NDArray[np.float32]
    reward: NDArray[np.float32]
    value: NDArray[np.float32]
    logits: NDArray[np.float32]


DECISIONS, LOOKS = 4, 8  # of a horizon: decisions in it, and looks at the validation loss


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A branch that was trained for real, beside a do-nothing control on the same batches.

    Attributes:
        run: a name; rollouts of one run share its fate.
        history: what was known when it started.
        interventions: what was done at each of up to four decisions.
        looks: Δ ln loss after each eighth of the horizon, in nats, as far as it was trained; NaN where not measured.
        annealed, final: Δ ln loss after the reference cool-down and at the end of the run; NaN where not measured.
        diverged: decision in which it diverged; −1 if it did not.
        fired: whether the uncertainty index fired.

    Raises:
        UserError: too many interventions or looks, or nothing that was measured.
    """

    run: str
    history: RunHistory = field(repr=False)
    interventions: tuple[Intervention, ...]
    looks: tuple[float, ...] = ()
    annealed: float = math.nan
    final: float = math.nan
    diverged: int = -1
    fired: bool = False

    def __post_init__(self) -> None:
        if len(self.interventions) > DECISIONS or len(self.looks) > LOOKS:
            raise UserError(
                f"a rollout has at most {DECISIONS} interventions and {LOOKS} looks, found {len(self.interventions)} and "
                f"{len(self.looks)}"
            )
        if not any(math.isfinite(value) for value in (*self.looks, self.annealed, self.final)):
            raise UserError("a rollout needs a Δ that was measured, found none; leave out what failed before its first look")


class WorldModel(Protocol):
    """A model of what interventions do to training. Deterministic; calling it changes nothing."""

    def forecast(self, history: RunHistory, interventions: Sequence[Intervention | Sequence[Intervention]], /) -> list[Forecast]:
        """One forecast an entry, in order. An entry is an intervention now, or one for each of up to four decisions from now on.

        Raises:
            UserError: the history is too short or holds a number that is not finite, or an entry is no intervention.
        """
        ...

    def initial_inference(self, histories: Sequence[RunHistory], /) -> Inference:
        """The states that histories are in, as roots of a search."""
        ...

    def recurrent_inference(self, latent: NDArray[np.float32], actions: NDArray[np.integer[Any]], /) -> Inference:
        """What B states become when an action is taken in each and a decision's steps are trained.

        Args:
            latent: [B, …] of an earlier inference.
            actions: [B, 6] action vectors.
        """
        ...


@runtime_checkable
class Learner(Protocol):
    """A world model that learns from what was verified. `worldmodel.OnlineModel` is one."""

    @property
    def model(self) -> WorldModel:
        """The newest."""
        ...

    def learn(self, rollouts: Sequence[Rollout], /) -> None:
        """Take in rollouts, in the order they were measured."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that it has learned, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Know what another had learned, and nothing else."""
        ...


Measure = Literal["horizon", "annealed", "final"]
"""Of a branch: its loss where it ends, after a reference cool-down that starts there, or after training on to the run's end."""

Masks = tuple["NDArray[np.bool_]", ...]  # for each part of the action, which of its values are legal


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What was spent, or may be.

    Attributes:
        futures: what a model looked at: an entry of a forecast, or one state of an inference. The same entry again is free.
        seconds: of wall clock; never compared, so that plans of one seed are equal.
        flops: of real training and its evaluations, as outcomes report them.
        steps: real optimizer steps, those of cool-downs included.
    """

    futures: int = 0
    seconds: float = field(default=0.0, compare=False)
    flops: float = 0.0
    steps: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            futures=self.futures + other.futures,
            seconds=self.seconds + other.seconds,
            flops=self.flops + other.flops,
            steps=self.steps + other.steps,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a plan may cost at most, in the units of `Cost`. None: no limit. 0: none of it; with nothing at all, do nothing.

    Raises:
        UserError: a limit is negative or not finite.
    """

    futures: int | None = 128
    seconds: float | None = None
    flops: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value, whole = getattr(self, limit.name), limit.name in ("futures", "steps")
            if value is None:
                continue
            number: Any = _scalar(value)
            sound = not isinstance(number, bool) and isinstance(number, Real) and 0 <= float(number) < math.inf
            if not sound or (whole and float(number) != int(number)):
                kind = "a whole number" if whole else "a finite number"
                raise UserError(f"the budget's {limit.name} must be {kind}, at least 0, or None for no limit, found {value!r}")
            object.__setattr__(self, limit.name, int(number) if whole else float(number))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What running a branch for real measured. Losses are clean validation losses, nats per token; NaN: not measured, or lost.

    Attributes:
        looks: steps after now at which the loss was measured, rising, 0 first.
        validation: the loss at each look.
        annealed: the loss after the reference cool-down that starts at the last look.
        final: the loss at the end of the run, trained on from the last look.
        diverged: the loss passed all bounds or was lost; the branch may have ended early then.
        volatility: mean volatility axis of the uncertainty index over the branch, z.
        steps: real steps that it took, cool-down and training on included, and without those that were known from before.
        flops: of these steps and of the evaluations.
        error: why the branch could not be run or measured; empty where it was. The other fields are then what is known.
    """

    looks: tuple[int, ...] = ()
    validation: tuple[float, ...] = ()
    annealed: float = math.nan
    final: float = math.nan
    diverged: bool = False
    volatility: float = math.nan
    steps: int = 0
    flops: float = 0.0
    error: str = ""


class Executor(Protocol):
    """Runs futures for real. Called by planners, from one thread, never twice at a time; the run itself is left untouched.

    A sequence is put in force one intervention a decision (`RunHistory.decision_steps`), the first now; what would come at or
    after `steps` is left out. All sequences of all calls with one `draw` see the same batches. What it has run it may keep:
    a sequence that goes on from one that was run, or the same for more steps, then costs only what is new.
    """

    def cost(self, sequences: Sequence[Sequence[Intervention]], steps: int, /, *, measure: Measure, draw: int = 0) -> Cost:
        """What `run` would cost at most: FLOPs and steps of all sequences together. Changes nothing and takes no time."""
        ...

    def run(
        self, sequences: Sequence[Sequence[Intervention]], steps: int, /, *, measure: Measure, draw: int = 0
    ) -> Sequence[Outcome]:
        """One outcome a sequence, in order. A branch that fails says so in its outcome; the others go on.

        Args:
            sequences: of interventions, at least one each.
            steps: optimizer steps of each branch, at least 1.
            measure: what must be measured beside the looks.
            draw: 0 for the batches that the run itself will see; each other number for another order of the data to come.
        """
        ...


class ActionSpace(Protocol):
    """What of `ActionCodec` planners use: an action vector is six whole numbers, all zeros does nothing."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each part has."""
        ...

    def decode(self, action: Sequence[int] | NDArray[np.integer[Any]], /) -> Intervention:
        """The intervention of an action vector."""
        ...

    def encode(self, intervention: Intervention, /) -> NDArray[np.int64]:
        """The action vector of an intervention, int64 [6]; a `UserError` where it has none."""
        ...


class Criterion(Protocol):
    """What is to be small: a score in nats of ln loss, Δ against doing nothing, with divergence priced in."""

    @property
    def measure(self) -> Measure:
        """What executors must measure for it."""
        ...

    def expected(self, forecast: Forecast, /) -> float:
        """The score that a forecast gives reason to expect."""
        ...

    def spread(self, forecast: Forecast, /) -> float:
        """Standard deviation of that score, above 0."""
        ...

    def measured(self, outcome: Outcome, control: Outcome, /) -> float:
        """The score of an outcome beside that of doing nothing over the same steps; NaN where it was not measured."""
        ...


class Pruner(Protocol):
    """Drops hopeless candidates before a model sees them."""

    def hopeless(self, history: RunHistory, sequences: Sequence[Sequence[Intervention]], /) -> Sequence[str]:
        """For each sequence why it is dropped; empty where it stays. Doing nothing is never asked about."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanningProblem:
    """What is asked of a planner. Made anew for each decision; the planner changes none of it but the generator and the executor.

    Attributes:
        history: of the run up to now.
        codec: the action space, `ActionCodec` for instance.
        masks: for each part of the action, which of its values are legal now: bool, of the lengths in `codec.sizes`. The first
            value of each part, doing nothing, is always legal.
        generator: every random choice comes from it.
        model: what forecasts; None where there is none.
        executor: what runs futures for real; None where nothing may be run.
        criterion: what is to be small; None for the default, `planners.Score()`.
        budget: what the plan may cost.
        masks_after: the masks at the decision that follows a sequence; None: those of now hold on.
        proposals: sequences to look at first, after doing nothing (`trainenv.planners.proposals` makes some). Illegal ones are dropped.
        pruner: drops candidates before the model sees them; None for none.
        previous: the plan of the decision before, for planners that go on from it; None at the first.
        taken: what was done after the previous plan.

    Raises:
        UserError: masks do not fit the codec, or forbid doing nothing, or leave a part no value at all.
    """

    history: RunHistory
    codec: ActionSpace
    masks: Masks
    generator: np.random.Generator
    model: WorldModel | None = None
    executor: Executor | None = None
    criterion: Criterion | None = None
    budget: Budget = field(default_factory=Budget)
    masks_after: Callable[[Sequence[Intervention]], Masks] | None = None
    proposals: Sequence[Sequence[Intervention]] = ()
    pruner: Pruner | None = None
    previous: Plan | None = None
    taken: Intervention | None = None

    def __post_init__(self) -> None:
        sizes, found = self.codec.sizes, tuple(len(mask) for mask in self.masks)
        if found != sizes:
            raise UserError(f"masks must have the lengths {sizes} of the codec's parts, found {found}; take codec.masks(run)")
        for part, mask in enumerate(self.masks):
            if not mask[0]:
                what = "leaves no value at all" if not any(mask) else "forbids the first value"
                raise UserError(f"doing nothing is always legal: the mask of part {part} {what}; allow its first value")

    @property
    def decisions_left(self) -> int:
        """Decisions until the end of the run, the one now included; at least 1."""
        return max(1, -(-len(self.history.lrs_ahead) // self.history.decision_steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A future that was considered.

    Attributes:
        interventions: the sequence, one a decision, the first now; never empty.
        score: what it is ranked by, nats, lower is better: Δ ln loss against doing nothing with divergence priced in. Finite.
        forecast: what the model said of it; None where it was not asked.
        outcomes: what running it for real measured, in order.
    """

    interventions: tuple[Intervention, ...]
    score: float
    forecast: Forecast | None = None
    outcomes: tuple[Outcome, ...] = ()

    @property
    def does_nothing(self) -> bool:
        return all(intervention.does_nothing for intervention in self.interventions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A future that was set aside without a score, and why: pruned, illegal, no number in its forecast, a branch that failed."""

    interventions: tuple[Intervention, ...]
    reason: str
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Candidates ranked, best first, and what it took to find them.

    Attributes:
        planner: its name.
        candidates: best first, each sequence once; doing nothing is always among them.
        dropped: what was set aside, in the order it happened.
        cost: what the plan cost.
        faults: what went wrong with the model or the executor, in words. With a fault the ranking is of what was scored before.
        complete: False where the budget or a fault ended it before the planner was done.
        memory: whatever the planner wants back with `PlanningProblem.previous`; nobody else reads it, and it is not compared.

    Raises:
        UserError: doing nothing is not among the candidates, a score is not finite, or scores do not rise.
    """

    planner: str
    candidates: tuple[Candidate, ...]
    dropped: tuple[Dropped, ...] = ()
    cost: Cost = field(default_factory=Cost)
    faults: tuple[str, ...] = ()
    complete: bool = True
    memory: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        scores = [candidate.score for candidate in self.candidates]
        if not any(candidate.does_nothing for candidate in self.candidates):
            raise UserError(f"a plan must rank doing nothing, found none among {len(scores)} candidates; add Intervention()")
        if not all(math.isfinite(score) for score in scores) or scores != sorted(scores):
            raise UserError(f"a plan's scores must be finite and rise from the best on, found {scores}; sort, drop what has none")

    @property
    def best(self) -> Candidate:
        return self.candidates[0]

    @property
    def control(self) -> Candidate:
        """The candidate that does nothing."""
        return next(candidate for candidate in self.candidates if candidate.does_nothing)


@runtime_checkable
class Planner(Protocol):
    """Ranks futures of a run. A frozen dataclass of hyperparameters.

    Called by whoever steers a run, once a decision (an agent after its monitor has fired, or every decision), from one thread.
    It may draw from the problem's generator and let the executor run; everything else stays as it was, itself included: what it
    wants to remember goes into `Plan.memory`. The same problem with a generator of the same seed gives an equal plan, unless
    a limit in seconds cut it short. It ranks doing nothing, proposes nothing that a mask forbids and stops at its budget:
    before what would exceed it (a call that is under way when the seconds end is let finish).

    A model or executor that fails, or that returns what is no number, raises nothing: the plan is of what was scored before, at
    least doing nothing, and its `faults` say what happened. `planners.Draft` does all that; `trainenv.planners.testing` checks it.
    """

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Rank futures.

        Raises:
            UserError: the problem lacks what this planner cannot work without (a model, an executor).
        """
        ...


Fate = Literal["control", "accepted", "passed", "rejected", "stopped", "failed"]
"""Of a branch: it did nothing; it became the run; it would have, but another was better; it was refused; it clearly lost and was
stopped early; it could not be run, or diverged."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Δ ln training loss of a branch against doing nothing, step by step on the same batches.

    Attributes:
        mean: over the steps, nats.
        error: standard error of the mean; inf for fewer than two steps.
        steps: that both were trained for.
    """

    mean: float
    error: float
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A drafted future that was run for real beside doing nothing, and what became of it.

    Attributes:
        interventions: the sequence, one a decision.
        score: the draft's, nats; NaN where it has none.
        forecast: what the model said; None where it was not asked.
        expected: Δ ln validation loss against doing nothing where the branch ends, as drafted: 90 % interval and median. None: no
            forecast.
        outcome: what was measured.
        losses: training loss of each step.
        delta: Δ ln validation loss that was measured, nats; NaN: it was not.
        annealed_delta: the same after the reference cool-down.
        paired: the statistics of the training losses; None where there are none.
        fate: what became of it.
        reason: why, in words.
    """

    interventions: tuple[Intervention, ...]
    score: float
    outcome: Outcome
    forecast: Forecast | None = None
    expected: tuple[float, float, float] | None = None
    losses: tuple[float, ...] = field(default=(), repr=False)
    delta: float = math.nan
    annealed_delta: float = math.nan
    paired: Paired | None = None
    fate: Fate = "rejected"
    reason: str = ""

    @property
    def lost(self) -> str:
        """Why it cannot become the run, whatever the rule: it failed, diverged or was stopped. Empty where it can."""
        if self.outcome.error:
            return self.outcome.error
        return "it diverged" if self.outcome.diverged else ""


@runtime_checkable
class AcceptRule(Protocol):
    """Says whether a branch may become the run. A frozen dataclass, asked only of branches that are not lost."""

    @property
    def measure(self) -> Measure:
        """What rollouts must measure for it."""
        ...

    def objection(self, branch: Branch, control: Branch, /) -> str:
        """Why the branch is refused, in words; empty where it is accepted."""
        ...

    def rank(self, branch: Branch, /) -> float:
        """Of those that are accepted the one with the lowest becomes the run."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What verifying a draft came to.

    Attributes:
        branches: the control that does nothing first, then as drafted.
        accepted: the place of the branch that is to become the run; None: none.
        reason: one sentence.
        steps: real steps of a branch.
        cost: of all branches, cool-downs and evaluations.
        wasted: FLOPs of it that do not become the run's.
    """

    branches: tuple[Branch, ...]
    accepted: int | None
    reason: str
    steps: int
    cost: Cost
    wasted: float = 0.0

    @property
    def control(self) -> Branch:
        """The branch that does nothing."""
        return self.branches[0]

    @property
    def winner(self) -> Branch | None:
        """The branch that is to become the run."""
        return None if self.accepted is None else self.branches[self.accepted]
