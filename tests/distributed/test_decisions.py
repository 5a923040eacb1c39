"""Process 0 decides, and all processes act alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_one_model import SMALL
from tests.distributed.worlds import kill_self, world, worlds
from trainenv import TrainingRun
from trainenv.distributed.controlled_run import together
from trainenv.loop import Callback, CallbackResult, resume, train
from trainenv.rollouts import NOTHING, Rollouts
from trainenv.training.snapshots import fingerprint
from trainenv.types import Event, Intervention, Run, Snapshot, Telemetry

SETTINGS: dict[str, Any] = {
    **SMALL,
    "steps": 28,
    "checkpoints.every": 12,
    "validation.every": 0,
    "monitor.block": 4,
}
LOWER = (Intervention(lr_scale=0.8),)


class Scripted(Callback):
    """Commits a branch at step 8, and rewinds from step 20 to step 12 with a momentum reset."""

    def __init__(self) -> None:
        self.saved: Snapshot | None = None
        self.rewound = False
        self.outcomes: list[float] = []

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult | None:
        """See `Callback`."""
        if run.step == 8:
            rollouts = Rollouts(run, decision_steps=4)
            outcomes = rollouts.run([NOTHING, LOWER], 4, measure="horizon")
            if any(one.error for one in outcomes):  # a process was lost
                return None
            self.outcomes = [one.validation[-1] for one in outcomes]
            kept = rollouts.adopt(LOWER, 4)
            self.saved = run.snapshot()
            return CallbackResult(kept=kept)
        if run.step == 20 and not self.rewound:
            assert self.saved is not None
            self.rewound = True
            run.flag(run.upcoming(2))
            run.rewind(self.saved)
            run.apply(Intervention(momentum_reset=True, skip_batch=True))
            return CallbackResult(events=[Event(20, "rewind", {"to": 12})])
        return None


def steered(kind: str, folder: Path) -> dict[str, Any]:
    """Train a steered run; return the summary, and the hash of this process's own state."""
    run = TrainingRun.from_config("tiny", {**SETTINGS, "distributed": kind})
    callback = Scripted()
    summary = train(run, folder, callback=callback)
    own = ["rng", "ledger", "numerics", "statistics"]
    if kind == "fsdp2":
        own += ["model", "optimizer"]
    snapshot = run.snapshot()
    return {
        "loss": summary["final_validation_loss"],
        "flops": summary["flops"],
        "rewinds": summary["rewinds"],
        "outcomes": callback.outcomes,
        "applied": run.applied,
        "flagged": run.flagged,
        "state": fingerprint(snapshot, tuple(own)),
        "step": run.step,
    }


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_commit_and_a_rewind_happen_in_all_processes(kind: str, tmp_path: Path) -> None:
    """All processes have the same state afterwards, close to that of one process."""
    alone = steered("none", tmp_path / "alone")
    first, second = world(2, steered, kind, tmp_path / "together")
    assert first["outcomes"]
    assert not second["outcomes"]  # only process 0 decides
    for name in ("state", "applied", "flagged", "step", "loss"):
        assert first[name] == second[name], name
    for name in ("applied", "flagged", "step", "rewinds", "flops"):
        assert first[name] == alone[name], name
    assert first["loss"] == pytest.approx(alone["loss"], abs=1e-4)
    assert first["outcomes"] == pytest.approx(alone["outcomes"], abs=1e-4)
    assert first["outcomes"][0] != first["outcomes"][1]


def dies_in_a_decision(kind: str, folder: Path) -> dict[str, Any]:
    """Train a steered run, and be killed while the second branch of the decision is made."""
    usual = TrainingRun.fork
    forks: list[TrainingRun] = []

    def fork(run: TrainingRun, *given: Any) -> TrainingRun:
        if forks:
            kill_self()
        forks.append(usual(run, *given))
        return forks[-1]

    TrainingRun.fork = fork  # type: ignore[method-assign, assignment]
    return steered(kind, folder)


def resumed(kind: str, folder: Path) -> dict[str, Any]:
    """Resume a steered run; return its summary."""
    run = TrainingRun.from_config("tiny", {**SETTINGS, "distributed": kind})
    callback = Scripted()

    def work(one: Run) -> dict[str, Any]:
        record, _ = resume(folder, one, callback)
        return train(one, record, callback=callback)

    return together(run, work)


@pytest.mark.parametrize(("kind", "rank"), [("ddp", 0), ("fsdp2", 1)])
def test_a_process_killed_in_a_decision(kind: str, rank: int, tmp_path: Path) -> None:
    """The other one ends with a sentence, and the resumed run has the undisturbed end."""
    functions = [steered, steered]
    functions[rank] = dies_in_a_decision
    found = worlds(2, functions, kind, tmp_path / "killed")
    assert found[rank].code == -9
    assert found[1 - rank].error.startswith("LostProcess: "), found
    ended = world(2, resumed, kind, tmp_path / "killed")
    undisturbed = world(2, steered, kind, tmp_path / "whole")
    assert ended[0]["final_validation_loss"] == undisturbed[0]["loss"]
    assert ended[0]["rewinds"] == undisturbed[0]["rewinds"] == 1
