"""The nouns of planning: the problem, its budget, candidates and plans, and the protocols of planners."""

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
"""Of a branch: its loss where it ends, after a reference cool-down that starts there, or after training on to the run's end."""


Masks = tuple[
    "NDArray[np.bool_]", ...
]  # for each part of the action, which of its values are legal


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What was spent, or may be.

    Attributes:
        futures: what a model looked at: an entry of a forecast, or one state of an inference. The
            same entry again is free.
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
    """What a plan may cost at most, in the units of `Cost`.

    None: no limit. 0: none of it; with nothing at all, do nothing.

    Raises:
        UserError: a limit is negative or not finite.
    """

    futures: int | None = 128
    seconds: float | None = None
    flops: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            whole = limit.name in ("futures", "steps")
            if value is None:
                continue
            number: Any = scalar(value)
            sound = (
                not isinstance(number, bool)
                and isinstance(number, Real)
                and 0 <= float(number) < math.inf
            )
            if not sound or (whole and float(number) != int(number)):
                kind = "a whole number" if whole else "a finite number"
                raise UserError(
                    f"the budget's {limit.name} must be {kind}, at least 0, or None for no limit, found {value!r}"
                )
            object.__setattr__(self, limit.name, int(number) if whole else float(number))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What running a branch for real measured.

    Losses are clean validation losses, nats per token; NaN: not measured, or lost.

    Attributes:
        looks: steps after now at which the loss was measured, rising, 0 first.
        validation: the loss at each look.
        annealed: the loss after the reference cool-down that starts at the last look.
        final: the loss at the end of the run, trained on from the last look.
        diverged: the loss passed all bounds or was lost; the branch may have ended early then.
        volatility: mean volatility axis of the uncertainty index over the branch, z.
        steps: real steps that it took, cool-down and training on included, and without those that
            were known from before.
        flops: of these steps and of the evaluations.
        error: why the branch could not be run or measured; empty where it was. The other fields are
            then what is known.
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
    """Runs futures for real.

    Called by planners, from one thread, never twice at a time; the run itself is left untouched.

    A sequence is put in force one intervention a decision (`RunHistory.decision_steps`), the first
    now; what would come at or after `steps` is left out. All sequences of all calls with one `draw`
    see the same batches. What it has run it may keep: a sequence that goes on from one that was
    run, or the same for more steps, then costs only what is new.
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
        """What `run` would cost at most: FLOPs and steps of all sequences together.

        Changes nothing and takes no time.
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
        """One outcome a sequence, in order.

        A branch that fails says so in its outcome; the others go on.

        Args:
            sequences: of interventions, at least one each.
            steps: optimizer steps of each branch, at least 1.
            measure: what must be measured beside the looks.
            draw: 0 for the batches that the run itself will see; each other number for another
                order of the data to come.
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

    def hopeless(
        self, history: RunHistory, sequences: Sequence[Sequence[Intervention]], /
    ) -> Sequence[str]:
        """For each sequence why it is dropped; empty where it stays.

        Doing nothing is never asked about.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanningProblem:
    """What is asked of a planner.

    Made anew for each decision; the planner changes none of it but the generator and the executor.

    Attributes:
        history: of the run up to now.
        codec: the action space, `ActionCodec` for instance.
        masks: for each part of the action, which of its values are legal now: bool, of the lengths
            in `codec.sizes`. The first value of each part, doing nothing, is always legal.
        generator: every random choice comes from it.
        model: what forecasts; None where there is none.
        executor: what runs futures for real; None where nothing may be run.
        criterion: what is to be small; None for the default, `planners.Score()`.
        budget: what the plan may cost.
        masks_after: the masks at the decision that follows a sequence; None: those of now hold on.
        proposals: sequences to look at first, after doing nothing (`trainenv.planners.proposals`
            makes some). Illegal ones are dropped.
        pruner: drops candidates before the model sees them; None for none.
        previous: the plan of the decision before, for planners that go on from it; None at the
            first.
        taken: what was done after the previous plan.

    Raises:
        UserError: masks do not fit the codec, or forbid doing nothing, or leave a part no value at
            all.
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
        sizes = self.codec.sizes
        found = tuple(len(mask) for mask in self.masks)
        if found != sizes:
            raise UserError(
                f"masks must have the lengths {sizes} of the codec's parts, found {found}; take codec.masks(run)"
            )
        for part, mask in enumerate(self.masks):
            if not mask[0]:
                what = "leaves no value at all" if not any(mask) else "forbids the first value"
                raise UserError(
                    f"doing nothing is always legal: the mask of part {part} {what}; allow its first value"
                )

    @property
    def decisions_left(self) -> int:
        """Decisions until the end of the run, the one now included; at least 1."""
        return max(1, -(-len(self.history.lrs_ahead) // self.history.decision_steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A future that was considered.

    Attributes:
        interventions: the sequence, one a decision, the first now; never empty.
        score: what it is ranked by, nats, lower is better: Δ ln loss against doing nothing with
            divergence priced in. Finite.
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
        faults: what went wrong with the model or the executor, in words. With a fault the ranking
            is of what was scored before.
        complete: False where the budget or a fault ended it before the planner was done.
        memory: whatever the planner wants back with `PlanningProblem.previous`; nobody else reads
            it, and it is not compared.

    Raises:
        UserError: doing nothing is not among the candidates, a score is not finite, or scores do
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
                f"a plan must rank doing nothing, found none among {len(scores)} candidates; add Intervention()"
            )
        if not all(math.isfinite(score) for score in scores) or scores != sorted(scores):
            raise UserError(
                f"a plan's scores must be finite and rise from the best on, found {scores}; sort, drop what has none"
            )

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

    Called by whoever steers a run, once a decision (an agent after its monitor has fired, or every
    decision), from one thread. It may draw from the problem's generator and let the executor run;
    everything else stays as it was, itself included: what it wants to remember goes into
    `Plan.memory`. The same problem with a generator of the same seed gives an equal plan, unless a
    limit in seconds cut it short. It ranks doing nothing, proposes nothing that a mask forbids and
    stops at its budget: before what would exceed it (a call that is under way when the seconds end
    is let finish).

    A model or executor that fails, or that returns what is no number, raises nothing: the plan is
    of what was scored before, at least doing nothing, and its `faults` say what happened.
    `planners.PlanBuilder` does all that; `trainenv.planners.testing` checks it.
    """

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Rank futures.

        Raises:
            UserError: the problem lacks what this planner cannot work without (a model, an
                executor).
        """
        ...
