"""Trainers of transformers, watched and steered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

import trainenv
from tests.integrations.hf_trainings import Examples, log_of, state_of, trainer
from tests.integrations.trainings import (
    OFTEN,
    all_equal,
    kinds,
    leave_out,
    trying,
)
from trainenv.records.telemetry_log import read_telemetry
from trainenv.types import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # torch.compile's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

VARIANTS: dict[str, dict[str, Any]] = {
    "dropout": {"gradient_accumulation_steps": 1, "num_train_epochs": 1},
    "accumulation": {},
    "a short last step": {"gradient_accumulation_steps": 3},
    "bf16": {"bf16": True},
    "lora": {"lora": True},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
    "saved": {"save_strategy": "steps", "save_steps": 7, "eval_strategy": "steps", "eval_steps": 5},
    "sgd": {"optim": "sgd", "lr_scheduler_type": "linear", "warmup_steps": 5},
}


def refused(tmp_path: Path, **variant: Any) -> Trainer:
    """Return a Trainer in whose training branches were tried and refused."""
    made = trainer(tmp_path / "refused", **variant)
    callback = trying(accepts=False)
    trainenv.attach(made, out=tmp_path / "run", callback=callback, config={"branching": OFTEN})
    made.train()
    assert kinds(tmp_path / "run").count("decision") >= 1
    return made


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "compiled"])
def test_a_watched_trainer_keeps_its_bits(variant: str, tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", **VARIANTS[variant])
    plain.train()
    watched = trainer(tmp_path / "watched", **VARIANTS[variant])
    trainenv.attach(watched, out=tmp_path / "run", mode="watch")
    watched.train()
    assert all_equal(state_of(plain), state_of(watched))
    steps = read_telemetry(tmp_path / "run", kept_only=True)["step"]
    assert steps.tolist() == list(range(1, plain.state.max_steps + 1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_refused_branches_leave_no_trace(variant: str, tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", **VARIANTS[variant])
    plain.train()
    assert all_equal(state_of(plain), state_of(refused(tmp_path, **VARIANTS[variant])))


@pytest.mark.parametrize(
    "part", ["model", "optimizer", "scheduler", "trainer", "state", "generators"]
)
def test_each_part_of_the_state_is_needed(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trainer(tmp_path / "plain")
    plain.train()
    leave_out(part, monkeypatch)
    assert not all_equal(state_of(plain), state_of(refused(tmp_path)))


class Seen(TrainerCallback):
    """Callback of the user's own that notes the steps it is told of."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.steps.append(state.global_step)


def test_callbacks_and_log_have_each_kept_step_once(tmp_path: Path) -> None:
    made = trainer(tmp_path / "theirs", logging_steps=1)
    seen = Seen()
    made.add_callback(seen)
    trainenv.attach(
        made,
        out=tmp_path / "run",
        callback=trying(accepts=True, factors=(0.5,)),
        config={"branching": {**OFTEN, "every": 12}},
    )
    made.train()
    assert kinds(tmp_path / "run").count("decision") >= 1
    assert seen.steps == list(range(1, 39))
    logged = [row for row in log_of(made) if "loss" in row]
    assert [row["step"] for row in logged] == list(range(1, 39))
    telemetry = read_telemetry(tmp_path / "run", kept_only=True)
    assert telemetry["loss"].tolist() == pytest.approx([row["loss"] for row in logged], rel=1e-6)
    assert telemetry["lr"].tolist() == pytest.approx([row["learning_rate"] for row in logged])
    assert telemetry["lr_scale"].iloc[0] == 1.0
    assert telemetry["lr_scale"].iloc[-1] < 1.0


def test_the_trainer_is_its_own_again_after_training(tmp_path: Path) -> None:
    made = trainer(tmp_path / "theirs", num_train_epochs=1)
    before = set(vars(made)), set(vars(made.accelerator)), list(made.callback_handler.callbacks)
    trainenv.attach(made, out=tmp_path / "run", mode="branching")
    made.train()
    assert made.callback_handler.callbacks == before[2]
    assert "clip_grad_norm_" not in vars(made.accelerator)
    assert "training_step" not in vars(made)


def test_early_stopping_ends_the_run(tmp_path: Path) -> None:
    def stopping(folder: str) -> Trainer:
        made = trainer(
            tmp_path / folder,
            eval_strategy="steps",
            eval_steps=3,
            save_strategy="steps",
            save_steps=3,
            load_best_model_at_end=True,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
        )
        made.add_callback(EarlyStoppingCallback(2, early_stopping_threshold=1.0))
        return made

    plain = stopping("plain")
    plain.train()
    attached = stopping("attached")
    trainenv.attach(attached, out=tmp_path / "run", config={"branching": OFTEN})
    attached.train()
    assert plain.state.global_step < 38
    ours, theirs = state_of(attached), state_of(plain)
    assert all_equal({**ours, "scheduler": None}, {**theirs, "scheduler": None})
    summary = trainenv.RunReport(tmp_path / "run").summary
    assert summary["ended"] == "budget spent"
    assert summary["step"] == plain.state.global_step


def test_rules_skip_a_bad_shard_and_mark_the_checkpoints_left_behind(tmp_path: Path) -> None:
    made = trainer(
        tmp_path / "theirs",
        data=Examples(440, bad=range(300, 312)),
        gradient_accumulation_steps=1,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        eval_strategy="no",
        save_strategy="steps",
        save_steps=4,
    )
    attachment = trainenv.attach(made, out=tmp_path / "run", mode="rules")
    made.train()
    run = attachment.session.run
    assert kinds(tmp_path / "run").count("rewind") >= 1
    assert run.lr_scale < 1
    assert {150, 151, 152} <= set(run.flagged)
    assert list((tmp_path / "theirs").glob("left-behind-checkpoint-*"))
    logged = [row["step"] for row in log_of(made) if "loss" in row]
    assert logged == list(range(3, 221, 3))


