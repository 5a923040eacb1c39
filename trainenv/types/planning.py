"""Nouns of planning: problem, budget, candidates, plan, and the protocols around planners."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from trainenv.types.errors import UserError
from trainenv.types.forecasting import Forecast, WorldModel
from trainenv.types.numbers import scalar
from trainenv.types.run import RunHistory
from trainenv.types.step import Intervention

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Measure = Literal["horizon", "annealed", "final"]
"""Loss of a branch: at its end, after a cool-down that starts there, or at the run's end."""
Masks = tuple["NDArray[np.bool_]", ...]
"""Legal values of each part of the action."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Compute that was spent, or may be.

    Attributes:
        futures: Number of futures that a model looked at: entries of a forecast, or states of an
            inference. The same entry again is free.
        seconds: Wall-clock time; never compared, so that plans of one seed are equal.
        flops: FLOPs of real training and its evaluations, as outcomes report them.
        steps: Real optimizer steps, those of cool-downs included.
        paths: Number of paths of the learning rate that a model valued; each counts as a future
            against a budget.
    """

    futures: int = 0
    seconds: float = field(default=0.0, compare=False)
    flops: float = 0.0
    steps: int = 0
    paths: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            futures=self.futures + other.futures,
            seconds=self.seconds + other.seconds,
            flops=self.flops + other.flops,
            steps=self.steps + other.steps,
            paths=self.paths + other.paths,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Upper limits on the cost of a plan, in the units of `Cost`.

    None means no limit, 0 means none at all. A planner that may spend nothing plans to do nothing.

    Raises:
        UserError: A limit is negative or not finite.
    """

    futures: int | None = 128
    seconds: float | None = None
    flops: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is None:
                continue
            whole = limit.name in ("futures", "steps")
            number: Any = scalar(value)
            real = isinstance(number, Real) and not isinstance(number, bool)
            if not (
                real and 0 <= float(number) < math.inf and (not whole or number == int(number))
            ):
                kind = "a finite number"
                if whole:
                    kind = "a whole number"
                raise UserError(
                    f"the budget's {limit.name} must be {kind}, at least 0, or None for no limit, "
                    f"found {value!r}"
                )
            object.__setattr__(self, limit.name, int(number) if whole else float(number))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Measurements of a branch that was trained for real.

    Losses are clean validation losses in nats per token; NaN if not measured, or lost.

    Attributes:
        looks: Steps from now at which the loss was measured, rising, 0 first.
        validation: Loss at each of these steps.
        annealed: Loss after the reference cool-down that starts at the last of them.
        final: Loss at the end of the run, trained from the last of them.
        diverged: True if the loss passed all bounds or was lost; the branch may have ended early.
        volatility: Mean volatility of the uncertainty index over the branch, a z-score.
        steps: Real steps that were trained for it, cool-down included; steps known before count
            nothing.
        flops: FLOPs of these steps and of the evaluations.
        error: Reason why the branch could not be run or measured; empty if it could. The other
            fields then hold what is known.
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
    """Trainer of futures for real.

    Planners call it from one thread, never twice at a time; the run itself is unchanged. A sequence
    is put in force one intervention a decision (`RunHistory.decision_steps`), the first one now;
    interventions at or after `steps` are left out. All sequences of all calls with one `draw` see
    the same batches. Results may be kept: a longer version of a sequence that was run costs only
    what is new.
    """

    def cost(
        self,
        sequences: Sequence[Sequence[Intervention]],
        steps: int,
        /,
        *,
        measure: Measure,
        draw: int = 0,
    ) -> Cost:
        """Return the most that `run` would cost: FLOPs and steps of all sequences together.

        It changes nothing and takes no time.
        """
        ...

    def run(
        self,
        sequences: Sequence[Sequence[Intervention]],
        steps: int,
        /,
        *,
        measure: Measure,
        draw: int = 0,
    ) -> Sequence[Outcome]:
        """Return one outcome for each sequence, in order.

        A branch that fails says so in its outcome; the others are trained all the same.

        Args:
            sequences: Sequences of at least one intervention each.
            steps: Optimizer steps of each branch, at least 1.
            measure: Loss that must be measured in addition to those along the way.
            draw: Data seed: 0 for the batches that the run itself will see, any other number for
                another order of the data to come.
        """
        ...


class ActionSpace(Protocol):
    """Part of `ActionCodec` that planners use.

    An action vector is one whole number a part, six by default; all zeros does nothing.
    """

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each part."""
        ...

    def decode(self, action: Sequence[int] | NDArray[np.integer[Any]], /) -> Intervention:
        """Return the intervention of an action vector."""
        ...

    def encode(self, intervention: Intervention, /) -> NDArray[np.int64]:
        """Return the action vector of an intervention, int64 [6].

        Raises:
            UserError: The intervention has no action vector.
        """
        ...


class Criterion(Protocol):
    """Score that planners minimise: Δ ln loss against doing nothing in nats, with divergence."""

    @property
    def measure(self) -> Measure:
        """Loss that executors must measure for the score."""
        ...

    def expected(self, forecast: Forecast, /) -> float:
        """Return the expected score of a forecast."""
        ...

    def spread(self, forecast: Forecast, /) -> float:
        """Return the standard deviation of that score, above 0."""
        ...

    def measured(self, outcome: Outcome, control: Outcome, /) -> float:
        """Return the score of an outcome against that of doing nothing over the same steps.

        NaN if it was not measured.
        """
        ...


