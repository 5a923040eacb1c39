"""A run whose futures are known exactly: a world model, an executor and problems to try planners on, in microseconds.

Doing something now changes what is in force for the four decisions of the horizon. With x and y the
natural logarithms of the learning-rate and the weight-decay multiplier, and c the clip policy put
in force,

    Δ ln loss = Σ_{k<4} [a·((x_k − x*)² − x*²) + b·((y_k − y*)² − y*²) + clip(c_k)] / 4  +  Σ cost
    of resets, reorders and skips

x*, y* and clip(·) are drawn from the seed. A policy that is `unsafe` makes every branch diverge
that puts it in force.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.interventions import ActionCodec
from trainenv.planners.support.sequences import canonical
from trainenv.types import (
    CLIP_NAMES,
    ClipName,
    Cost,
    Estimate,
    Forecast,
    Inference,
    Intervention,
    Measure,
    Outcome,
    PlanningProblem,
    RunHistory,
    Telemetry,
)

HORIZON = 4  # decisions
DECISION = 50  # steps
_CURVES = (0.4, 0.02)  # a and b
_ONCE = (0.01, 0.002, -0.003)  # cost of a momentum reset, a reorder, a skip
_LOSS = 3.0  # nats per token now
_COOLDOWN = 20  # steps


@dataclass(frozen=True, kw_only=True)
class InForce:
    """What masks depend on."""

    lr_scale: float = 1.0
    weight_decay_scale: float = 1.0
    clip: str = "zclip"
    flagged_ahead: tuple[int, ...] = ()

    def after(self, intervention: Intervention) -> InForce:
        """What is in force once an intervention is."""
        return replace(
            self,
            lr_scale=self.lr_scale * intervention.lr_scale,
            weight_decay_scale=self.weight_decay_scale * intervention.weight_decay_scale,
            clip=intervention.clip or self.clip,
            flagged_ahead=() if intervention.skip_batch else self.flagged_ahead,
        )


@dataclass(frozen=True, kw_only=True)
class ToyWorld:
    """The law, and what is made of it.

    Args:
        seed: of x*, y* and what clip policies cost.
        codec: the action space.
        unsafe: the clip policy that diverges; None for none.
        noise: nats, standard deviation of what is measured on a draw other than 0.
    """

    seed: int = 0
    codec: ActionCodec = field(default_factory=ActionCodec)
    unsafe: ClipName | None = "none"
    noise: float = 0.0

    @cached_property
    def hidden(self) -> tuple[float, float, tuple[float, ...]]:
        """x*, y*, and what each clip policy costs in nats."""
        rng = np.random.default_rng([self.seed, 7])
        clip = (0.02 * rng.standard_normal(len(CLIP_NAMES))).tolist()
        return float(rng.uniform(-0.4, 0.3)), float(rng.uniform(-0.7, 0.7)), tuple(clip)

    def rate(self, x: float, y: float, clip: int) -> float:
        """Δ ln loss of a whole horizon with this in force, less that of doing nothing; `clip` as in an action vector."""
        best_x, best_y, clips = self.hidden
        learning = _CURVES[0] * ((x - best_x) ** 2 - best_x**2)
        return (
            learning
            + _CURVES[1] * ((y - best_y) ** 2 - best_y**2)
            + (clips[clip - 1] if clip else 0.0)
        )

    def delta(self, sequence: Sequence[Intervention]) -> float:
        """Δ ln loss of a sequence, exactly."""
        x = y = total = 0.0
        clip = 0
        for place in range(HORIZON):
            if place < len(sequence):
                done = sequence[place]
                x = x + math.log(done.lr_scale)
                y = y + math.log(done.weight_decay_scale)
                clip = clip if done.clip is None else 1 + CLIP_NAMES.index(done.clip)
                total += once(done)
            total += self.rate(x, y, clip) / HORIZON
        return total

    def diverges(self, sequence: Sequence[Intervention]) -> bool:
        return self.unsafe is not None and any(done.clip == self.unsafe for done in sequence)

    def best(self, problem: PlanningProblem, decisions: int = 1) -> float:
        """The least Δ ln loss of all legal sequences of so many decisions, by trying them all (under the masks of now)."""
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
        """A problem with a model and an executor of this world; `changes` are fields of `PlanningProblem`."""

        def masks_after(sequence: Sequence[Intervention]) -> tuple[NDArray[np.bool_], ...]:
            state = InForce()
            for done in sequence:
                state = state.after(done)
            return self.codec.masks(state)

        usual: dict[str, Any] = {
            "history": history(),
            "codec": self.codec,
            "masks": self.codec.masks(InForce()),
            "masks_after": masks_after,
            "generator": np.random.default_rng(seed),
            "model": ToyModel(self),
            "executor": ToyExecutor(self),
        }
        return PlanningProblem(**(usual | changes))


@dataclass(frozen=True)
class ToyModel:
    """The world model that knows the law."""

    world: ToyWorld

    def forecast(
        self, history: RunHistory, interventions: Sequence[Intervention | Sequence[Intervention]], /
    ) -> list[Forecast]:
        return [
            self._one((one,) if isinstance(one, Intervention) else one) for one in interventions
        ]

    def _one(self, sequence: Sequence[Intervention]) -> Forecast:
        delta = self.world.delta(sequence)
        p = 0.9 if self.world.diverges(sequence) else 0.01
        sure = Estimate(delta, delta, delta - 0.01, delta + 0.01)
        late = Estimate(
            float(HORIZON * DECISION), float(HORIZON * DECISION), 0.0, float(HORIZON * DECISION)
        )
        return Forecast(
            horizon=sure,
            annealed=sure,
            final=sure,
            hazard=(p / HORIZON,) * HORIZON,
            divergence=p,
            instability=p,
            recovery=late,
            disagreement=0.001,
            abstain=False,
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
            after[row, 2] = after[row, 2] if done.clip is None else 1 + CLIP_NAMES.index(done.clip)
            rewards[row] = -once(done) - self._rate(after[row]) / HORIZON * (
                after[row, 3] < HORIZON
            )
            after[row, 3] += 1
        return self._inference(after, rewards)

    def _rate(self, state: NDArray[np.float32]) -> float:
        clip = int(state[2])
        unsafe = self.world.unsafe is not None and clip == 1 + CLIP_NAMES.index(self.world.unsafe)
        return self.world.rate(float(state[0]), float(state[1]), clip) + 2.0 * unsafe

    def _inference(self, latent: NDArray[np.float32], rewards: NDArray[np.float64]) -> Inference:
        left = [max(0.0, HORIZON - float(state[3])) / HORIZON for state in latent]
        value = [-self._rate(state) * share for state, share in zip(latent, left)]
        logits = np.zeros((len(latent), sum(self.world.codec.sizes)), dtype=np.float32)
        return Inference(
            latent, rewards.astype(np.float32), np.array(value, dtype=np.float32), logits
        )


@dataclass(frozen=True)
class ToyExecutor:
    """Runs futures by the law.

    What it has run it keeps: going on from there costs only what is new.

    Attributes:
        done: for each sequence and draw, how many steps were run.
        calls: how often `run` was called, as a list of what was asked.
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
        total = sum(
            self._new(sequence, steps, draw) + (_COOLDOWN if measure != "horizon" else 0)
            for sequence in sequences
        )
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
        """Steps that are not known from a run of a beginning of the sequence."""
        known = [
            self.done.get((canonical(sequence[:place]), draw), 0)
            for place in range(1, len(sequence) + 1)
        ]
        shared = [
            min(ran, place * DECISION) for place, ran in enumerate(known, start=1)
        ]  # then the next intervention would come
        return max(0, steps - max(known[-1], *shared))

    def _one(
        self, sequence: tuple[Intervention, ...], steps: int, measure: Measure, draw: int
    ) -> Outcome:
        extra = _COOLDOWN if measure != "horizon" else 0
        took = self._new(sequence, steps, draw) + extra
        key = canonical(sequence), draw
        self.done[key] = max(steps, self.done.get(key, 0))
        put = sequence[: max(1, -(-steps // DECISION))]
        if self.world.diverges(put):
            return Outcome(
                looks=(0,), validation=(_LOSS,), diverged=True, steps=took, flops=1e6 * took
            )
        seed = [self.world.seed, draw, *self.world.codec.encode(put[0]).tolist(), len(put)]
        noise = self.world.noise * np.random.default_rng(seed).standard_normal() if draw else 0.0
        looks = tuple(steps * place // HORIZON for place in range(HORIZON + 1))
        delta = self.world.delta(put) + noise
        losses = [_LOSS * math.exp(delta * look / max(steps, 1) - 1e-4 * look) for look in looks]
        after = losses[-1]
        return Outcome(
            looks=looks,
            validation=tuple(losses),
            annealed=0.95 * after if measure == "annealed" else math.nan,
            final=0.9 * after if measure == "final" else math.nan,
            volatility=0.0,
            steps=took,
            flops=1e6 * took,
        )


def once(done: Intervention) -> float:
    """What an intervention costs once, Δ ln loss."""
    return (
        _ONCE[0] * done.momentum_reset + _ONCE[1] * done.data_reorder + _ONCE[2] * done.skip_batch
    )


def history(steps: int = 128, ahead: int = 400, cosine: float = 0.1) -> RunHistory:
    """A calm run of `steps` steps with `ahead` to come, its loss falling to 3 nats per token."""
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
