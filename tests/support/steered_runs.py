"""Runs of a few thousand steps a second to steer, planners that always promise much, and what becomes of them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support import run_settings
from tests.support.bigram import Bigram
from trainenv.agents.branching import Branching
from trainenv.config.schema import TrainingConfig
from trainenv.loop import Watch, train
from trainenv.records.decision_files import read_decisions
from trainenv.records.run_folder import RunFolder, read_events
from trainenv.run import TrainingRun
from trainenv.types import (
    Candidate,
    Cost,
    Estimate,
    Forecast,
    Inference,
    Intervention,
    Plan,
    PlanningProblem,
    Reading,
    Rollout,
    RunHistory,
    Telemetry,
)

Sequenced = tuple[Intervention, ...]
LOWER, HIGHER, NOTHING = Intervention(lr_scale=0.8), Intervention(lr_scale=1.1), Intervention()
SMALL: dict[str, Any] = run_settings.SMALL | {"checkpoints.every": 20}
QUICK: dict[str, Any] = {
    "every": 16,
    "rewind": 8,
    "harm": 0.1,
    "horizon": 32,
    "top_k": 4,
    "verify_steps": 4,
    "refractory_steps": 8,
    "max_waste": 0.5,
    "min_gain": 0.0,
    "cut_gain": 0.0,
    "replayable": False,
}


def tokens(index: int) -> Tensor:
    """Two sequences in which a token mostly follows the one before it, so that there is something to learn."""
    generator = torch.Generator().manual_seed(index)
    start, noise = (
        torch.randint(0, 8, (2, 1), generator=generator),
        torch.rand((2, 9), generator=generator),
    )
    return (start + torch.arange(9) + (noise < 0.2)) % 8


def toy(
    steps: int = 120,
    lr: float = 2e-2,
    branching: Mapping[str, Any] | None = None,
    *,
    kicked: Mapping[int, float] = {},
    **more: Any,
) -> TrainingRun:
    """A run that has not begun.

    Args:
        steps: the budget.
        lr: the learning rate.
        branching: settings on top of `QUICK`.
        kicked: by completed steps, factor on the learning rate of the one step after them.
        more: other settings.
    """
    model = Bigram()
    quick: dict[str, Any] = {
        "monitor": {"block": 4, "probe_every": 1},
        "schedule": {"warmup": 0},
        "clip": {"policy": "none"},
        "validation": {"every": 0},
        "checkpoints": {"every": 8, "moments": "exact"},
        "environment": {"divergence_loss": 10.0},
        "branching": QUICK | dict(branching or {}),
    }
    config = TrainingConfig(**{"name": "toy", "steps": steps} | quick | more)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    return TrainingRun(
        model,
        optimizer,
        tokens,
        config,
        validation=[tokens(10**6)],
        probe=tokens(10**6 + 1),
        stress=(lambda step: kicked.get(step, 1.0)) if kicked else None,
    )


def forecast(delta: float = -0.05, wide: float = 5.0) -> Forecast:
    """Much is promised, and hardly anything would be a surprise."""
    at = Estimate(delta, delta, delta - wide, delta + wide)
    return Forecast(
        horizon=at,
        annealed=at,
        final=at,
        hazard=(0.0,) * 4,
        divergence=0.01,
        instability=0.1,
        recovery=Estimate(1.0, 1.0, 0.0, 2.0),
        disagreement=0.01,
        abstain=False,
    )


@dataclass
class Promising:
    """A planner that drafts the same sequences at each decision, and remembers what it was asked.

    Args:
        sequences: best first.
        forecasts: the forecast of each; an unlikely one makes the rule `agreement` refuse it.
        futures: that it says it has looked at.
        problems: that it was asked.
    """

    sequences: Sequence[Sequenced] = ((LOWER, HIGHER), (HIGHER,), (Intervention(lr_scale=0.9),))
    forecasts: Callable[[int], Forecast] = lambda place: forecast()
    futures: int = 0
    problems: list[PlanningProblem] = field(default_factory=list)

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """The same as ever, but for the order: that depends on what the model says of doing nothing."""
        self.problems.append(problem)
        turn = 0
        if problem.model is not None:
            turn = round(
                problem.model.forecast(problem.history, [NOTHING])[0].instability * 10
            ) % len(self.sequences)
        turned = [*self.sequences[turn:], *self.sequences[:turn]]
        drafted = [
            Candidate(interventions=one, score=-0.1 + 0.01 * place, forecast=self.forecasts(place))
            for place, one in enumerate(turned)
        ]
        control = Candidate(interventions=(NOTHING,), score=0.0, forecast=forecast(0.0, 0.001))
        return Plan(
            planner="promising", candidates=(*drafted, control), cost=Cost(futures=self.futures)
        )


def refused() -> Promising:
    """Drafts that no measurement agrees with."""
    return Promising(forecasts=lambda place: forecast(-50.0, 1.0), sequences=((LOWER,), (HIGHER,)))


@dataclass
class Dreamer:
    """A world model that expects much of everything but doing nothing; `instability` says how much it has learned."""

    seen: int = 0
    flops_per_future: float = 0.0

    def forecast(
        self, history: RunHistory, interventions: Sequence[Intervention | Sequence[Intervention]], /
    ) -> list[Forecast]:
        """See `WorldModel`."""
        found = []
        for one in interventions:
            still = all(
                part.does_nothing for part in ([one] if isinstance(one, Intervention) else one)
            )
            found.append(
                replace(forecast(0.0 if still else -0.05), instability=0.1 * (self.seen % 10))
            )
        return found

    def initial_inference(self, histories: Sequence[RunHistory], /) -> Inference:
        """No planner of these tests searches: one that did would be a fault."""
        raise AssertionError("expected forecasts to be asked for, found a search")

    recurrent_inference = initial_inference  # type: ignore[assignment]


class Pupil:
    """A learner whose drafts depend on every rollout that it was told of."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.flops = 0.0

    @property
    def model(self) -> Dreamer:
        """Knows what was learned so far."""
        return Dreamer(seen=len(self.taken))

    def learn(self, rollouts: Sequence[Rollout], /) -> None:
        """Remember what was measured."""
        self.taken += [one.looks[0] for one in rollouts]
        self.flops += 1000.0 * len(rollouts)

    def state_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"taken": list(self.taken)}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """What another had learned."""
        self.taken = list(state["taken"])


