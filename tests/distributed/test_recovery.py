"""Runs of several processes that are interrupted, killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_one_model import SMALL
from tests.distributed.worlds import Ended, kill_self, world, worlds
from trainenv import TrainingRun
from trainenv.checkpoints import file
from trainenv.distributed.controlled_run import together
from trainenv.loop import resume, train
from trainenv.run import TrainingRun as Run

SETTINGS: dict[str, Any] = {
    **SMALL,
    "steps": 24,
    "checkpoints.every": 8,
    "checkpoints.keep_last": 1,
    "validation.every": 12,
    "monitor.block": 4,
}


def whole(kind: str, folder: Path) -> dict[str, Any]:
    """Train a run to its end; return the summary."""
    run = TrainingRun.from_config("tiny", {**SETTINGS, "distributed": kind})
    return train(run, folder)


def resumed(kind: str, folder: Path) -> dict[str, Any]:
    """Resume a run and train it to its end; return the summary."""
    run = TrainingRun.from_config("tiny", {**SETTINGS, "distributed": kind})

    def work(one: Any) -> dict[str, Any]:
        record, _ = resume(folder, one)
        return train(one, record)

    return together(run, work)


def dies_in_a_step(kind: str, folder: Path) -> dict[str, Any]:
    """Train a run, and be killed in its 14th step."""
    usual = Run._train_step

    def step(run: Run) -> None:
        if run.step == 13:
            kill_self()
        usual(run)

    Run._train_step = step  # type: ignore[method-assign]
    return whole(kind, folder)


def dies_in_a_save(kind: str, folder: Path) -> dict[str, Any]:
    """Train a run, and be killed while the checkpoint of step 16 is written."""
    usual = file._arrays

    def arrays(tensors: Any, rounded: Any) -> Any:
        for number, array in enumerate(usual(tensors, rounded)):
            if number == 2 and Path(folder / "checkpoints" / "cp_8.ptz").exists():
                kill_self()
            yield array

    file._arrays = arrays
    return whole(kind, folder)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("deadly", [dies_in_a_step, dies_in_a_save])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_run_ends_as_if_nothing_had_happened(
    kind: str, deadly: Any, rank: int, tmp_path: Path
) -> None:
    """The others end with a sentence, and the resumed run has the bits of an undisturbed one."""
    functions = [whole, whole]
    functions[rank] = deadly
    found = worlds(2, functions, kind, tmp_path / "killed")
    assert found[rank].code == -9
    survivor = found[1 - rank]
    assert isinstance(survivor, Ended)
    assert survivor.error.startswith("LostProcess: expected all 2 processes of the run"), survivor
    assert (tmp_path / "killed" / "checkpoints" / "cp_8.ptz").exists()
    ended = world(2, resumed, kind, tmp_path / "killed")
    assert ended[0] == ended[1]
    undisturbed = world(2, whole, kind, tmp_path / "whole")
    for name in ("fingerprint", "final_validation_loss", "flops"):
        assert ended[0][name] == undisturbed[0][name], name
