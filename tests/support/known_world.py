"""A world model whose every answer is known, and histories made up for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainenv.types import Estimate, Forecast, Inference, Intervention, RunHistory, Telemetry

ZERO = Estimate(0.0, 0.0, 0.0, 0.0)
UNIFORM = math.log(257)


@dataclass
class Known:
    """Rewards are a function of the action vector; a latent is the number of decisions taken, and what the rewards add up to.

    Attributes:
        reward: action vector → nats.
        hazard, instability: what every forecast says; the hazard by decision.
        value: of every state.
        asked: action vectors of all inferences, and entries of all forecasts.
    """

    reward: Callable[[np.ndarray], float] = lambda action: 0.01
    hazard: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    instability: float = 0.0
    value: float = 0.0
    actions: list[tuple[int, ...]] = field(default_factory=list)
    entries: list[tuple[Intervention, ...]] = field(default_factory=list)
    calls: int = 0

    def forecast(self, history: RunHistory, interventions: Sequence[Any], /) -> list[Forecast]:
        self.calls += 1
        self.entries += interventions
        said = Forecast(
            horizon=ZERO, annealed=ZERO, final=ZERO, hazard=self.hazard, divergence=0.0, instability=self.instability,
            recovery=ZERO, disagreement=0.0, abstain=False,
        )  # fmt: skip
        return [said] * len(interventions)

    def initial_inference(self, histories: Sequence[RunHistory], /) -> Inference:
        return self._inference(
            np.zeros((len(histories), 2), dtype=np.float32), np.zeros(len(histories))
        )

    def recurrent_inference(self, latent: np.ndarray, actions: np.ndarray, /) -> Inference:
        self.actions += [tuple(action) for action in actions.tolist()]
        rewards = np.array([self.reward(action) for action in actions])
        return self._inference(
            latent + np.stack([np.ones(len(actions)), rewards], axis=1).astype(np.float32), rewards
        )

    def _inference(self, latent: np.ndarray, rewards: np.ndarray) -> Inference:
        values = np.full(len(latent), self.value, dtype=np.float32)
        return Inference(
            latent,
            rewards.astype(np.float32),
            values,
            np.zeros((len(latent), 18), dtype=np.float32),
        )


def telemetry(step: int, **values: Any) -> Telemetry:
    """One step of a smooth run of 100 steps without a warm-up."""
    known = {
        "step": step, "data_index": step, "tokens": 32, "loss": 3.0, "grad_norm": 1.0, "grad_norm_clipped": 1.0,
        "clip_threshold": 1.0, "clip_score": 1.0, "clip": "zclip", "lr": 1e-3, "lr_scale": 1.0, "weight_decay": 0.1,
        "weight_decay_scale": 1.0, "steps_since_reset": -1, "progress": (step - 1) / 100,
    }  # fmt: skip
    return Telemetry(**known | values)


def history(
    steps: int = 40,
    *,
    left: int = 60,
    decision: int = 10,
    validation: float = 2.0,
    flagged: int = 0,
    **last: Any,
) -> RunHistory:
    """Of such a run; `last` are values of its last step."""
    rows = [telemetry(step) for step in range(1, steps)]
    return RunHistory(
        telemetry=(*rows, telemetry(steps, **last)),
        lrs_ahead=[1e-3 * last.get("lr_scale", 1.0)] * left,
        base_lr=1e-3,
        uniform_loss=UNIFORM,
        decision_steps=decision,
        validation=validation,
        flagged_ahead=flagged,
    )
