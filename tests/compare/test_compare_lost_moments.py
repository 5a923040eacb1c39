"""Optimizer state that is lost in the middle of a run: once, at its step, with the count kept, in forks and folds alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainenv.config.schema import Plant, StressorConfig
from trainenv.data.stressors import Stressors
from trainenv.rollouts.folded import Folded
from trainenv.run import TrainingRun
from trainenv.training.optimizers import lose_moments

SMALL: dict[str, Any] = {
    "steps": 30,
    "batch_size": 4,
    "model": {"width": 16, "layers": 1, "heads": 2, "context": 16},
    "schedule.warmup": 2,
    "validation": {"every": 0, "sequences": 4},
    "monitor.probe_every": 0,
}


def made(*at: int, **more: Any) -> TrainingRun:
    planted = [{"at": step, "kind": "lost_moments"} for step in at]
    return TrainingRun.from_config("tiny", {**SMALL, "stressors": {"planted": planted}, **more})


def weights(run: TrainingRun) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.model.parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def test_it_is_a_loss_by_hand_at_that_step() -> None:
    planted, by_hand = made(10), made()
    window = planted.advance(10) + planted.advance(8)
    by_hand.advance(10)
    lose_moments(by_hand.optimizer)
    by_hand.advance(8)
    assert planted.fingerprint() == by_hand.fingerprint()
    assert [t.step for t in window if t.stressors] == [11]
    assert window[10].stressors == ("lost_moments",)
    untouched = made()
    untouched.advance(18)
    assert not equal(weights(untouched), weights(planted))


def test_the_step_count_and_the_learning_rate_stay() -> None:
    run = made()
    run.advance(5)
    before = [state["step"].clone() for state in run.optimizer.state.values()]
    lose_moments(run.optimizer)
    for state, step in zip(run.optimizer.state.values(), before, strict=True):
        assert torch.equal(state["step"], step)
        assert not state["exp_avg"].any()
        assert not state["exp_avg_sq"].any()
    (telemetry,) = run.advance(1)
    assert telemetry.steps_since_reset == -1


def test_it_happens_to_a_fork_and_after_a_restore() -> None:
    run = made(10, 12)
    run.advance(8)
    snapshot, fork = run.snapshot(), run.fork()
    run.advance(10)
    fork.advance(10)
    assert fork.fingerprint() == run.fingerprint()
    run.restore(snapshot)
    window = run.advance(10)
    assert fork.fingerprint() == run.fingerprint()
    assert [t.step for t in window if "lost_moments" in t.stressors] == [11, 13]


def test_it_happens_to_runs_that_are_folded() -> None:
    folded = Folded([made(6), made(6, seed=1)])
    measured = folded.advance(12)
    assert [[t.step for t in window if t.stressors] for window in measured] == [[7], [7]]
    alone = made(6)
    alone.advance(12)
    assert [t.loss for t in measured[0]] == pytest.approx(
        [t.loss for t in made(6).advance(12)], rel=1e-4
    )


@pytest.mark.parametrize(("plant", "lost"), [((4, 1), {4}), ((0, 2), {0, 1})])
def test_when(plant: tuple[int, int], lost: set[int]) -> None:
    config = StressorConfig(planted=(Plant(at=plant[0], kind="lost_moments", steps=plant[1]),))
    stressors = Stressors(config, torch.arange(2).numpy(), torch.arange(2).numpy(), 256, 0, 100)
    assert {step for step in range(20) if stressors.moments_lost(step)} == lost
    assert all(stressors.lr_factor(step) == 1 for step in range(20))