def ruin(model: Any) -> None:
    """No weight of it is a finite number any more."""
    with torch.no_grad():
        for weights in model.parameters():
            weights.fill_(math.nan)


def alarm_at(*steps: int) -> Callable[[Any, Telemetry], Reading]:
    """In place of `UncertaintyIndex.update`: an alarm whenever the run comes by these steps, and at a loss that is lost."""

    def update(index: Any, telemetry: Telemetry) -> Reading:
        fired = telemetry.step in steps
        return Reading(index=9.0 if fired else 0.0, threshold=10.0, fired=fired)

    return update


@dataclass(frozen=True)
class Steered:
    """What became of a run."""

    run: TrainingRun
    callback: Branching
    path: Path
    summary: dict[str, Any]

    @property
    def events(self) -> list[dict[str, Any]]:
        return read_events(self.path)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Events of a kind."""
        return [event for event in self.events if event["kind"] == kind]

    @property
    def decisions(self) -> list[dict[str, Any]]:
        return read_decisions(self.path)

    @property
    def total(self) -> float:
        return sum(self.summary["flops"].values())


def steered(
    run: TrainingRun,
    callback: Branching | None = None,
    *,
    watch: Watch = lambda run, window: None,
    **how: Any,
) -> Steered:
    """Drive a run to its end in a folder of its own."""
    callback = callback or Branching(**{"planner": Promising(), **how})
    with_folder = RunFolder.create(Path(tempfile.mkdtemp()) / "run", run.config)
    return Steered(
        run, callback, with_folder.path, train(run, with_folder, callback=callback, watch=watch)
    )
