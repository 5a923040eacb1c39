"""An attached Trainer that is killed at any moment and resumed ends as if it had not been."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

import trainenv
from tests.integrations.hf_trainings import log_of, trainer
from tests.integrations.trainings import OFTEN, trying

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def trained(folder: Path) -> str:
    """Train from the newest checkpoint, or from the start; return a digest of the end."""
    made = trainer(
        folder / "theirs",
        save_strategy="steps",
        save_steps=4,
        eval_strategy="steps",
        eval_steps=5,
        gradient_accumulation_steps=1,
    )
    complete = any((folder / "theirs").glob("checkpoint-*/trainenv.ptz"))
    out = folder / "run"
    if not complete and out.exists():  # killed before its first checkpoint: it starts again
        out.rename(folder / f"run-{len(list(folder.iterdir()))}")
    config = {"branching": {**OFTEN, "every": 12}}
    trainenv.attach(made, out=out, callback=trying(accepts=True, factors=(0.9,)), config=config)
    made.train(resume_from_checkpoint=complete)
    digest = hashlib.sha256(json.dumps(log_of(made), sort_keys=True).encode())
    for name, tensor in made.model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def kill_after(seconds: float, folder: Path) -> bool:
    """Train in a child process and kill it; tell if it was still at work."""
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
        try:
            trained(folder)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_killed_training_ends_the_same(tmp_path: Path) -> None:
    began = time.perf_counter()
    whole = trained(tmp_path / "whole")
    lasts = time.perf_counter() - began
    moments = random.Random(3)
    for number in range(2):
        folder = tmp_path / str(number)
        kill_after(moments.uniform(0.1, 1.0) * lasts, folder)
        kill_after(moments.uniform(0.1, 0.5) * lasts, folder)
        assert trained(folder) == whole
