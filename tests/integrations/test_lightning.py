"""Trainings of Lightning, watched and steered."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanMetric

import trainenv
from tests.integrations.lightning_trainings import Module, fit, loader, state_of
from tests.integrations.trainings import (
    OFTEN,
    Sequences,
    all_equal,
    batches,
    kinds,
    leave_out,
    trying,
)
from trainenv.records.telemetry_log import read_telemetry
from trainenv.types import UserError

Steer = trainenv.integrations.lightning.Steer

VARIANTS: dict[str, dict[str, Any]] = {
    "dropout": {"log_every_n_steps": 1},
    "accumulation": {"accumulate_grad_batches": 3, "data": 235},
    "bf16": {"precision": "bf16-mixed"},
    "clipped": {"gradient_clip_val": 0.1, "max_steps": 40, "limit_train_batches": 21},
}


def fitted(folder: Path, *callbacks: Any, **variant: Any) -> dict[str, Any]:
    """Train a variant and return its state."""
    if "data" in variant:
        variant = {**variant, "data": loader(variant["data"])}
    return state_of(fit(folder, *callbacks, **variant))


def refused(tmp_path: Path, **variant: Any) -> dict[str, Any]:
    """Return the state after a training in which branches were tried and refused."""
    steer = Steer(tmp_path / "run", callback=trying(accepts=False), config={"branching": OFTEN})
    state = fitted(tmp_path / "refused", steer, **variant)
    assert kinds(steer.report().folder).count("decision") >= 1
    return state


# ── bits ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variant", VARIANTS)
def test_neither_watching_nor_refused_branches_leave_a_trace(variant: str, tmp_path: Path) -> None:
    plain = fitted(tmp_path / "plain", **VARIANTS[variant])
    watching = Steer(tmp_path / "watched", mode="watch")
    assert all_equal(plain, fitted(tmp_path / "theirs", watching, **VARIANTS[variant]))
    steps = read_telemetry(tmp_path / "watched", kept_only=True)["step"]
    assert steps.tolist() == list(range(1, plain["scheduler"]["last_epoch"] + 1))
    assert all_equal(plain, refused(tmp_path, **VARIANTS[variant]))


class Measured(Module):
    """Module with a metric over the epoch, which it updates and logs at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.mean.update(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("mean", self.mean.compute())
        self.mean.reset()


@pytest.mark.parametrize(
    "part",
    [
        "model",
        "optimizer",
        "scheduler 0",
        "schedulings",
        "steps",
        "batches",
        "results",
        "metric 0",
        "generators",
    ],
)
def test_each_part_of_the_state_is_needed(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fitted(tmp_path / "plain", module=Measured)
    if part == "model":  # once is enough
        assert all_equal(plain, refused(tmp_path / "whole", module=Measured))
    leave_out(part, monkeypatch)
    if part == "steps":  # Lightning counts the steps of branches as the run's, and ends early
        with pytest.raises(UserError, match="the framework has ended its training"):
            refused(tmp_path, module=Measured)
        return
    assert not all_equal(plain, refused(tmp_path, module=Measured))


# ── changes ───────────────────────────────────────────────────────────────────────────────────────


class Seen(Callback):
    """Callback of the user's own that notes the steps it sees."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        self.steps.append(trainer.global_step)


def test_callbacks_and_log_have_each_kept_step_once(tmp_path: Path) -> None:
    seen = Seen()
    steer = Steer(
        tmp_path / "run",
        callback=trying(accepts=True, factors=(0.5,)),
        config={"branching": {**OFTEN, "every": 20}},
    )
    trainer = fit(tmp_path / "theirs", seen, steer, log_every_n_steps=1)
    assert seen.steps == list(range(1, 53))
    rows = logged(trainer)
    assert [int(row["step"]) for row in rows] == list(range(52))
    telemetry = read_telemetry(tmp_path / "run", kept_only=True)
    losses = [float(row["loss_step"]) for row in rows]
    assert telemetry["loss"].tolist() == pytest.approx(losses, rel=1e-6)
    assert telemetry["lr_scale"].iloc[0] == 1.0
    assert telemetry["lr_scale"].iloc[-1] == 0.5
    assert trainer.max_epochs == 2
    assert "advance" not in vars(trainer.fit_loop.epoch_loop)


def logged(trainer: Trainer) -> list[dict[str, str]]:
    """Return the rows of Lightning's own log that have the loss of a step."""
    path = Path(trainer.logger.log_dir) / "metrics.csv"  # type: ignore[union-attr, arg-type]
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["loss_step"]]


def test_rules_skip_a_bad_shard_and_mark_the_checkpoints_left_behind(tmp_path: Path) -> None:
    data: Any = batches(300, bad=range(250, 258))
    steer = Steer(tmp_path / "run", mode="rules")
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=2, save_top_k=-1)
    trainer = fit(
        tmp_path / "theirs",
        steer,
        saving,
        data=DataLoader(data, batch_size=None),
        module=lambda: Module(lr=1e-2, factor=1.0),
        max_epochs=None,
        max_steps=300,
        log_every_n_steps=1,
        enable_checkpointing=True,
        check_val_every_n_epoch=10,
    )
    run = steer.session.run
    assert kinds(steer.report().folder).count("rewind") >= 1
    assert run.lr_scale < 1
    assert set(range(250, 254)) <= set(run.flagged)
    assert not set(range(250, 254)) & set(
        read_telemetry(tmp_path / "run", kept_only=True)["data_index"]
    )
    assert trainer.global_step == 300
    assert [int(row["step"]) for row in logged(trainer)] == list(range(300))
    assert list((tmp_path / "saved").glob("left-behind-*"))
    saved = sorted((tmp_path / "saved").glob("epoch*"), key=lambda path: path.stat().st_mtime)
    assert [path.name.split("=")[-1] for path in saved] == [f"{n}.ckpt" for n in range(2, 301, 2)]