class Pruner(Protocol):
    """Filter of hopeless candidates, applied before a model sees them."""

    def hopeless(
        self, history: RunHistory, sequences: Sequence[Sequence[Intervention]], /
    ) -> Sequence[str]:
        """Return for each sequence the reason to drop it; empty to keep it.

        Doing nothing is never asked about.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanningProblem:
    """Task of a planner, made anew for each decision.

    The planner changes nothing of it except the generator and the executor.

    Attributes:
        history: History of the run up to now.
        codec: Action space, `ActionCodec` for instance.
        masks: Legal values of each part of the action now: bool arrays with the lengths of
            `codec.sizes`. The first value of each part, doing nothing, is always legal.
        generator: Source of every random choice.
        model: World model; None without one.
        executor: Trainer of futures for real; None if nothing may be trained.
        criterion: Score to minimise; None for the default, `planners.Score()`.
        budget: Upper limits on the cost of the plan.
        masks_after: Function that returns the masks at the decision after a sequence; None if those
            of now stay valid.
        proposals: Sequences to look at first, after doing nothing; `trainenv.planners.proposals`
            makes some. Illegal ones are dropped.
        pruner: Filter applied before the model sees candidates; None for none.
        rate_bounds: Least and greatest factor on the learning rate in force now that a sequence
            may reach at any decision, by changes of any size; None if a sequence may take the
            values of the codec alone.
        previous: Plan of the decision before, for planners that continue it; None at the first.
        taken: Intervention that was applied after the previous plan.

    Raises:
        UserError: Masks do not fit the codec, forbid doing nothing, or leave a part without a
            value.
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
    rate_bounds: tuple[float, float] | None = None
    previous: Plan | None = None
    taken: Intervention | None = None

    def __post_init__(self) -> None:
        sizes = self.codec.sizes
        found = tuple(len(mask) for mask in self.masks)
        if found != sizes:
            raise UserError(
                f"masks must have the lengths {sizes} of the codec's parts, found {found}; "
                "take codec.masks(run)"
            )
        for part, mask in enumerate(self.masks):
            if not mask[0]:
                found_mask = "leaves no value at all"
                if any(mask):
                    found_mask = "forbids the first value"
                raise UserError(
                    f"doing nothing is always legal: the mask of part {part} {found_mask}; "
                    "allow its first value"
                )

    @property
    def decisions_left(self) -> int:
        """Number of decisions until the end of the run, the one now included; at least 1."""
        return max(1, -(-len(self.history.lrs_ahead) // self.history.decision_steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Future that was scored.

    Attributes:
        interventions: Sequence of interventions, one a decision, the first one now; never empty.
        score: Score in nats, lower is better: Δ ln loss against doing nothing with divergence
            priced in. Finite.
        forecast: Forecast of the model; None if it was not asked.
        outcomes: Measurements of real training, in order.
    """

    interventions: tuple[Intervention, ...]
    score: float
    forecast: Forecast | None = None
    outcomes: tuple[Outcome, ...] = ()

    @property
    def does_nothing(self) -> bool:
        """True if no intervention of the sequence changes anything."""
        return all(intervention.does_nothing for intervention in self.interventions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Future that was set aside without a score.

    Attributes:
        interventions: Sequence of interventions, one a decision.
        reason: Reason, in words: pruned, illegal, a forecast without a number, a failed branch.
        outcomes: Measurements of real training, in order.
    """

    interventions: tuple[Intervention, ...]
    reason: str
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Ranked candidates, best first, with the cost of finding them.

    Attributes:
        planner: Name of the planner.
        candidates: Candidates, best first, each sequence once; doing nothing is always among them.
        dropped: Futures without a score, in the order in which they were set aside.
        cost: Cost of the plan.
        faults: Failures of the model or the executor, in words. With one, the ranking is of what
            was scored before.
        complete: False if the budget or a fault ended the planning early.
        memory: State that the planner wants back as `PlanningProblem.previous`; it is not compared.

    Raises:
        UserError: Doing nothing is not among the candidates, a score is not finite, or scores do
            not rise.
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
            raise UserError(
                f"a plan must rank doing nothing, found none among {len(scores)} candidates; "
                "add Intervention()"
            )
        if not all(math.isfinite(score) for score in scores) or scores != sorted(scores):
            raise UserError(
                f"a plan's scores must be finite and rise from the best on, found {scores}; "
                "sort them, and drop candidates without one"
            )

    @property
    def best(self) -> Candidate:
        """Candidate with the lowest score."""
        return self.candidates[0]

    @property
    def control(self) -> Candidate:
        """Candidate that does nothing."""
        return next(candidate for candidate in self.candidates if candidate.does_nothing)


@runtime_checkable
class Planner(Protocol):
    """Ranking of futures of a run, as a frozen dataclass of hyperparameters.

    Whoever steers a run calls it once a decision, from one thread. It may draw from the problem's
    generator and let the executor run; everything else stays unchanged, itself included: what it
    wants to remember goes into `Plan.memory`. The same problem with a generator of the same seed
    gives an equal plan, unless a limit in seconds cut it short. It ranks doing nothing, proposes
    nothing that a mask forbids, and stops before a call that would exceed its budget.

    A model or executor that fails, or returns a non-finite number, raises nothing: the plan then
    ranks what was scored before, at least doing nothing, and its `faults` say what happened.
    `planners.PlanBuilder` does all that; `trainenv.planners.testing` checks it.
    """

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Rank futures.

        Raises:
            UserError: The problem lacks a part that this planner needs, such as a model or an
                executor.
        """
        ...
