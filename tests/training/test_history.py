"""The history of a run: what its telemetry, its schedule and whoever steers it say of the steps to come."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import trainenv
from trainenv.training.history import history_of
from trainenv.types import Batch, Intervention

VOCABULARY, STEPS, WARMUP = 11, 40, 6


def batches(index: int) -> Batch:
    tokens = torch.randint(VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(index))
    return Batch((tokens,), index)


def run(kind: str = "cosine", **more: Any) -> trainenv.TrainingRun:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Embedding(VOCABULARY, 4), torch.nn.Linear(4, VOCABULARY)
        )
    schedule = {"kind": kind, "warmup": WARMUP, "final": 0.1}
    config = trainenv.TrainingConfig(
        steps=STEPS, schedule=schedule, reset_warmup=5, threads=1, monitor={"block": 4}
    )
    return trainenv.TrainingRun(
        model, torch.optim.AdamW(model.parameters(), lr=2e-3), batches, config, **more
    )


def trained(one: trainenv.TrainingRun) -> list[float]:
    """The learning rates that the rest of the budget is really trained with."""
    return [t.lr for t in one.advance(STEPS - one.step)]


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("behind", [0, 3, 20, 39])
def test_the_rates_ahead_are_those_trained_with(kind: str, behind: int) -> None:
    one = run(kind)
    one.advance(behind)
    ahead = one.lrs_ahead()
    assert len(ahead) == STEPS - behind
    assert ahead == pytest.approx(trained(one), rel=1e-12)
    if kind != "constant" and behind == 0:
        assert max(ahead) == pytest.approx(2e-3)
        assert ahead[0] == pytest.approx(2e-3 / WARMUP)
        assert ahead[-1] < 1e-3


def test_what_is_in_force_is_in_them() -> None:
    """A factor on the learning rate, and the warm-up after a momentum reset."""
    one = run()
    one.advance(12)
    before = one.lrs_ahead()
    one.apply(Intervention(lr_scale=0.5))
    assert one.lrs_ahead() == pytest.approx([0.5 * lr for lr in before])
    one.apply(Intervention(momentum_reset=True))
    warming = one.lrs_ahead()
    assert warming[0] < 0.1 * before[0]
    assert warming[5:] == pytest.approx([0.5 * lr for lr in before[5:]])
    one.advance(2)
    assert one.lrs_ahead() == pytest.approx(warming[2:])
    assert one.lrs_ahead() == pytest.approx(trained(one))


def test_a_spike_that_was_planted_is_not_told_beforehand() -> None:
    plain, spiked = run(), run(stress=lambda step: 8.0 if 20 <= step < 24 else 1.0)
    for one in (plain, spiked):
        one.advance(18)
    assert spiked.lrs_ahead() == plain.lrs_ahead()
    ratio = [a / b for a, b in zip(trained(spiked), trained(plain))]
    assert ratio == pytest.approx([1, 1, 8, 8, 8, 8, *[1] * 16])


def test_compute_spent_elsewhere_brings_the_end_nearer() -> None:
    one = run()
    one.advance(16)
    one.spend(10)
    ahead = one.lrs_ahead()
    assert len(ahead) == STEPS - 16 - 10
    assert ahead == pytest.approx([t.lr for t in one.advance(len(ahead))])
    assert one.done
    assert len(one.lrs_ahead()) == 1  # past the end the schedule's last value
    assert one.lrs_ahead()[0] == pytest.approx(one.advance(1)[0].lr)


def test_a_history_says_what_its_run_says() -> None:
    one = run()
    telemetry = one.advance(20)
    one.flag([17, 25, 30])
    found = history_of(one, telemetry, horizon=16, validation=2.5)
    assert found.telemetry == telemetry
    assert found.lrs_ahead == one.lrs_ahead()
    assert found.base_lr == one.base_lr == pytest.approx(2e-3)
    assert found.uniform_loss == pytest.approx(math.log(VOCABULARY))
    assert found.validation == 2.5
    assert found.flagged_ahead == 2  # what is behind is behind
    assert math.isnan(history_of(one, telemetry, horizon=16).validation)


@pytest.mark.parametrize(
    ("horizon", "decision"), [(16, 4), (17, 4), (19, 5), (1, 1), (0, 1), (2000, 500)]
)
def test_a_horizon_is_four_decisions(horizon: int, decision: int) -> None:
    assert history_of(run(), [], horizon=horizon).decision_steps == decision


def test_asking_changes_nothing() -> None:
    one = run()
    telemetry = one.advance(8)
    before = one.fingerprint()
    history_of(one, telemetry, horizon=8)
    assert one.fingerprint() == before
    assert one.step == 8
