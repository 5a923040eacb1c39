"""Runs of a few thousand steps a second to branch, and drafts that nobody thought about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.support import run_settings
from tests.support.bigram import Bigram, tokens
from trainenv.config.schema import TrainingConfig
from trainenv.rollouts.executor import NOTHING
from trainenv.run import TrainingRun
from trainenv.types import Candidate, Estimate, Forecast, Intervention, Plan

SMALL: dict[str, Any] = run_settings.SMALL | {
    "environment.decision_steps": 8,
    "interventions": {"lr_bounds": [1e-3, 1e12]},
}


def toy(
    steps: int = 60,
    lr: float = 1e-2,
    trouble: Callable[[Tensor], None] = lambda weight: None,
    **more: Any,
) -> TrainingRun:
    """A run eight steps in. One that is learned 30 times as fast has weights above 0.5 soon, by itself it has not."""
    model = Bigram(trouble)
    quick = {
        "monitor": {"block": 4, "probe_every": 0},
        "schedule": {"warmup": 0},
        "clip": {"policy": "none"},
    }
    wide = {"interventions": {"lr_bounds": (1e-3, 1e12)}, "environment": {"divergence_loss": 1.5}}
    config = TrainingConfig(**{"name": "toy", "steps": steps} | quick | wide | more)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    run = TrainingRun(model, optimizer, tokens, config, validation=[tokens(10**6)])
    run.advance(8)
    return run


def draft(*sequences: Sequence[Intervention], forecasts: Sequence[Forecast] = ()) -> Plan:
    """A plan that ranks these in order, doing nothing after them."""
    drafted = [
        Candidate(
            interventions=tuple(one),
            score=-0.1 + 0.01 * place,
            forecast=forecasts[place] if forecasts else None,
        )
        for place, one in enumerate(sequences)
    ]
    return Plan(
        planner="scripted", candidates=(*drafted, Candidate(interventions=NOTHING, score=0.0))
    )


def forecast(low: float = -5.0, high: float = 5.0, divergence: float = 0.01) -> Forecast:
    at = Estimate((low + high) / 2, (low + high) / 2, low, high)
    steps = Estimate(1.0, 1.0, 0.0, 2.0)
    return Forecast(
        horizon=at,
        annealed=at,
        final=at,
        hazard=(0.0,) * 4,
        divergence=divergence,
        instability=0.1,
        recovery=steps,
        disagreement=0.01,
        abstain=False,
    )


def lr(scale: float, **more: Any) -> tuple[Intervention, ...]:
    return (Intervention(lr_scale=scale, **more),)


def plain(value: Any) -> str:
    """To compare by: NaN is equal to NaN."""
    return repr(value)
