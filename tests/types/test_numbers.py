"""Numbers of NumPy and torch are numbers wherever a user may give one; what is none is refused at the door."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import trainenv  # noqa: F401  # registers its environments
from tests.support.bigram import tokens
from tests.support.own_runs import assert_value, net, run_of
from trainenv.config.schema import RunConfig
from trainenv.run import TrainingRun
from trainenv.types import Batch, Budget, Intervention, UserError

DOES: dict[str, Callable[[TrainingRun], Any]] = {
    "a scale of NumPy": lambda run: run.apply(
        Intervention(lr_scale=np.float32(0.8), weight_decay_scale=np.float64(2))
    ),  # type: ignore[arg-type]
    "a scale of torch": lambda run: run.apply(Intervention(lr_scale=torch.tensor(0.8))),  # type: ignore[arg-type]
    "a scale in an array": lambda run: run.apply(Intervention(lr_scale=np.array([0.8]))),  # type: ignore[arg-type]
    "a truth of NumPy": lambda run: run.apply(
        Intervention(momentum_reset=np.bool_(True), data_reorder=np.array(True))
    ),  # type: ignore[arg-type]
    "a policy of NumPy": lambda run: run.apply(Intervention(clip=np.str_("arc"))),  # type: ignore[arg-type]
    "flags in an array": lambda run: run.flag(np.array([7, 9])),
    "flags in a tensor": lambda run: run.flag(torch.tensor([7, 9])),  # type: ignore[arg-type]
    "one flag": lambda run: run.flag(np.int64(7)),  # type: ignore[arg-type]
    "steps to spend": lambda run: run.spend(np.int64(3)),
    "whole steps to spend": lambda run: run.spend(3.0),  # type: ignore[arg-type]
    "an end": lambda run: run.end_at(np.int32(50)),
    "steps": lambda run: run.advance(np.int64(2)),
    "a charge": lambda run: run.ledger.charge("plan", np.float32(3)),
    "a scale in force": lambda run: setattr(run, "lr_scale", np.float32(0.5)),
}


@pytest.mark.parametrize("name", DOES)
def test_what_is_done_to_a_run(name: str) -> None:
    run = run_of()
    run.advance(3)
    DOES[name](run)
    run.advance(2)
    snapshot, before = run.snapshot(), run.fingerprint()
    json.dumps(snapshot.state)
    assert run.fork().fingerprint() == before
    run.restore(snapshot)
    assert run.fingerprint() == before


def indexed(index: int) -> Batch:
    return Batch((tokens(index),), np.int64(index))


class Epochs:
    epoch_steps, context = np.int64(20), np.int64(9)

    def __call__(self, index: int) -> Any:
        return tokens(index)


def optimizer_of_numpy(model: Any) -> Any:
    return torch.optim.AdamW(
        model.parameters(), np.float32(1e-2), eps=np.float32(1e-8), weight_decay=np.float32(0.1)
    )


PARTS: dict[str, dict[str, Any]] = {
    "a schedule": {"schedule": lambda step, progress: np.float32(0.5)},
    "a schedule of tensors": {"schedule": lambda step, progress: torch.tensor([0.5])},
    "data indices": {"batches": indexed},
    "epochs": {"batches": Epochs()},
    "stress": {
        "stress": lambda step: np.float32(1.5),
        "moments_lost": lambda step: np.bool_(step == 4),
    },
    "rates": {"optimizer": optimizer_of_numpy},
    "a configuration": {
        "config": {"steps": np.int64(60), "threads": np.int8(1), "reset_warmup": np.array(4)}
    },
}


@pytest.mark.parametrize("name", PARTS)
def test_what_a_run_is_made_of(name: str) -> None:
    def make() -> TrainingRun:
        model, parts = net(), dict(PARTS[name])
        return run_of(
            model, parts.pop("optimizer")(model) if "optimizer" in parts else None, **parts
        )

    run = assert_value(make)
    telemetry = run.advance(1)[0]
    assert (type(telemetry.lr), type(telemetry.data_index)) == (float, int)
    run.flag([telemetry.data_index])
    json.dumps(run.snapshot().state)


def test_overrides_and_budgets() -> None:
    betas = np.array([0.5, 0.75])
    config = RunConfig.load(
        "tiny", {"steps": np.int64(9), "optimizer.lr": np.float32(0.5), "optimizer.betas": betas}
    )
    assert (config.steps, config.optimizer.lr, config.optimizer.betas) == (9, 0.5, (0.5, 0.75))
    budget = Budget(futures=np.int64(4), flops=torch.tensor(8.0))  # type: ignore[arg-type]
    assert (type(budget.futures), type(budget.flops)) == (int, float)
    assert repr(Intervention(lr_scale=np.float32(0.5))) == repr(Intervention(lr_scale=0.5))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda run: run.spend(-30), "steps must be 0 or more, found -30"),
        (lambda run: run.spend(math.nan), "steps must be a whole number, found nan"),
        (lambda run: run.spend(2.5), "whole number, found 2.5"),
        (lambda run: run.spend("3"), "whole number, found '3'"),
        (lambda run: run.end_at(math.inf), "whole number, found inf"),
        (lambda run: run.advance(2.5), "whole number, found 2.5"),
        (lambda run: run.flag("79"), "data index must be a whole number, found '79'"),
        (lambda run: run.flag([-1]), "data index must be 0 or more, found -1"),
        (lambda run: run.flag([1.5]), "found 1.5"),
        (lambda run: run.apply({"lr_scale": 0.9}), "expected an Intervention, found dict"),
        (lambda run: run.ledger.charge("plan", math.inf), "a charge must be 0 FLOPs or more"),
        (lambda run: Intervention(lr_scale="0.9"), "finite number above 0, found '0.9'"),  # type: ignore[arg-type]
        (lambda run: Intervention(lr_scale=np.array([0.9, 0.8])), "finite number above 0"),  # type: ignore[arg-type]
        (
            lambda run: Intervention(momentum_reset="no"),
            "momentum_reset must be True or False, found 'no'",
        ),  # type: ignore[arg-type]
        (lambda run: Intervention(skip_batch=1), "skip_batch must be True or False, found 1"),  # type: ignore[arg-type]
        (lambda run: Intervention(clip=np.array(["arc", "none"])), "clip must be None"),  # type: ignore[arg-type]
        (lambda run: Batch((tokens(0),), math.nan), "Batch's index must be a whole number"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_number_is_refused_and_the_run_as_it_was(
    do: Callable[[Any], Any], message: str
) -> None:
    run = run_of()
    run.advance(2)
    before = run.fingerprint()
    with pytest.raises(UserError, match=message):
        do(run)
    assert run.fingerprint() == before


def test_a_schedule_that_fails_later_says_so() -> None:
    run = run_of(schedule=lambda step, progress: 1.0 if step < 3 else math.nan)
    run.advance(3)
    with pytest.raises(
        UserError, match=r"what schedule.step, progress. returns must be a finite number, found nan"
    ):
        run.advance(1)


def test_a_rewind_may_bring_the_end_nearer_by_nothing() -> None:
    run = run_of()
    start = run.snapshot()
    run.advance(4)
    run.spend(10)
    run.rewind(start)
    assert (run.horizon.end, run.step) == (60 - 10 - 4, 0)
    run.end_at(70)
    assert run.horizon.end == 70


def test_a_synthetic_run_takes_the_same_numbers() -> None:
    env: Any = gym.make("trainenv/Synthetic-v0").unwrapped
    env.reset(seed=0)
    env.flag(np.array([3, 5]))
    env.spend(np.int64(1))
    json.dumps(env.snapshot().state)
    for do in (lambda: env.spend(-1), lambda: env.flag("35")):
        with pytest.raises(UserError, match="must be"):
            do()
