"""Forks in place: the bits of copies, in the tensors of their run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.integrations.trainings import OFTEN, trying
from tests.support.own_runs import adamw, config, net, run_of
from trainenv import train
from trainenv.records.run_folder import read_events
from trainenv.rollouts import NOTHING, Rollouts, in_place
from trainenv.rollouts.in_place import InPlaceFork, check_branchable, fork_of, reason_in_place
from trainenv.types import Intervention, UserError

LOWER = (Intervention(lr_scale=0.5),)


def locked() -> nn.Module:
    """Return a model that cannot be copied."""
    model = net()
    model.lock = threading.Lock()
    return model


class Counting(nn.Module):
    """A loss with a buffer that counts its calls in training and is part of the result."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, model: nn.Module, seen: Tensor) -> Tensor:
        if model.training:
            self.calls += 1
        logits = model(seen[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), seen[:, 1:].flatten())
        return loss * (1 + 0.01 * self.calls)


PARTS: dict[str, Any] = {
    "a locked model": lambda: {"model": (model := locked()), "optimizer": adamw(model)},
    "a loss with a state": lambda: {
        "model": (model := locked()),
        "optimizer": adamw(model),
        "objective": Counting(),
    },
}


@pytest.mark.parametrize("name", PARTS)
def test_forks_in_turn_have_the_bits_of_the_run(name: str) -> None:
    run = run_of(**PARTS[name]())
    run.advance(3)
    before = run.fingerprint()
    forks = [fork_of(run) for _ in range(2)]
    assert all(isinstance(fork, InPlaceFork) for fork in forks)
    forks[1].apply(Intervention(lr_scale=0.5))
    prints = []
    for steps in (2, 1):
        for fork in forks:
            fork.advance(steps)
            assert run.fingerprint() == before
        prints.append([fork.fingerprint() for fork in forks])
    assert prints[1][0] != prints[1][1]
    further = forks[0].fork()
    further.advance(2)
    assert forks[0].fingerprint() == prints[1][0]
    run.advance(3)
    assert run.fingerprint() == prints[1][0]
    run.advance(2)
    assert run.fingerprint() == further.fingerprint()


def test_a_fork_measures_its_own_weights() -> None:
    run = run_of(**PARTS["a locked model"]())
    run.advance(3)
    fork = fork_of(run)
    fork.advance(5)
    losses = run.evaluate(), fork.evaluate()
    assert losses[0] != losses[1]
    snapshot = fork.snapshot()
    assert run.evaluate() == losses[0]
    run.restore(snapshot)
    assert run.evaluate() == losses[1]


def test_a_failed_call_leaves_the_run_as_it_was() -> None:
    run = run_of(**PARTS["a locked model"]())
    run.advance(2)
    before = run.fingerprint()
    fork = fork_of(run)

    def fails(index: int) -> Any:
        raise OSError("the disk is gone")

    fork._batches = fails
    with pytest.raises(OSError, match="the disk is gone"):
        fork.advance(1)
    assert run.fingerprint() == before


def test_rollouts_have_the_outcomes_of_copies() -> None:
    def outcomes(model: nn.Module) -> list[tuple[float, ...]]:
        run = run_of(model)
        run.advance(3)
        before = run.fingerprint()
        rollouts = Rollouts(run, decision_steps=4)
        found = rollouts.run([NOTHING, LOWER], 4, measure="horizon")
        assert run.fingerprint() == before
        rollouts.adopt(LOWER, 4)
        return [*(one.validation for one in found), (run.evaluate(),)]

    assert outcomes(locked()) == outcomes(net())


def test_a_full_device_has_forks_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of()
    monkeypatch.setattr(in_place, "has_no_room", lambda run, forks: forks > 1)
    assert not isinstance(fork_of(run), InPlaceFork)
    assert isinstance(fork_of(run, forks=2), InPlaceFork)
    assert run.state_bytes >= sum(p.nbytes for p in run.model.parameters())


def test_the_loop_steers_what_cannot_be_copied(tmp_path: Path) -> None:
    run = run_of(locked(), config=config(branching=OFTEN))
    assert "take turns in the run's own tensors, as model.lock is a lock" in reason_in_place(run)
    train(run, tmp_path / "run", callback=trying(accepts=True, factors=(0.5,)))
    decisions = [e for e in read_events(tmp_path / "run") if e["kind"] == "decision"]
    assert any(event["detail"]["accepted"] for event in decisions)
    assert run.lr_scale < 1


class Generating:
    """A loss that holds a generator."""

    def __init__(self) -> None:
        self.numbers = (number for number in range(9))

    def __call__(self, model: nn.Module, seen: Tensor) -> Tensor:
        logits = model(seen[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), seen[:, 1:].flatten())


def test_state_that_can_neither_be_copied_nor_saved_is_named() -> None:
    run = run_of(objective=Generating())
    for ask in (check_branchable, fork_of):
        with pytest.raises(UserError, match=r"objective.numbers is a generator that cannot be"):
            ask(run)
