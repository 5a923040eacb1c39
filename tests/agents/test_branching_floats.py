"""The loop around a model whose data are numbers: compute is counted in rows, and a loss of any scale is no divergence."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.steered_runs import QUICK, Promising, steered
from trainenv.agents.branching import Branching
from trainenv.config.schema import TrainingConfig
from trainenv.rollouts.executor import Rollouts
from trainenv.run import TrainingRun
from trainenv.types import Intervention


def pairs(index: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(8, 3, generator=torch.Generator().manual_seed(index))
    return x, x.sum(1, keepdim=True)


def regression(scale: float, shift: float = 0.0) -> TrainingRun:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    values = {
        "steps": 120,
        "threads": 1,
        "monitor": {"block": 4, "probe_every": 1},
        "schedule": {"warmup": 0},
        "clip": {"policy": "none"},
        "validation": {"every": 20},
        "checkpoints": {"every": 8, "moments": "exact"},
        "branching": QUICK | {"max_waste": 0.2},
    }
    return TrainingRun(
        model,
        torch.optim.AdamW(model.parameters(), 3e-3),
        pairs,
        TrainingConfig.model_validate(values),
        objective=lambda m, b: scale * F.mse_loss(m(b[0]), b[1]) + shift,
        validation=[pairs(10**6)],
        probe=pairs(10**6 + 1),
    )


@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, 0.0), (1e5, 0.0), (1e-9, 0.0), (1.0, -5.0), (0.0, 0.0)]
)
def test_the_loop_runs_to_its_end(scale: float, shift: float) -> None:
    run = regression(scale, shift)
    each = run.flops_ahead
    assert each == 6 * 8 * sum(p.numel() for p in run.model.parameters())
    cost_estimate = Branching(planner=Promising()).cost_estimate(run)
    found = steered(run)
    assert found.summary["ended"] == "budget spent"
    assert found.run.flops_per_step == found.run.flops_ahead == each
    assert 0 < found.run.flops_per_evaluation < math.inf
    assert (
        120 - cost_estimate.steps - found.summary["flops"]["evaluate"] / each - 1
        <= found.run.step
        <= 120
    )
    assert found.summary["rewinds"] == 0
    assert all(math.isfinite(flops) and flops >= 0 for flops in found.summary["flops"].values())
    assert found.decisions


def test_a_large_loss_is_no_divergence() -> None:
    run = regression(1e5)
    run.advance(4)
    outcomes = Rollouts(run, decision_steps=4).run(
        [(Intervention(),), (Intervention(lr_scale=0.8),)], 8, measure="horizon"
    )
    assert all(outcome.validation[-1] > 100 and not outcome.diverged for outcome in outcomes)
    assert run.vocabulary is None


def test_a_vocabulary_of_one_token_has_a_scale_too() -> None:
    model = nn.Embedding(1, 1)
    config = TrainingConfig.model_validate({"steps": 3})
    run = TrainingRun(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        lambda index: torch.zeros(2, 3).long(),
        config,
    )
    assert run.vocabulary == 1
    assert run.uniform_loss == math.log(2)
