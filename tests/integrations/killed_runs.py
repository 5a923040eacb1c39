"""Attached Trainers that are killed by SIGKILL and resumed by their own means."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import trainenv
from tests.integrations.hf_trainings import Examples, log_of, trainer
from tests.integrations.trainings import OFTEN, trying

KINDS = ("branches", "rollbacks")
_SETTINGS: dict[str, Any] = {
    "save_strategy": "steps",
    "save_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "gradient_accumulation_steps": 1,
}


def made(folder: Path, kind: str) -> Any:
    """Return a Trainer: one whose branches are accepted, or one whose data have a bad shard."""
    if kind == "branches":
        return trainer(folder / "theirs", **_SETTINGS)
    return trainer(
        folder / "theirs",
        data=Examples(440, bad=range(300, 312)),
        train_sampling_strategy="sequential",
        **{**_SETTINGS, "num_train_epochs": 1, "save_steps": 8, "eval_strategy": "no"},
    )


def complete(folder: Path) -> list[Path]:
    """Return the checkpoints that hold our state, the newest last."""
    found = (folder / "theirs").glob("checkpoint-*/trainenv.ptz")
    return sorted((path.parent for path in found), key=lambda path: int(path.name.split("-")[1]))


def trained(folder: Path, kind: str = "branches") -> str:
    """Train from the newest checkpoint, or from the start; return a digest of the end."""
    one = made(folder, kind)
    begun = bool(complete(folder))
    out = folder / "run"
    if not begun and out.exists():  # killed before its first checkpoint: it starts again
        out.rename(folder / f"run-{len(list(folder.iterdir()))}")
    if kind == "branches":
        config = {"branching": {**OFTEN, "every": 12}}
        trainenv.attach(one, out=out, callback=trying(accepts=True, factors=(0.9,)), config=config)
    else:
        trainenv.attach(one, out=out, mode="rules")
    one.train(resume_from_checkpoint=begun)
    digest = hashlib.sha256(json.dumps(log_of(one), sort_keys=True).encode())
    for name, tensor in one.model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def kill_after(seconds: float, folder: Path, kind: str = "branches") -> bool:
    """Train in a child process and kill it; tell if it was still at work."""
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
        try:
            trained(folder, kind)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def plain_end(folder: Path, kind: str) -> int:
    """Resume the newest checkpoint in a Trainer without us; return the step of its end."""
    one = made(folder, kind)
    one.train(resume_from_checkpoint=str(complete(folder)[-1]))
    return int(one.state.global_step)


def measure(kills: int, seed: int) -> dict[str, Any]:
    """Kill trainings at random moments, spread over their length; return what came of them."""
    moments = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        for kind in KINDS:
            trained(top / f"first {kind}", kind)  # what is imported late
            began = time.perf_counter()
            whole = trained(top / kind, kind)
            lasts = time.perf_counter() - began
            steps = plain_end(top / kind, kind)
            share = kills // len(KINDS)
            for number in range(share):
                folder = top / f"{kind} {number}"
                folder.mkdir()
                moment = (number + moments.random()) / share * lasts
                counts["killed"] += kill_after(moment, folder, kind)
                if complete(folder):
                    counts["resumed from a checkpoint"] += 1
                    plain = top / f"plain {kind} {number}"
                    shutil.copytree(folder, plain)
                    counts["loaded by a plain Trainer"] += plain_end(plain, kind) == steps
                counts["same end"] += trained(folder, kind) == whole
                counts["left behind"] += len(list((folder / "theirs").glob("left-behind-*")))
    return {"moments": share * len(KINDS), **counts}
