"""The branching loop steers a run that is no `TrainingRun`, through the protocol `Run` alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trainenv
from tests.support.steered_runs import HIGHER, LOWER, QUICK, Promising
from trainenv.agents import Branching
from trainenv.config.schema import TrainingConfig
from trainenv.loop import resume
from trainenv.records.decision_files import read_decisions
from trainenv.records.run_folder import RunFolder, read_events
from trainenv.records.telemetry_log import read_telemetry
from trainenv.training.ledger import Ledger
from trainenv.types import (
    TELEMETRY_FIELDS,
    TENSOR,
    Intervention,
    Purpose,
    Reading,
    Run,
    Snapshot,
    Telemetry,
)

CONFIG = TrainingConfig(
    name="fake",
    steps=96,
    schedule={"warmup": 0},  # type: ignore[arg-type]
    monitor={"block": 4, "probe_every": 0},  # type: ignore[arg-type]
    validation={"every": 16},  # type: ignore[arg-type]
    checkpoints={"every": 16, "moments": "exact"},  # type: ignore[arg-type]
    branching=QUICK | {"rule": "better", "triggers": ["checkpoint"], "default_clip": False},  # type: ignore[arg-type]
)
FLOPS = 10.0


@dataclass(frozen=True)
class Budget:
    """The end of the budget."""

    end: int

    def progress(self, step: int, /) -> float:
        return step / self.end


class FakeRun:
    """A run whose only weight is ln(loss); each step lowers it by the learning rate in force."""

    config = CONFIG
    device = torch.device("cpu")
    batches = property(lambda self: self._no_data)
    vocabulary = 8
    uniform_loss = math.log(8)
    flops_per_step = flops_ahead = flops_per_evaluation = FLOPS
    diverged = False
    retrains = False
    emphases = ()

    def __init__(self) -> None:
        self.model: nn.Module = nn.Linear(1, 1, bias=False)
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        with torch.no_grad():
            self.weight.fill_(math.log(8))
        self.ledger: Any = Ledger()
        self.purpose: Purpose = "main"
        self.step = 0
        self.horizon = Budget(CONFIG.steps)
        self.lr_scale = 1.0
        self.weight_decay_scale = 1.0
        self.clip = "none"
        self.applied: tuple[tuple[int, Intervention], ...] = ()
        self.flagged: tuple[int, ...] = ()
        self.flagged_ahead: tuple[int, ...] = ()

    @property
    def weight(self) -> torch.Tensor:
        return next(self.model.parameters())

    @property
    def loss(self) -> float:
        return math.exp(self.weight.item())

    @property
    def base_lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def done(self) -> bool:
        return self.step >= self.horizon.end

    def _no_data(self, step: int, /) -> Any:
        raise AssertionError("expected no batch to be asked for")

    def flops_of_probes(self, steps: int, /) -> float:
        return 0.0

    def lrs_ahead(self) -> list[float]:
        return [self.base_lr] * (self.horizon.end - self.step)

    def upcoming(self, steps: int, /) -> tuple[int, ...]:
        return tuple(range(self.step, self.step + steps))

    def advance(self, steps: int, /) -> list[Telemetry]:
        measured = []
        for _ in range(steps):
            values: dict[str, Any] = dict.fromkeys(TELEMETRY_FIELDS, 0.0) | {"loss": self.loss}
            with torch.no_grad():
                self.weight.sub_(self.base_lr * self.lr_scale)
            self.step += 1
            self.ledger.charge(self.purpose, FLOPS)
            values |= {"step": self.step, "data_index": self.step - 1, "tokens": 1}
            values |= {"lr": self.base_lr * self.lr_scale, "lr_scale": self.lr_scale}
            values |= {"clip": self.clip, "stressors": (), "reading": Reading()}
            measured.append(Telemetry(**values))
        return measured

    def evaluate(self) -> float:
        self.ledger.charge("evaluate", FLOPS)
        return self.loss

    evaluate_fully = evaluate
    has_test_set = True

    def test_loss(self) -> float:
        return self.loss

    def apply(self, intervention: Intervention, /) -> None:
        if intervention.does_nothing:
            return
        self.lr_scale *= intervention.lr_scale
        self.clip = intervention.clip or self.clip
        self.applied = (*self.applied, (self.step, intervention))

    def flag(self, data_indices: Iterable[int], /) -> None:
        self.flagged = tuple(sorted({*self.flagged, *data_indices}))

    def rewind(self, snapshot: Snapshot, /) -> None:
        self.ledger.move("main", "rewound", FLOPS * (self.step - snapshot.step))
        self.restore(snapshot)

    def spend(self, steps: int, /) -> None:
        self.horizon = Budget(self.horizon.end - steps)

    def end_at(self, step: int, /) -> None:
        self.horizon = Budget(step)

    def snapshot(self, beside: Mapping[str, Any] | None = None, /) -> Snapshot:
        state = {
            "weight": {TENSOR: "weight"},
            "end": self.horizon.end,
            "lr_scale": self.lr_scale,
            "clip": self.clip,
            "flagged": list(self.flagged),
            "applied": [[step, one.lr_scale, one.clip] for step, one in self.applied],
        }
        return Snapshot(
            step=self.step,
            tensors={"weight": self.weight.detach().clone()},
            state={"run": state, "ledger": self.ledger.as_dict()} | dict(beside or {}),
        )

    def restore(self, snapshot: Snapshot, /) -> None:
        state = snapshot.state["run"]
        with torch.no_grad():
            self.weight.copy_(snapshot.tensors["weight"])
        self.step = snapshot.step
        self.horizon = Budget(state["end"])
        self.lr_scale = state["lr_scale"]
        self.clip = state["clip"]
        self.flagged = tuple(state["flagged"])
        self.applied = tuple(
            (step, Intervention(lr_scale=lr, clip=clip)) for step, lr, clip in state["applied"]
        )

    def fork(self, purpose: Purpose = "verify", /) -> FakeRun:
        fork = FakeRun()
        fork.restore(self.snapshot())
        fork.ledger = self.ledger
        fork.purpose = purpose
        return fork

    def check_forkable(self) -> None:
        """It can always be forked."""

    def fingerprint(self) -> str:
        return f"{self.step} {self.weight.item()!r} {self.lr_scale!r}"


def steered(path: Path, change: Intervention) -> tuple[FakeRun, RunFolder, dict[str, Any]]:
    """Train a fake run with a planner that drafts one change."""
    run = FakeRun()
    folder = RunFolder.create(path, run.config)
    callback = Branching(planner=Promising(sequences=[(change,)]))
    return run, folder, trainenv.train(run, folder, callback=callback)


def test_a_change_that_lowers_the_loss_is_planned_verified_and_put_in_force(tmp_path: Path) -> None:
    run, folder, summary = steered(tmp_path / "run", HIGHER)
    assert not isinstance(run, trainenv.TrainingRun)
    assert summary["ended"] == "budget spent"
    first = read_decisions(folder.path)[0]
    control, branch = first["branches"]
    assert (first["why"], first["at"], first["planner"]["name"]) == ("checkpoint", 16, "promising")
    assert branch["delta"] < 0
    assert control["fate"] == "control"
    assert first["accepted"] == 1
    (event, *_) = [event for event in read_events(folder.path) if event["kind"] == "decision"]
    assert event["detail"]["interventions"] == [{"lr_scale": 1.1}]
    assert run.applied[0] == (16, HIGHER)
    scales = read_telemetry(folder.path, kept_only=True).set_index("step")["lr_scale"]
    assert scales[[16, 17]].tolist() == [1.0, 1.1]
    assert scales.index.tolist() == list(range(1, run.step + 1))
    assert summary["final_validation_loss"] == run.loss


def test_its_branches_are_paid_for(tmp_path: Path) -> None:
    run, folder, summary = steered(tmp_path / "run", HIGHER)
    wasted = sum(decision["cost"]["wasted_flops"] for decision in read_decisions(folder.path))
    assert wasted > 0
    assert run.step < CONFIG.steps
    assert 0 <= CONFIG.steps * FLOPS - wasted - run.step * FLOPS < FLOPS
    assert summary["flops"]["main"] == run.step * FLOPS


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    straight, _, _ = steered(tmp_path / "straight", HIGHER)
    run = FakeRun()
    folder = RunFolder.create(tmp_path / "run", run.config)
    callback = Branching(planner=Promising(sequences=[(HIGHER,)]))
    trainenv.train(run, folder, callback=callback, stop=lambda: run.step >= 40)
    second = FakeRun()
    callback = Branching(planner=Promising(sequences=[(HIGHER,)]))
    folder, _ = resume(tmp_path / "run", second, callback)
    trainenv.train(second, folder, callback=callback)
    assert second.fingerprint() == straight.fingerprint()
    assert second.ledger.as_dict() == straight.ledger.as_dict()


def test_a_change_that_raises_the_loss_is_refused(tmp_path: Path) -> None:
    run, folder, _ = steered(tmp_path / "run", LOWER)
    decisions = read_decisions(folder.path)
    assert decisions
    assert all(decision["accepted"] is None for decision in decisions)
    assert (run.applied, run.lr_scale) == ((), 1.0)
    assert math.log(run.loss) == pytest.approx(math.log(8) - 0.05 * run.step, abs=1e-3)


def protocol(run: FakeRun) -> Run:
    """Let the type checker compare it with the protocol."""
    return run
