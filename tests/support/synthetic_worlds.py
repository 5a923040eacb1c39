"""The synthetic environment as a planning problem: a model and an executor that know its law, and its known optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.config.schema import InterventionConfig
from trainenv.envs.synthetic import SyntheticEnv
from trainenv.envs.synthetic_law import REFERENCE
from trainenv.planners.testing.toy import history
from trainenv.types import (
    Cost,
    Estimate,
    Forecast,
    Inference,
    Intervention,
    Measure,
    Outcome,
    PlanningProblem,
    RunHistory,
)

DECISION = 50  # steps
BASES = InterventionConfig()
RATES = InterventionConfig(
    lr_scales=(1.0, *(float(f) for f in np.geomspace(0.25, 4.0, 17) if f != 1.0))
)


@dataclass
class Synthetic:
    """An environment at some decision, without spikes, and what comes of sequences from there on.

    Args:
        seed: of the hidden world.
        decisions: the budget of the run.
        at: decisions already taken.
        interventions: the action space.
        error: standard deviation of what the model gets wrong, ln loss; the executor is exact.
    """

    seed: int
    decisions: int = 16
    at: int = 4
    interventions: InterventionConfig = BASES
    error: float = 0.0

    def __post_init__(self) -> None:
        self.env = SyntheticEnv(self.decisions, spikes=False, interventions=self.interventions)
        self.env.reset(seed=self.seed)
        for _ in range(self.at):
            self.env.step([0] * 6)

        self.known: dict[tuple[Intervention, ...], tuple[list[float], list[float]]] = {}
        self.optimum = self.env.optimum()[0] if len(self.interventions.lr_scales) <= 4 else math.nan

    def played(self, sequence: Sequence[Intervention], decisions: int) -> list[float]:
        """Clean loss now and after each of so many decisions."""
        return self._played(tuple(sequence))[0][: decisions + 1]

    def annealed(self, sequence: Sequence[Intervention], decisions: int) -> float:
        """Loss after so many decisions with what noise hides given back: what a cool-down would show."""
        return self._played(tuple(sequence))[1][decisions]

    def _played(self, sequence: tuple[Intervention, ...]) -> tuple[list[float], list[float]]:
        if sequence in self.known:
            return self.known[sequence]
        env = self.env.fork()
        losses, annealed = [env.state.validation], [env.law.loss(env.state.gained)]
        for place in range(self.left):
            done = sequence[place] if place < len(sequence) else Intervention()
            env.step(env.codec.encode(done))
            losses.append(env.state.validation)
            annealed.append(env.law.loss(env.state.gained) + env.state.excess)
        self.known[sequence] = losses, annealed
        return losses, annealed

    @property
    def left(self) -> int:
        return self.decisions - self.at

    def final(self, sequence: Sequence[Intervention]) -> float:
        """Δ ln loss at the end of the run, exactly."""
        return math.log(self.played(sequence, self.left)[-1] / self.played((), self.left)[-1])

    def regret(self, sequence: Sequence[Intervention]) -> float:
        """What a sequence, and nothing after it, loses against the optimum of the whole run, ln loss."""
        return self.optimum - math.log(
            self.env.state.validation / self.played(sequence, self.left)[-1]
        )

    def problem(self, seed: int = 0, **changes: Any) -> PlanningProblem:
        usual: dict[str, Any] = {
            "history": history(ahead=self.left * DECISION),
            "codec": self.env.codec,
            "masks": self.env.codec.masks(self.env.state),
            "generator": np.random.default_rng(seed),
            "model": SyntheticModel(self),
            "executor": SyntheticExecutor(self),
        }
        return PlanningProblem(**(usual | changes))


@dataclass
class SyntheticModel:
    """Forecasts by the law, give or take its error."""

    world: Synthetic
    states: list[SyntheticEnv] = field(default_factory=list)

    def forecast(
        self, history: RunHistory, interventions: Sequence[Intervention | Sequence[Intervention]], /
    ) -> list[Forecast]:
        return [
            self._one((one,) if isinstance(one, Intervention) else tuple(one))
            for one in interventions
        ]

    def _one(self, sequence: tuple[Intervention, ...]) -> Forecast:
        world, span = self.world, 1.6448536 * self.world.error + 1e-6
        idle = all(done.does_nothing for done in sequence)
        words = [int(v) for done in sequence for v in world.env.codec.encode(done)]
        wrong = (
            0.0
            if idle
            else world.error * float(np.random.default_rng([world.seed, *words]).standard_normal())
        )
        values = {
            "horizon": self._delta(sequence, min(4, world.left)) + wrong,
            "final": world.final(sequence) + wrong,
        }
        ahead = min(4, world.left)
        values["annealed"] = (
            math.log(world.annealed(sequence, ahead) / world.annealed((), ahead)) + wrong
        )
        made = {
            name: Estimate(value, value, value - span, value + span)
            for name, value in values.items()
        }
        late = Estimate(4.0 * DECISION, 4.0 * DECISION, 0.0, 4.0 * DECISION)
        rest = {
            "hazard": (0.0,) * 4,
            "divergence": 0.0,
            "instability": 0.0,
            "recovery": late,
            "disagreement": 0.0,
        }
        return Forecast(**made, **rest, abstain=False)  # type: ignore[arg-type]

    def _delta(self, sequence: Sequence[Intervention], decisions: int) -> float:
        return math.log(
            self.world.played(sequence, decisions)[-1] / self.world.played((), decisions)[-1]
        )

    # A latent is the number of a forked environment; its value is what doing nothing until the end would bring.

    def initial_inference(self, histories: Sequence[RunHistory], /) -> Inference:
        return self._inference([self.world.env for _ in histories], [0.0] * len(histories))

    def recurrent_inference(
        self, latent: NDArray[np.float32], actions: NDArray[np.integer[Any]], /
    ) -> Inference:
        forks = [self.states[int(row[0])].fork() for row in latent]
        rewards = []
        for fork, action in zip(forks, actions):
            before = fork.state.validation
            if not fork.state.over:
                fork.step(action)
            rewards.append(math.log(before / fork.state.validation))
        return self._inference(forks, rewards)

    def _inference(self, envs: list[SyntheticEnv], rewards: list[float]) -> Inference:
        first = len(self.states)
        self.states += envs
        latent = np.arange(first, first + len(envs), dtype=np.float32)[:, None]
        values = []
        for env in envs:
            rest = env.fork()
            while not rest.state.over:
                rest.step([0] * 6)
            values.append(math.log(env.state.validation / rest.state.validation))
        logits = np.zeros((len(envs), sum(self.world.env.codec.sizes)), dtype=np.float32)
        return Inference(
            latent, np.array(rewards, np.float32), np.array(values, np.float32), logits
        )


@dataclass
class SyntheticExecutor:
    """Runs futures by the law; whatever is asked is run anew and charged."""

    world: Synthetic
    seen: list[tuple[Intervention, ...]] = field(default_factory=list)

    def cost(
        self,
        sequences: Sequence[Sequence[Intervention]],
        steps: int,
        /,
        *,
        measure: Measure,
        draw: int = 0,
    ) -> Cost:
        extra = max(0, self.world.left * DECISION - steps) if measure == "final" else 0
        return Cost(
            steps=len(sequences) * (steps + extra), flops=float(len(sequences) * (steps + extra))
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
        return [self._one(tuple(sequence), steps, measure) for sequence in sequences]

    def _one(self, sequence: tuple[Intervention, ...], steps: int, measure: Measure) -> Outcome:
        self.seen.append(sequence)
        decisions, cost = -(-steps // DECISION), self.cost([sequence], steps, measure=measure)
        losses = self.world.played(sequence[:decisions], decisions)
        return Outcome(
            looks=tuple(min(place * DECISION, steps) for place in range(decisions + 1)),
            validation=tuple(losses),
            annealed=self.world.annealed(sequence[:decisions], decisions),
            final=self.world.played(sequence[:decisions], self.world.left)[-1],
            diverged=losses[-1] > 2 * REFERENCE,
            steps=cost.steps,
            flops=cost.flops,
        )
