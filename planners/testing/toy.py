"""A toy run whose futures are known exactly: a world model, an executor and planning problems.

An evaluation takes microseconds. An intervention changes the values in force for the four decisions
of the horizon. With x and y the natural logarithms of the learning-rate and the weight-decay
multiplier, and c the clip policy in force,

    Δ ln loss = Σ_{k<4} [a·((x_k − x*)² − x*²) + b·((y_k − y*)² − y*²) + clip(c_k)] / 4
                + Σ cost of resets, reorders and skips

x*, y* and clip(·) are drawn from the seed. Every branch that puts the `unsafe` policy in force
diverges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.interventions import ActionCodec, Factors, after
from trainenv.planners.support.rate_paths import sequence_of
from trainenv.planners.support.sequences import canonical
from trainenv.types import (
    CLIP_NAMES,
    DECISIONS,
    ClipName,
    Cost,
    Estimate,
    Forecast,
    Inference,
    Intervention,
    Measure,
    Outcome,
    PathValues,
    PlanningProblem,
    RunHistory,
    Telemetry,
)

DECISION = 50  # steps
_CURVES = (0.4, 0.02)  # a and b
_ONCE = (0.01, 0.002, -0.003)  # cost of a momentum reset, a reorder, a skip
_LOSS = 3.0  # nats per token now
_COOLDOWN = 20  # steps


START = Factors(lr_scale=1.0, weight_decay_scale=1.0, clip="zclip", flagged_ahead=())
"""Factors in force before any intervention."""


@dataclass(frozen=True, kw_only=True)
class ToyWorld:
    """A world with the law of the module.

    Args:
        seed: Seed of x*, y* and the costs of clip policies.
        codec: Action space.
        unsafe: Clip policy that makes a branch diverge; None for none.
        noise: Standard deviation of Δ ln loss measured on a draw other than 0, nats.
    """

    seed: int = 0
    codec: ActionCodec = field(default_factory=ActionCodec)
    unsafe: ClipName | None = "none"
    noise: float = 0.0

    @cached_property
    def hidden(self) -> tuple[float, float, tuple[float, ...]]:
        """The optima x* and y*, and the cost of each clip policy, nats."""
        rng = np.random.default_rng([self.seed, 7])
        clip = (0.02 * rng.standard_normal(len(CLIP_NAMES))).tolist()
        return float(rng.uniform(-0.4, 0.3)), float(rng.uniform(-0.7, 0.7)), tuple(clip)

    def rate(self, x: float, y: float, clip: int) -> float:
        """Return Δ ln loss of a whole horizon with some values in force, against doing nothing.

        Args:
            x: Ln of the learning-rate multiplier.
            y: Ln of the weight-decay multiplier.
            clip: Clip policy, as in an action vector: 0 keeps the policy.
        """
        best_x, best_y, clips = self.hidden
        learning = _CURVES[0] * ((x - best_x) ** 2 - best_x**2)
        decay = _CURVES[1] * ((y - best_y) ** 2 - best_y**2)
        return learning + decay + (0.0, *clips)[clip]

    def delta(self, sequence: Sequence[Intervention]) -> float:
        """Return the exact Δ ln loss of a sequence."""
        x = y = total = 0.0
        clip = 0
        for place in range(DECISIONS):
            if place < len(sequence):
                done = sequence[place]
                x = x + math.log(done.lr_scale)
                y = y + math.log(done.weight_decay_scale)
                if done.clip is not None:
                    clip = _clip_value(done.clip)
                total += once(done)
            total += self.rate(x, y, clip) / DECISIONS
        return total

    def diverges(self, sequence: Sequence[Intervention]) -> bool:
        """Tell if a sequence puts the unsafe policy in force."""
        return self.unsafe is not None and any(done.clip == self.unsafe for done in sequence)

    def best(self, problem: PlanningProblem, decisions: int = 1) -> float:
        """Return the least Δ ln loss of all sequences of that length, legal under the masks of now.

        All sequences are tried.
        """
        legal = [
            self.codec.decode(vector)
            for vector in product(*(np.flatnonzero(mask).tolist() for mask in problem.masks))
        ]
        return min(
            self.delta(sequence)
            for sequence in product(legal, repeat=decisions)
            if not self.diverges(sequence)
        )

    def problem(self, seed: int = 0, **changes: Any) -> PlanningProblem:
        """Return a problem with a model and an executor of this world.

        Args:
            seed: Seed of the generator.
            changes: Fields of `PlanningProblem` that replace the usual ones.
        """

        def masks_after(sequence: Sequence[Intervention]) -> tuple[NDArray[np.bool_], ...]:
            return self.codec.masks(after(START, *sequence))

        usual: dict[str, Any] = {
            "history": history(),
            "codec": self.codec,
            "masks": self.codec.masks(START),
            "masks_after": masks_after,
            "rate_bounds": self.codec.config.lr_bounds,
            "generator": np.random.default_rng(seed),
            "model": ToyModel(self),
            "executor": ToyExecutor(self),
        }
        return PlanningProblem(**(usual | changes))


@dataclass(frozen=True)
class ToyModel:
    """A world model that knows the law, also for whole paths of the learning rate."""

    world: ToyWorld

    def forecast(
        self, history: RunHistory, interventions: Sequence[Intervention | Sequence[Intervention]], /
    ) -> list[Forecast]:
        return [self._one(as_sequence(one)) for one in interventions]

    def _one(self, sequence: Sequence[Intervention]) -> Forecast:
        delta = self.world.delta(sequence)
        p = 0.01
        if self.world.diverges(sequence):
            p = 0.9
        sure = Estimate(delta, delta, delta - 0.01, delta + 0.01)
        horizon = float(DECISIONS * DECISION)
        late = Estimate(horizon, horizon, 0.0, horizon)
        return Forecast(
            horizon=sure,
            annealed=sure,
            final=sure,
            hazard=(p / DECISIONS,) * DECISIONS,
            divergence=p,
            instability=p,
            recovery=late,
            disagreement=0.001,
            abstain=False,
        )

    def path_values(self, history: RunHistory, paths: NDArray[np.float64], /) -> PathValues:
        change = np.array([self.world.delta(sequence_of(path)) for path in paths], dtype=np.float64)
        end = math.log(_LOSS) + change
        return PathValues(
            change=change,
            disagreement=np.full(len(paths), 0.001),
            low=end - 0.01,
            high=end + 0.01,
        )

    def initial_inference(self, histories: Sequence[RunHistory], /) -> Inference:
        latent = np.zeros((len(histories), 4), dtype=np.float32)  # x, y, clip, decisions taken
        return self._inference(latent, np.zeros(len(histories)))

    def recurrent_inference(
        self, latent: NDArray[np.float32], actions: NDArray[np.integer[Any]], /
    ) -> Inference:
        after = latent.copy()
        rewards = np.zeros(len(latent))
        for row, action in enumerate(actions):
            done = self.world.codec.decode(action)
            after[row, 0] += math.log(done.lr_scale)
            after[row, 1] += math.log(done.weight_decay_scale)
            if done.clip is not None:
                after[row, 2] = _clip_value(done.clip)
            rewards[row] = -once(done) - self._rate(after[row]) / DECISIONS * (
                after[row, 3] < DECISIONS
            )
            after[row, 3] += 1
        return self._inference(after, rewards)

    def _rate(self, state: NDArray[np.float32]) -> float:
        clip = int(state[2])
        unsafe = self.world.unsafe is not None and clip == _clip_value(self.world.unsafe)
        return self.world.rate(float(state[0]), float(state[1]), clip) + 2.0 * unsafe

    def _inference(self, latent: NDArray[np.float32], rewards: NDArray[np.float64]) -> Inference:
        left = [max(0.0, DECISIONS - float(state[3])) / DECISIONS for state in latent]
        value = [-self._rate(state) * share for state, share in zip(latent, left)]
        logits = np.zeros((len(latent), sum(self.world.codec.sizes)), dtype=np.float32)
        return Inference(
            latent, rewards.astype(np.float32), np.array(value, dtype=np.float32), logits
        )


@dataclass(frozen=True)
class ToyExecutor:
    """An executor that runs futures by the law.

    It keeps all branches, so that continuing one costs only the new steps.

    Attributes:
        world: World that has the law.
        done: Steps that were run, for each sequence and draw.
        calls: Number of sequences, steps and draw of each call of `run`.
    """

    world: ToyWorld
    done: dict[tuple[tuple[Intervention, ...], int], int] = field(default_factory=dict)
    calls: list[tuple[int, int, int]] = field(default_factory=list)

    def cost(
        self,
        sequences: Sequence[Sequence[Intervention]],
        steps: int,
        /,
        *,
        measure: Measure,
        draw: int = 0,
    ) -> Cost:
        extra = _cooldown(measure)
        total = sum(self._new(sequence, steps, draw) + extra for sequence in sequences)
        return Cost(steps=total, flops=1e6 * total)

    def run(
        self,
        sequences: Sequence[Sequence[Intervention]],
        steps: int,
        /,
        *,
        measure: Measure,
        draw: int = 0,
    ) -> list[Outcome]:
        self.calls.append((len(sequences), steps, draw))
        return [self._one(tuple(sequence), steps, measure, draw) for sequence in sequences]

    def _new(self, sequence: Sequence[Intervention], steps: int, draw: int) -> int:
        """Return the steps that no kept branch of the same sequence, or a prefix of it, covers."""
        known = [
            self.done.get((canonical(sequence[:place]), draw), 0)
            for place in range(1, len(sequence) + 1)
        ]
        # A prefix covers the steps until the next intervention of the sequence.
        shared = [min(ran, place * DECISION) for place, ran in enumerate(known, start=1)]
        return max(0, steps - max(known[-1], *shared))

    def _one(
        self, sequence: tuple[Intervention, ...], steps: int, measure: Measure, draw: int
    ) -> Outcome:
        took = self._new(sequence, steps, draw) + _cooldown(measure)
        key = canonical(sequence), draw
        self.done[key] = max(steps, self.done.get(key, 0))
        put = sequence[: max(1, -(-steps // DECISION))]
        if self.world.diverges(put):
            return Outcome(
                looks=(0,), validation=(_LOSS,), diverged=True, steps=took, flops=1e6 * took
            )
        seed = [self.world.seed, draw, *self.world.codec.encode(put[0]).tolist(), len(put)]
        noise = 0.0
        if draw:
            noise = self.world.noise * np.random.default_rng(seed).standard_normal()
        looks = tuple(steps * place // DECISIONS for place in range(DECISIONS + 1))
        delta = self.world.delta(put) + noise
        losses = [_LOSS * math.exp(delta * look / max(steps, 1) - 1e-4 * look) for look in looks]
        later = dict.fromkeys(("annealed", "final"), math.nan)
        if measure != "horizon":
            later[measure] = {"annealed": 0.95, "final": 0.9}[measure] * losses[-1]
        return Outcome(
            looks=looks,
            validation=tuple(losses),
            annealed=later["annealed"],
            final=later["final"],
            volatility=0.0,
            steps=took,
            flops=1e6 * took,
        )


def as_sequence(one: Intervention | Sequence[Intervention]) -> tuple[Intervention, ...]:
    """Return an entry of a forecast as a sequence."""
    if isinstance(one, Intervention):
        return (one,)
    return tuple(one)


def _clip_value(name: ClipName) -> int:
    """Return the value of a clip policy in an action vector."""
    return 1 + CLIP_NAMES.index(name)


def _cooldown(measure: Measure) -> int:
    """Return the steps that a measure takes after the branch."""
    return _COOLDOWN * (measure != "horizon")


def once(done: Intervention) -> float:
    """Return the cost of the single events of an intervention, Δ ln loss."""
    return (
        _ONCE[0] * done.momentum_reset + _ONCE[1] * done.data_reorder + _ONCE[2] * done.skip_batch
    )


def history(steps: int = 128, ahead: int = 400, cosine: float = 0.1) -> RunHistory:
    """Return the history of a calm run whose loss falls to 3 nats per token.

    Args:
        steps: Steps so far.
        ahead: Steps to come.
        cosine: Hypergradient cosine of all steps.
    """
    telemetry = [
        Telemetry(
            step=step,
            data_index=step - 1,
            tokens=1024,
            loss=_LOSS + 2.0 / step - 2.0 / steps,
            grad_norm=1.0,
            grad_norm_clipped=1.0,
            clip_threshold=math.inf,
            clip_score=0.0,
            clip="zclip",
            lr=1e-3,
            lr_scale=1.0,
            weight_decay=0.1,
            weight_decay_scale=1.0,
            steps_since_reset=step,
            progress=step / (steps + ahead),
            hypergradient_cosine=cosine,
        )
        for step in range(1, steps + 1)
    ]
    lrs = np.linspace(1e-3, 0.0, ahead, endpoint=False).tolist()
    return RunHistory(
        telemetry=telemetry,
        lrs_ahead=lrs,
        base_lr=1e-3,
        uniform_loss=5.5,
        decision_steps=DECISION,
        validation=_LOSS,
    )
