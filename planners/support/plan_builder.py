"""A plan in the making: all planners evaluate futures through it, so that all keep the contract.

    builder = PlanBuilder(problem, "mine")
    scores = builder.forecast([(Intervention(lr_scale=0.9),)])    # by the model
    scores = builder.run([(Intervention(lr_scale=0.9),)], 50)     # by real steps, next to a control
    return builder.plan()                                         # on the same batches

A score is NaN where there is none. The builder keeps the budget, the masks and the pruner, catches
the errors of model and executor, and always ranks doing nothing. Two sequences that differ only by
idle interventions at the end are the same sequence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

from trainenv.planners.support.budget_account import Account, needed
from trainenv.planners.support.score import Score
from trainenv.planners.support.sequences import NOTHING, Interventions, Legality, canonical
from trainenv.tools.error_text import describe_error
from trainenv.types import (
    Candidate,
    Cost,
    Criterion,
    Dropped,
    Executor,
    Forecast,
    Intervention,
    Outcome,
    Plan,
    PlanningProblem,
    UserError,
    WorldModel,
)

_BLOCK = 32  # sequences a forecast under a limit in seconds; the clock is read after each block


class PlanBuilder(Account):
    """The evaluations and the spending of one call of `Planner.plan`.

    Args:
        problem: Problem to plan for.
        planner: Name of the planner.
        criterion: Criterion of a planner that has its own; None for the problem's.
        clock: Clock that returns rising seconds.

    Attributes:
        criterion: Criterion of the scores: that of the argument, of the problem, or the default.
        legality: Check of sequences against the masks.
    """

    def __init__(
        self,
        problem: PlanningProblem,
        planner: str,
        *,
        criterion: Criterion | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(problem.budget, clock)
        self.problem = problem
        self.planner = planner
        self.criterion: Criterion = criterion or problem.criterion or Score()
        self.legality = Legality(problem)
        self._scores: dict[Interventions, float] = {}
        self._forecasts: dict[Interventions, Forecast] = {}
        self._outcomes: dict[Interventions, list[Outcome]] = {}
        self._measured: dict[tuple[Interventions, int, int], Outcome] = {}
        self._dropped: dict[Interventions, str] = {}

    # ── the problem ───────────────────────────────────────────────────────────────────────────────

    @property
    def model(self) -> WorldModel:
        """The model of the problem.

        Raises:
            UserError: The problem has none.
        """
        return needed(self.planner, "a model", self.problem.model)

    @property
    def executor(self) -> Executor:
        """The executor of the problem.

        Raises:
            UserError: The problem has none.
        """
        return needed(self.planner, "an executor", self.problem.executor)

    @property
    def proposals(self) -> list[Interventions]:
        """The legal proposals of the problem; illegal ones are recorded as dropped."""
        proposals = map(canonical, self.problem.proposals)
        return [sequence for sequence in proposals if self.admitted(sequence)]

    def admitted(self, sequence: Interventions) -> bool:
        """Tell if a sequence may be evaluated; an illegal one is recorded as dropped."""
        if sequence in self._scores:
            return True
        if sequence in self._dropped:
            return False
        if objection := self.legality.objection(sequence):
            self._dropped[sequence] = objection
            return False
        return True

    # ── forecasts by the model ────────────────────────────────────────────────────────────────────

    def forecast(self, sequences: Iterable[Sequence[Intervention]]) -> list[float]:
        """Forecast sequences and return their expected scores in order.

        Doing nothing is forecast first. A sequence forecast before costs nothing. The score is NaN
        if the sequence was dropped, the budget refused it, or the model failed.
        """
        wanted = [canonical(sequence) for sequence in sequences]
        model = self.model
        fresh = [
            one
            for one in dict.fromkeys(wanted)
            if one not in self._forecasts and one != NOTHING and self.admitted(one)
        ]
        fresh = self.unpruned(fresh)
        if NOTHING not in self._forecasts:
            fresh = [NOTHING, *fresh]
        size = _BLOCK
        if self.problem.budget.seconds is None:
            size = len(fresh)
        while fresh and not self.over:
            block = fresh[: int(min(size, self.futures_left))]
            if not block:
                self.exhausted = True
                break
            self.spend(futures=len(block))
            self._forecast(model, block)
            fresh = fresh[len(block) :]
        return [self._expected(one) for one in wanted]

    def forecast_of(self, sequence: Sequence[Intervention]) -> Forecast | None:
        """Return the forecast of a sequence; None if there is none with a finite score."""
        return self._forecasts.get(canonical(sequence))

    def unpruned(self, sequences: list[Interventions]) -> list[Interventions]:
        """Return the sequences that the pruner keeps, and record the others as dropped."""
        if self.problem.pruner is None or not sequences or self.over or self.futures_left <= 0:
            return sequences
        try:
            reasons = list(self.problem.pruner.hopeless(self.problem.history, sequences))
            if len(reasons) != len(sequences):
                raise UserError(f"expected {len(sequences)} reasons, found {len(reasons)}")
        except Exception as error:
            self.fail(f"the pruner failed: {describe_error(error)}")
            return []
        pairs = list(zip(sequences, reasons, strict=True))
        self._dropped |= {one: reason for one, reason in pairs if reason}
        return [one for one, reason in pairs if not reason]

    def _forecast(self, model: WorldModel, block: list[Interventions]) -> None:
        try:
            asked = [one if len(one) > 1 else one[0] for one in block]
            found = model.forecast(self.problem.history, asked)
            if len(found) != len(block):
                raise UserError(f"expected {len(block)} forecasts, found {len(found)}")
            scores = [self.criterion.expected(forecast) for forecast in found]
        except Exception as error:
            self.fail(f"the model failed: {describe_error(error)}")
            return
        if block[0] == NOTHING and not math.isfinite(scores[0]):
            # All other scores are differences to it, so they are worth nothing.
            self.fail(f"the model failed: its forecast of doing nothing has the score {scores[0]}")
            return
        for one, forecast, score in zip(block, found, scores, strict=True):
            if math.isfinite(score):
                self._forecasts[one] = forecast
                self._scores[one] = score
            else:
                self._dropped[one] = f"its forecast has the score {score}"

    def _expected(self, sequence: Interventions) -> float:
        forecast = self._forecasts.get(sequence)
        if forecast is None:
            return math.nan
        return self.criterion.expected(forecast)

    # ── real steps by the executor ────────────────────────────────────────────────────────────────

    def run(
        self, sequences: Iterable[Sequence[Intervention]], steps: int, *, draw: int = 0
    ) -> list[float]:
        """Run sequences for real and return their measured scores in order.

        The longest prefix that the budget covers is run. Doing nothing is run too, and charged, if
        it has not been run for these steps and this draw. The score is NaN if there is none.

        Args:
            sequences: Sequences to run, the most promising first.
            steps: Optimizer steps of each branch.
            draw: Order of the data to come; 0 for the batches that the run itself will see.
        """
        wanted = [canonical(sequence) for sequence in sequences]
        executor = self.executor
        fresh = self._fresh(wanted, steps, draw)
        if fresh and not self.over:
            self._run(executor, fresh, steps, draw)
        return [self.measured(one, steps, draw=draw) for one in wanted]

    def measured(self, sequence: Sequence[Intervention], steps: int, *, draw: int = 0) -> float:
        """Return the score that `run` measured for a sequence; NaN if there is none."""
        outcome = self.outcome(sequence, steps, draw=draw)
        control = self.outcome(NOTHING, steps, draw=draw)
        if outcome is None or control is None:
            return math.nan
        return self.criterion.measured(outcome, control)

    def outcome(
        self, sequence: Sequence[Intervention], steps: int, *, draw: int = 0
    ) -> Outcome | None:
        """Return the outcome of a sequence; None if it was not run or failed."""
        found = self._measured.get((canonical(sequence), steps, draw))
        if found is None or found.error:
            return None
        return found

    def price(
        self, sequences: Iterable[Sequence[Intervention]], steps: int, *, draw: int = 0
    ) -> Cost | None:
        """Return the most that `run` would spend on all sequences; None if the executor fails."""
        executor = self.executor
        fresh = self._fresh(map(canonical, sequences), steps, draw)
        try:
            return executor.cost(fresh, steps, measure=self.criterion.measure, draw=draw)
        except Exception as error:
            self.fail(f"the executor failed: {describe_error(error)}")
            return None

    def affords(
        self, sequences: Iterable[Sequence[Intervention]], steps: int, *, draw: int = 0
    ) -> bool:
        """Tell if the budget covers all sequences; if not, note that it is exhausted."""
        price = self.price(sequences, steps, draw=draw)
        if price is None:
            return False
        covered = self.covers(price)
        self.exhausted = self.exhausted or not covered
        return covered

    def _fresh(
        self, sequences: Iterable[Interventions], steps: int, draw: int
    ) -> list[Interventions]:
        """Return the control and the legal sequences, without those that were run already."""
        unknown = (
            one
            for one in dict.fromkeys([NOTHING, *sequences])
            if (one, steps, draw) not in self._measured
        )
        return [one for one in unknown if one == NOTHING or self.admitted(one)]

    def _run(self, executor: Executor, fresh: list[Interventions], steps: int, draw: int) -> None:
        measure = self.criterion.measure
        try:
            block = self.affordable(
                fresh, lambda some: executor.cost(some, steps, measure=measure, draw=draw)
            )
            control_alone = block == [NOTHING] and len(fresh) > 1  # it has nothing to compare with
            if not block or control_alone:
                return
            found = list(executor.run(block, steps, measure=measure, draw=draw))
        except Exception as error:
            self.fail(f"the executor failed: {describe_error(error)}")
            return
        for one, outcome in zip(block, found, strict=False):
            if not isinstance(outcome, Outcome) or not outcome.steps >= 0 or not outcome.flops >= 0:
                self.fail(
                    "the executor failed: expected an outcome with steps and FLOPs of at least 0, "
                    f"found {outcome!r}"
                )
                return
            self.spend(steps=outcome.steps, flops=outcome.flops)
            self._outcomes.setdefault(one, []).append(outcome)
            self._measured[one, steps, draw] = outcome
        if len(found) != len(block):
            self.fail(f"the executor failed: expected {len(block)} outcomes, found {len(found)}")
        for one in block[: len(found)]:
            self._settle(one, steps, draw)

    def _settle(self, one: Interventions, steps: int, draw: int) -> None:
        """Keep the measured score of a sequence, or record why it has none."""
        score = self.measured(one, steps, draw=draw)
        if math.isfinite(score):
            self._scores[one] = score
            return
        reason = self._measured[one, steps, draw].error
        reason = reason or f"no {self.criterion.measure} loss was measured"
        if one == NOTHING:
            self.fail(f"the control that does nothing failed: {reason}")
        elif one not in self._scores:
            self._dropped[one] = reason

    # ── the plan ──────────────────────────────────────────────────────────────────────────────────

    def score(self, sequence: Sequence[Intervention], value: float) -> None:
        """Rank a sequence by the planner's own score; an illegal sequence is dropped.

        The score replaces that of the last forecast or measurement.
        """
        one = canonical(sequence)
        if one != NOTHING and not self.admitted(one):
            return
        if math.isfinite(value):
            self._scores[one] = float(value)
        else:
            self._dropped[one] = f"its score is {value}"

    def rank(self, ranked: Sequence[tuple[Sequence[Intervention], float]]) -> None:
        """Rank sequences in the order given, and all others after them by score.

        Doing nothing keeps the place of its own score. A score better than the one before it is
        raised to that one: a sequence given up after a short run must not rank before those that
        outlived it.
        """
        level = -math.inf
        first = [(canonical(sequence), score) for sequence, score in ranked]
        named = {NOTHING, *(one for one, _ in first)}
        others = sorted(
            ((one, score) for one, score in self._scores.items() if one not in named),
            key=lambda pair: pair[1],
        )
        for one, score in [*first, *others]:
            level = max(level, score)
            self._scores.pop(one, None)  # of equal scores, the first one set ranks first
            self.score(one, level)

    def drop(self, sequence: Sequence[Intervention], reason: str) -> None:
        """Remove a sequence from the ranking and keep its outcomes; doing nothing stays."""
        one = canonical(sequence)
        if one != NOTHING:
            self._scores.pop(one, None)
            self._dropped[one] = reason

    def plan(self, *, complete: bool = True, memory: object = None) -> Plan:
        """Return the plan: all sequences with a score, the best first.

        Of equal scores doing nothing comes first, then the sequence evaluated first.
        """
        self._scores.setdefault(NOTHING, 0.0)
        ranked = sorted(self._scores.items(), key=lambda item: (item[1], item[0] != NOTHING))
        unscored = [
            one for one in self._outcomes if one not in self._scores and one not in self._dropped
        ]
        dropped = self._dropped | dict.fromkeys(unscored, "it was run, but has no score")
        return Plan(
            planner=self.planner,
            candidates=tuple(self._candidate(one, score) for one, score in ranked),
            dropped=tuple(
                Dropped(
                    interventions=one, reason=reason, outcomes=tuple(self._outcomes.get(one, ()))
                )
                for one, reason in dropped.items()
                if one not in self._scores
            ),
            cost=self.spent + Cost(seconds=self.seconds),
            faults=tuple(self.faults),
            complete=complete and not self.faults and not self.exhausted,
            memory=memory,
        )

    def _candidate(self, one: Interventions, score: float) -> Candidate:
        return Candidate(
            interventions=one,
            score=score,
            forecast=self._forecasts.get(one),
            outcomes=tuple(self._outcomes.get(one, ())),
        )
