"""Models and executors that count what planners ask of them, and that fail as real ones do."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.support.rate_paths import sequence_of
from trainenv.planners.support.sequences import Legality
from trainenv.planners.testing.toy import as_sequence
from trainenv.types import (
    Cost,
    Estimate,
    Executor,
    Forecast,
    Inference,
    Intervention,
    Measure,
    Outcome,
    PathModel,
    PathValues,
    PlanningProblem,
    RunHistory,
    WorldModel,
    as_path_model,
)

ModelFault = Literal["raises", "nan", "nan for doing nothing", "nan for some", "too few", "rubbish"]
ExecutorFault = Literal[
    "raises",
    "cost raises",
    "errors",
    "error of the control",
    "nan",
    "too few",
    "rubbish",
    "all diverge",
]
MODEL_FAULTS: tuple[ModelFault, ...] = get_args(ModelFault)
EXECUTOR_FAULTS: tuple[ExecutorFault, ...] = get_args(ExecutorFault)


@dataclass
class WatchedModel:
    """A model that counts its calls, and that fails from one call on if it has a fault.

    Attributes:
        model: Model that answers.
        fault: Kind of failure, or an exception to raise; None for no failure.
        at: Number of the first call that fails, from 0.
        pause: Seconds that each future takes.
        futures: Number of entries forecast and states inferred so far.
        paths: Number of paths valued so far.
        calls: Number of calls so far.
        asked: Sequences forecast so far, and those of the paths valued.
    """

    model: WorldModel
    fault: ModelFault | BaseException | None = None
    at: int = 0
    pause: float = 0.0
    futures: int = 0
    paths: int = 0
    calls: int = 0
    asked: list[tuple[Intervention, ...]] = field(default_factory=list)

    def forecast(
        self, history: RunHistory, interventions: Sequence[Intervention | Sequence[Intervention]], /
    ) -> list[Forecast]:
        sequences = [as_sequence(one) for one in interventions]
        fails = self._count(len(sequences))
        self.asked += sequences
        found = self.model.forecast(history, interventions)
        if not fails or self.fault is None:
            return found
        if self.fault == "too few":
            return found[:-1]
        if self.fault == "rubbish":
            return ["no forecast" for _ in found]  # type: ignore[misc]
        found = list(found)
        every = {"nan": 1, "nan for some": 2}.get(str(self.fault), len(found) + 1)
        for place, sequence in enumerate(sequences):
            idle = self.fault == "nan for doing nothing" and _idle(sequence)
            if place % every == every - 1 or idle:
                found[place] = _without_number(found[place])
        return found

    def path_values(self, history: RunHistory, paths: NDArray[np.float64], /) -> PathValues:
        assert isinstance(self.model, PathModel)
        self.futures -= len(paths)  # they are counted apart
        self.paths += len(paths)
        fails = self._count(len(paths))
        self.asked += [sequence_of(path) for path in paths]
        found = self.model.path_values(history, paths)
        if not fails or self.fault is None:
            return found
        if self.fault == "rubbish":
            return "no values"  # type: ignore[return-value]
        if self.fault == "too few":
            return PathValues(
                change=found.change[:-1],
                disagreement=found.disagreement[:-1],
                low=found.low[:-1],
                high=found.high[:-1],
            )
        change = found.change.copy()
        if self.fault == "nan":
            change[:] = math.nan
        elif self.fault == "nan for some":
            change[1::2] = math.nan
        return replace(found, change=change)

    @property
    def values_paths(self) -> bool:
        return as_path_model(self.model) is not None

    def initial_inference(self, histories: Sequence[RunHistory], /) -> Inference:
        fails = self._count(len(histories))
        return self._spoil(fails, self.model.initial_inference(histories))

    def recurrent_inference(
        self, latent: NDArray[np.float32], actions: NDArray[np.integer[Any]], /
    ) -> Inference:
        fails = self._count(len(latent))
        return self._spoil(fails, self.model.recurrent_inference(latent, actions))

    def _count(self, futures: int) -> bool:
        """Count a call; return True if it must fail."""
        self.calls += 1
        self.futures += futures
        time.sleep(self.pause * futures)
        fails = self.fault is not None and self.calls > self.at
        if fails and isinstance(self.fault, BaseException):
            raise self.fault
        if fails and self.fault == "raises":
            raise RuntimeError("the model broke")
        return fails

    def _spoil(self, fails: bool, inference: Inference) -> Inference:
        if not fails:
            return inference
        return Inference(
            inference.latent,
            inference.reward,
            np.full_like(inference.value, np.nan),
            inference.logits,
        )


@dataclass
class WatchedExecutor:
    """An executor that counts its calls, and that fails from one call on if it has a fault.

    Attributes:
        executor: Executor that runs the sequences.
        fault: Kind of failure, or an exception to raise; None for no failure.
        at: Number of the first call of `run` that fails, from 0.
        steps: Real steps taken so far.
        flops: FLOPs spent so far.
        calls: Number of calls of `run` so far.
        asked: Sequences run so far.
    """

    executor: Executor
    fault: ExecutorFault | BaseException | None = None
    at: int = 0
    steps: int = 0
    flops: float = 0.0
    calls: int = 0
    asked: list[tuple[Intervention, ...]] = field(default_factory=list)

    def cost(
        self,
        sequences: Sequence[Sequence[Intervention]],
        steps: int,
        /,
        *,
        measure: Measure,
        draw: int = 0,
    ) -> Cost:
        if self.fault == "cost raises" and self.calls >= self.at:
            raise RuntimeError("the executor broke")
        return self.executor.cost(sequences, steps, measure=measure, draw=draw)

    def run(
        self,
        sequences: Sequence[Sequence[Intervention]],
        steps: int,
        /,
        *,
        measure: Measure,
        draw: int = 0,
    ) -> Sequence[Outcome]:
        self.calls += 1
        self.asked += [tuple(sequence) for sequence in sequences]
        fails = self.fault is not None and self.calls > self.at
        if fails and isinstance(self.fault, BaseException):
            raise self.fault
        if fails and self.fault == "raises":
            raise OSError("the executor's process died")
        found = list(self.executor.run(sequences, steps, measure=measure, draw=draw))
        if fails:
            found = [
                self._spoil(sequence, outcome)
                for sequence, outcome in zip(sequences, found, strict=True)
            ]
            if self.fault == "too few":
                found.pop()
        sound = [outcome for outcome in found if isinstance(outcome, Outcome)]
        self.steps += sum(outcome.steps for outcome in sound)
        self.flops += sum(outcome.flops for outcome in sound)
        return found

    def _spoil(self, sequence: Sequence[Intervention], outcome: Outcome) -> Outcome:
        lost = tuple(math.nan for _ in outcome.validation)
        if self.fault == "errors" or (self.fault == "error of the control" and _idle(sequence)):
            return Outcome(error="out of memory", steps=outcome.steps, flops=outcome.flops)
        if self.fault == "nan":
            return replace(outcome, validation=lost, annealed=math.nan, final=math.nan)
        if self.fault == "all diverge":
            return replace(
                outcome, validation=lost, annealed=math.nan, final=math.nan, diverged=True
            )
        if self.fault == "rubbish":
            return "no outcome"  # type: ignore[return-value]
        return outcome


def watched(problem: PlanningProblem) -> tuple[PlanningProblem, WatchedModel, WatchedExecutor]:
    """Return the problem with its model and its executor watched, and the two watchers."""
    assert problem.model is not None
    assert problem.executor is not None
    model = WatchedModel(problem.model)
    executor = WatchedExecutor(problem.executor)
    return replace(problem, model=model, executor=executor), model, executor


def illegal(problem: PlanningProblem, sequences: Sequence[Sequence[Intervention]]) -> list[str]:
    """Return the objection to each sequence that a mask forbids."""
    legality = Legality(problem)
    return [found for sequence in sequences if (found := legality.objection(tuple(sequence)))]


def _idle(sequence: Sequence[Intervention]) -> bool:
    return all(done.does_nothing for done in sequence)


def _without_number(forecast: Forecast) -> Forecast:
    nothing = Estimate(math.nan, math.nan, math.nan, math.nan)
    return replace(forecast, horizon=nothing, annealed=nothing, final=nothing)