def test_a_rate_that_gets_too_high_is_lowered(tmp_path: Path) -> None:
    def training(folder: str, *callbacks: Any) -> Module:
        data: Any = batches(300)
        data = DataLoader(data, batch_size=None)
        made = partial(Module, lr=1e-2, factor=100.0)
        trainer = fit(tmp_path / folder, *callbacks, data=data, module=made, max_epochs=1)
        module = trainer.lightning_module
        assert isinstance(module, Module)
        return module

    plain = training("plain")
    steer = Steer(tmp_path / "run", max_waste=0.5)
    steered = training("steered", steer)
    assert steer.session.run.lr_scale < 1
    assert steered.final < plain.final


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────


class Stopped(Exception):
    """The training is broken off."""


class Stopping(Callback):
    """Callback that breaks the training off after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step == self._step:
            raise Stopped


@pytest.mark.filterwarnings("ignore:Experiment logs directory")  # the interrupted run wrote there
@pytest.mark.parametrize("stop", [9, 16, 18, 40])  # 18: saved while a branch was trained again
def test_an_interrupted_run_resumes_to_the_same_end(stop: int, tmp_path: Path) -> None:
    def training(folder: str, *further: Any, ckpt_path: Any = None) -> dict[str, Any]:
        steer = Steer(
            tmp_path / folder,
            callback=trying(accepts=True, factors=(0.9,)),
            config={"branching": {**OFTEN, "every": 12}},
        )
        saving = ModelCheckpoint(tmp_path / f"{folder} saved", every_n_train_steps=4)
        state = fitted(
            tmp_path / f"{folder} theirs",
            steer,
            saving,
            *further,
            ckpt_path=ckpt_path,
            enable_checkpointing=True,
        )
        # Lightning begins the averages of an epoch anew where it resumes.
        metrics = {**state["metrics"], "loss_epoch": None}
        return {
            **state,
            "metrics": metrics,
            "loops": None,
            "log": None,
            "kinds": kinds(steer.report().folder),
        }

    whole = training("whole")
    with pytest.raises(Stopped):
        training("cut", Stopping(stop))
    (newest,) = (tmp_path / "cut saved").iterdir()
    saved = torch.load(newest, weights_only=False)["callbacks"]
    (ours,) = (state for name, state in saved.items() if "Steer" in name)
    assert ("parts" in ours) == (stop != 18)
    torch.rand(5)  # a new process is at another random state
    assert all_equal(whole, training("cut", ckpt_path=newest))


# ── what cannot be steered ────────────────────────────────────────────────────────────────────────


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Any:
        return iter(batches(8))


class Manual(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"validation": []}, "held-out data are needed"),
        ({"data": DataLoader(Stream(), batch_size=None)}, "a stream"),
        ({"data": DataLoader(Sequences(8), num_workers=1)}, "num_workers=1"),
        ({"data": [loader(), loader()]}, "one training loader, found 2"),
        ({"data": batches(8)}, "one training loader, found 8"),
        ({"module": Manual}, "automatic_optimization=False"),
        ({"reload_dataloaders_every_n_epochs": 1}, "reload_dataloaders_every_n_epochs=1"),
        ({"max_epochs": -1}, "a training without end"),
    ],
)
def test_what_cannot_be_steered_is_refused_in_a_sentence(
    changed: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    settings = {"max_steps": 8, **changed}
    if "max_epochs" in changed:
        settings["max_steps"] = -1
    with pytest.raises(UserError, match=sentence):
        fit(tmp_path / "theirs", Steer(tmp_path / "run"), **settings)
    assert not (tmp_path / "run").exists()


def test_a_stream_can_be_watched(tmp_path: Path) -> None:
    steer = Steer(tmp_path / "run", mode="watch")
    data = DataLoader(Stream(), batch_size=None)
    fit(tmp_path / "theirs", steer, data=data, max_steps=8, log_every_n_steps=1)
    assert steer.report().summary["step"] == 8
