"""Planners on a tiny real run: its branches are forks of one snapshot on the same batches, and the run itself stays as it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import trainenv
from trainenv import planners
from trainenv.interventions import ActionCodec
from trainenv.planners import Score
from trainenv.planners.testing import ToyModel, ToyWorld
from trainenv.types import (
    Budget,
    Cost,
    Intervention,
    Measure,
    Outcome,
    PlanningProblem,
    RunHistory,
    Telemetry,
    UserError,
)

VOCABULARY, DECISION = 17, 6


def batch(index: int) -> torch.Tensor:
    """A noisy cycle through the vocabulary, a pure function of the index."""
    generator = torch.Generator().manual_seed(index)
    tokens = (torch.randint(VOCABULARY, (8, 1), generator=generator) + torch.arange(9)) % VOCABULARY
    noise = torch.rand(8, 9, generator=generator) < 0.1
    return torch.where(noise, torch.randint(VOCABULARY, (8, 9), generator=generator), tokens)


def make_run(lr: float = 0.003) -> trainenv.TrainingRun:
    config = trainenv.TrainingConfig(steps=200, threads=1, seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Embedding(VOCABULARY, 8), torch.nn.Linear(8, VOCABULARY)
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    return trainenv.TrainingRun(
        model, optimizer, batch, config, validation=[batch(10**6), batch(10**6 + 1)]
    )


@dataclass
class Forks:
    """An executor on a real run."""

    run_: trainenv.TrainingRun
    spent: int = 0
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
        return Cost(
            steps=len(sequences) * steps,
            flops=2 * len(sequences) * steps * self.run_.flops_per_step,
        )

    def run(
        self,
        sequences: Sequence[Sequence[Intervention]],
        steps: int,
        /,
        *,
        measure: Measure,
        draw: int = 0,
    ) -> list[Outcome]:
        return [self._one(tuple(sequence), steps) for sequence in sequences]

    def _one(self, sequence: tuple[Intervention, ...], steps: int) -> Outcome:
        self.asked.append(sequence)
        fork, before = self.run_.fork(), self.run_.ledger.total
        looks, losses = [0], [fork.evaluate()]
        try:
            for start in range(0, steps, DECISION):
                place = start // DECISION
                fork.apply(sequence[place] if place < len(sequence) else Intervention())
                fork.advance(min(DECISION, steps - start))
                looks.append(min(start + DECISION, steps))
                losses.append(fork.evaluate())
        except UserError as error:
            return Outcome(error=str(error), flops=self.run_.ledger.total - before)
        self.spent += steps
        return Outcome(
            looks=tuple(looks),
            validation=tuple(losses),
            diverged=not losses[-1] < 2 * fork.uniform_loss,
            steps=steps,
            flops=self.run_.ledger.total - before,
        )


def problem_of(
    run: trainenv.TrainingRun, telemetry: list[Telemetry], **changes: Any
) -> PlanningProblem:
    codec = ActionCodec(run.config.interventions)
    history = RunHistory(
        telemetry=telemetry,
        lrs_ahead=[telemetry[-1].lr] * (200 - run.step),
        base_lr=telemetry[-1].lr,
        uniform_loss=run.uniform_loss,
        decision_steps=DECISION,
    )
    usual: dict[str, Any] = {
        "history": history,
        "codec": codec,
        "masks": codec.masks(run),
        "generator": np.random.default_rng(0),
        "model": ToyModel(ToyWorld(unsafe=None)),
        "executor": Forks(run),
        "criterion": Score(measure="horizon"),
        "budget": Budget(steps=150),
    }
    return PlanningProblem(**(usual | changes))


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("grid", {"judge": "executor", "candidates": 6, "decisions": 2}),
        ("bandit", {"method": "halving", "arms": 4}),
        ("bayes", {"judge": "executor", "candidates": 8, "batch": 4, "startup": 4}),
        ("pbt", {"population": 4, "generations": 3}),
        ("mcts", {"simulations": 8}),
        ("autolrs", {"stage": 4, "share": 0.5}),
    ],
)
def test_a_plan_for_a_real_run(name: str, hyper: dict[str, Any]) -> None:
    run = make_run()
    telemetry = run.advance(20)
    before, horizon = run.fingerprint(), run.horizon
    problem = problem_of(run, telemetry)
    plan = planners.make(name, **hyper).plan(problem)
    executor: Any = problem.executor
    assert run.fingerprint() == before
    assert run.horizon == horizon
    assert plan.faults == ()
    assert plan.cost.steps == executor.spent <= 150
    assert plan.cost.flops == pytest.approx(run.ledger["verify"] + run.ledger["evaluate"])
    for one in plan.candidates:  # what was promised is what comes of it
        if one.outcomes and len(one.interventions) == 1:
            fork = run.fork()
            fork.apply(one.interventions[0])
            fork.advance(one.outcomes[-1].looks[-1])
            assert fork.evaluate() == one.outcomes[-1].validation[-1]
            break
    run.apply(plan.best.interventions[0])


def test_a_run_that_learns_too_slowly_is_told_so() -> None:
    """Its learning rate is ten times too low, so the real oracle raises it."""
    run = make_run(lr=0.0003)
    telemetry = run.advance(20)
    masks = (np.ones(4, dtype=np.bool_), *(np.arange(size) == 0 for size in (3, 5, 2, 2, 2)))
    problem = problem_of(run, telemetry, masks=masks, model=None, budget=Budget())
    plan = planners.make("grid").plan(problem)
    assert len(plan.candidates) == 4
    assert plan.best.interventions[0].lr_scale == 1.1
    assert plan.best.score < 0
    assert math.isclose(plan.control.score, 0.0)