def test_a_rate_that_is_too_high_is_lowered(tmp_path: Path) -> None:
    def fast(folder: str) -> Trainer:
        return trainer(
            tmp_path / folder,
            data=Examples(400),
            gradient_accumulation_steps=1,
            num_train_epochs=1,
            eval_strategy="no",
            learning_rate=0.3,
            warmup_steps=20,
        )

    plain = fast("plain")
    plain.train()
    steered = fast("steered")
    attachment = trainenv.attach(steered, out=tmp_path / "run", max_waste=0.5)
    steered.train()
    assert attachment.session.run.lr_scale < 1
    assert steered.evaluate()["eval_loss"] < plain.evaluate()["eval_loss"]


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────

SAVED = {"save_strategy": "steps", "save_steps": 7, "eval_strategy": "steps", "eval_steps": 5}


class Stopped(Exception):
    """The training is broken off."""


class Stopping(TrainerCallback):
    """Callback that breaks the training off after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == self._step:
            raise Stopped


@pytest.mark.parametrize("stop", [9, 16, 20, 30])
def test_an_interrupted_run_resumes_to_the_same_end(stop: int, tmp_path: Path) -> None:
    def attached(folder: str) -> Trainer:
        made = trainer(tmp_path / f"{folder}-theirs", **SAVED)
        trainenv.attach(
            made,
            out=tmp_path / folder,
            callback=trying(accepts=True, factors=(0.9,)),
            config={"branching": {**OFTEN, "every": 12}},
        )
        return made

    whole = attached("whole")
    whole.train()
    cut = attached("cut")
    cut.add_callback(Stopping(stop))
    with pytest.raises(Stopped):
        cut.train()
    resumed = attached("cut")
    torch.rand(5)  # a new process is at another random state
    resumed.train(resume_from_checkpoint=True)
    assert all_equal(state_of(whole), state_of(resumed))
    assert kinds(tmp_path / "whole") == kinds(tmp_path / "cut")


def test_a_watched_run_resumes_as_a_plain_one(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", **SAVED)
    plain.train()
    for stop in (True, False):
        watched = trainer(tmp_path / "watched", **SAVED)
        trainenv.attach(watched, out=tmp_path / "run", mode="watch")
        if not stop:
            watched.train(resume_from_checkpoint=True)
            break
        watched.add_callback(Stopping(18))
        with pytest.raises(Stopped):
            watched.train()
    assert all_equal(state_of(plain)["model"], state_of(watched)["model"])
    steps = read_telemetry(tmp_path / "run", kept_only=True)["step"]
    assert steps.tolist() == list(range(1, 39))


def test_its_checkpoints_load_in_a_plain_trainer(tmp_path: Path) -> None:
    made = trainer(tmp_path / "theirs", **SAVED)
    trainenv.attach(made, out=tmp_path / "run")
    made.train()
    plain = trainer(tmp_path / "theirs", **SAVED)
    plain.train(resume_from_checkpoint=str(tmp_path / "theirs" / "checkpoint-35"))
    assert plain.state.global_step == 38


def test_checkpoints_left_behind_are_not_resumed_from(tmp_path: Path) -> None:
    made = trainer(tmp_path / "theirs", **SAVED)
    trainenv.attach(made, out=tmp_path / "run")
    with pytest.raises(UserError, match="the run has gone back to before left-behind"):
        made.train(resume_from_checkpoint=str(tmp_path / "left-behind-checkpoint-7"))


# ── what cannot be steered ────────────────────────────────────────────────────────────────────────


class GRPOTrainer(Trainer):
    """Stand-in for a Trainer whose model writes its data."""


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(Examples(8))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("changed", "without", "sentence"),
    [
        ({}, "eval_dataset", "found no eval_dataset"),
        ({"data": Stream(), "max_steps": 4}, None, "a stream"),
        ({"dataloader_num_workers": 1}, None, "dataloader_num_workers=1"),
        ({"auto_find_batch_size": True}, None, "auto_find_batch_size"),
        ({"kind": GRPOTrainer}, None, "must not depend on the model"),
    ],
)
def test_what_cannot_be_steered_is_refused_in_a_sentence(
    changed: dict[str, Any], without: str | None, sentence: str, tmp_path: Path
) -> None:
    made = trainer(tmp_path / "theirs", eval_strategy="no", **{"num_train_epochs": 1, **changed})
    if without is not None:
        setattr(made, without, None)
    with pytest.raises(UserError, match=sentence):
        trainenv.attach(made, out=tmp_path / "run")
    trainenv.attach(made, out=tmp_path / "run", mode="watch")


def test_deepspeed_and_other_things_are_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path / "theirs")
    made.is_deepspeed_enabled = True
    with pytest.raises(UserError, match="found DeepSpeed or FSDP"):
        trainenv.attach(made, out=tmp_path / "run", mode="watch")
    with pytest.raises(UserError, match="expected a Trainer of transformers"):
        trainenv.attach(object(), out=tmp_path / "run")  # type: ignore[arg-type]
    made.is_deepspeed_enabled = False
    with pytest.raises(UserError, match="mode must be one of watch, rules, branching"):
        trainenv.attach(made, out=tmp_path / "run", mode="rule")
    trainenv.attach(made, out=tmp_path / "run")
    with pytest.raises(UserError, match="attached already"):
        trainenv.attach(made, out=tmp_path / "run")
