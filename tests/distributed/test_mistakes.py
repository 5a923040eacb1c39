"""Mistakes with several processes: one sentence in each, and no hang."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.distributed.test_one_model import SMALL
from tests.distributed.worlds import Ended, kill_self, world, worlds
from trainenv import TrainingRun, UserError
from trainenv.cli import main
from trainenv.distributed import group as groups
from trainenv.distributed import heartbeat as heartbeats
from trainenv.distributed.controlled_run import together
from trainenv.run import TrainingRun as Run


def build(**overrides: Any) -> str:
    """Build a run; return its class."""
    return type(
        TrainingRun.from_config("tiny", {**SMALL, "distributed": "ddp", **overrides})
    ).__name__


def other_rate() -> str:
    """Build a run with another learning rate."""
    return build(**{"optimizer.lr": 2e-2})


def test_a_world_that_does_not_divide_the_batch_is_refused() -> None:
    """The sentence has the numbers."""
    found = world(3, build)
    assert all(isinstance(one, Ended) for one in found)
    assert all("found 8 ÷ 1 = 8 and 3 processes" in one.error for one in found), found


def test_other_configurations_are_refused() -> None:
    """Every process names the key and both values."""
    found = worlds(2, [build, other_rate])
    words = "optimizer.lr 0.001 in process 0 and 0.02 in process 1"
    assert all(words in one.error for one in found), found


def dies_at_the_start() -> str:
    """Be killed before joining."""
    kill_self()
    return ""


def impatient(function: Callable[..., str]) -> str:
    """Wait for the other processes for seconds alone."""
    groups._START = timedelta(seconds=3)
    return function()


def builds_impatiently() -> str:
    """Build a run, and wait for the other processes for seconds alone."""
    return impatient(build)


def test_a_process_that_dies_at_the_start_ends_the_others() -> None:
    """The others give up with a sentence."""
    found = worlds(2, [builds_impatiently, dies_at_the_start])
    assert found[0].error.startswith("LostProcess: expected all 2 processes"), found
    assert found[0].seconds < 30


def test_without_a_launcher_the_sentence_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of several processes is not started by hand."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match="torchrun --nproc-per-node"):
        build()


def test_a_launcher_without_the_key_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes would train two runs into one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run", "tiny"]) == 2
    assert "give --set distributed=ddp" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optimizer.name", "muon", "take adamw"),
        ("precision", "fp16", "set precision: bf16"),
        ("objective.kind", "mtp", "set distributed: none"),
    ],
)
def test_what_parts_of_a_model_can_not_do_is_refused(key: str, value: str, words: str) -> None:
    """Before any process is joined."""
    with pytest.raises(UserError, match=words):
        TrainingRun.from_config("tiny", {**SMALL, "distributed": "fsdp2", key: value})


def trains() -> list[float]:
    """Train for some steps under the control of process 0."""
    run = TrainingRun.from_config("tiny", {**SMALL, "distributed": "ddp"})
    return together(run, lambda one: [step.loss for step in one.advance(8)])


def fails_alone() -> list[float]:
    """Train, and fail in the fifth step where no other process does."""
    heartbeats.PATIENCE = 4.0
    usual = Run._train_step

    def step(run: Run) -> None:
        if run.step == 4:
            raise ArithmeticError("out of luck")
        usual(run)

    Run._train_step = step  # type: ignore[method-assign]
    return trains()


def is_stopped() -> list[float]:
    """Train, and be stopped in the fifth step, as a debugger or a full machine stops a process."""
    usual = Run._train_step
    process = os.getpid()

    def step(run: Run) -> None:
        if run.step == 4:
            subprocess.Popen(["sh", "-c", f"sleep 12; kill -KILL {process}"])
            os.kill(process, signal.SIGSTOP)
        usual(run)

    Run._train_step = step  # type: ignore[method-assign]
    return trains()


def waits_briefly() -> list[float]:
    """Train, and wait for an answer of the others for seconds alone."""
    heartbeats.PATIENCE = 4.0
    return trains()


def test_a_failure_of_one_process_ends_all() -> None:
    """The process that waits in a reduction learns of it."""
    found = worlds(2, [waits_briefly, fails_alone], seconds=60)
    assert found[0].code == 2 or "out of luck" in found[0].error, found
    assert isinstance(found[1], Ended)


def test_a_process_that_is_stopped_ends_the_others() -> None:
    """A closed connection is not the only sign of a lost process."""
    found = worlds(2, [waits_briefly, is_stopped])
    assert (found[0].code, found[1].code) == (2, -9), found
    assert found[0].seconds < found[1].seconds
