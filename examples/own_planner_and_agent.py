"""A planner, an accept rule and an agent of your own, in the loop.

python examples/own_planner_and_agent.py

Each is a class with one or two methods, without a base class and without registration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainenv import Intervention, TrainingRun, agents, planners, worldmodel
from trainenv.envs.observation import FEATURES
from trainenv.interventions import ActionCodec
from trainenv.loop import Callback, train
from trainenv.planners import testing
from trainenv.records.run_folder import RunFolder
from trainenv.report.run.run_report import RunReport
from trainenv.types import Branch, Measure, Plan, PlanningProblem
from trainenv.wrappers import Verification

SETTINGS = {
    "steps": 200,
    "model.width": 32,
    "clip.policy": "none",
    "schedule.warmup": 10,
    "validation.sequences": 16,
    "environment.decision_steps": 20,
    "branching": {
        "every": 40,
        "rewind": 40,
        "horizon": 24,
        "verify_steps": 5,
        "refractory_steps": 20,
    },  # the horizon is 12 % of the run
}


@dataclass(frozen=True, kw_only=True)
class Climb:
    """Planner that extends a sequence of interventions greedily.

    For each coming decision it appends the learning-rate change that has the best forecast after
    the earlier ones. `planners.PlanBuilder` takes care of the rules for planners: budget, masks,
    failures of the model, and no intervention as a candidate.
    """

    decisions: int = 3
    rates: tuple[float, ...] = (1.0, 0.9, 1.1)

    def plan(self, problem: PlanningProblem, /) -> Plan:
        draft = planners.PlanBuilder(problem, "climb")
        path: tuple[Intervention, ...] = ()
        for _ in range(min(self.decisions, problem.decisions_left)):
            longer = [(*path, Intervention(lr_scale=rate)) for rate in self.rates]
            scored = [
                pair for pair in zip(draft.forecast(longer), longer) if math.isfinite(pair[0])
            ]
            if not scored:  # the budget is spent, or the model failed
                break
            path = min(scored, key=lambda pair: pair[0])[1]
        return draft.plan()


@dataclass(frozen=True, kw_only=True)
class NotWorse:
    """Accept rule: the training loss of a branch is not above that of the control beyond chance.

    Both are trained on the same batches. Chance is `errors` standard errors of the mean difference.
    """

    errors: float = 1.0
    # "horizon" is the loss at the end of a branch; "annealed" costs a cool-down in addition.
    measure: ClassVar[Measure] = "horizon"

    def objection(self, branch: Branch, control: Branch, /) -> str:
        pair = branch.paired
        if pair is None or pair.mean > self.errors * pair.error:
            return (
                f"training loss {pair.mean:+.4f} ± {pair.error:.4f} nats"
                if pair
                else "nothing to compare"
            )
        return ""

    def rank(self, branch: Branch, /) -> float:
        return branch.score  # among accepted branches, the planner's best


class Thermostat:
    """Agent that controls the size of the updates by the learning rate.

    It keeps the norm of an update near a hundredth of that of the weights.
    """

    def act(
        self, observation: NDArray[np.float32], info: Mapping[str, Any], /
    ) -> NDArray[np.int64]:
        ratio = dict(zip(FEATURES, observation))["update_ratio"]  # log10(‖update‖ ÷ ‖weights‖) + 3
        rate = 0.8 if ratio > 1.2 else 1.1 if ratio < 0.8 else 1.0
        return ActionCodec().encode(Intervention(lr_scale=rate))


def main() -> None:
    testing.check(Climb())  # thirteen checks; a failed one reports what it expected and found
    print("the planner keeps its promises")
    loop = agents.Branching(
        planner=Climb(),
        model=worldmodel.load_pretrained(),
        verification=Verification(top_k=3, verify_steps=5, rule=NotWorse()),
    )
    callbacks: dict[str, Callback | None] = {
        "left alone": None,
        "thermostat": agents.AgentCallback(agent=Thermostat()),
        "loop": loop,
    }
    with TemporaryDirectory() as folder:
        for name, callback in callbacks.items():
            # Each run has the same initial weights and the same batches.
            run = TrainingRun.from_config("tiny", SETTINGS)
            summary = train(
                run, RunFolder.create(Path(folder) / name, run.config), callback=callback
            )
            print(
                f"{name}: {summary['final_validation_loss']:.3f} nats after {summary['step']} steps"
            )
        print(RunReport(Path(folder) / "loop").tree())


if __name__ == "__main__":
    main()
