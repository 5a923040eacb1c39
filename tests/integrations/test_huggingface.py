"""Trainers of transformers, watched and steered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

import trainenv
from tests.integrations.hf_trainings import Examples, log_of, state_of, trainer
from tests.integrations.trainings import OFTEN, all_equal, trying
from trainenv.integrations.attach.run import Stage
from trainenv.records.run_folder import read_events
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
    "bf16": {"bf16": True},
    "lora": {"lora": True},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
    "saved": {"save_strategy": "steps", "save_steps": 7, "eval_strategy": "steps", "eval_steps": 5},
    "sgd": {"optim": "sgd", "lr_scheduler_type": "linear", "warmup_steps": 5},
}


def kinds(folder: Path) -> list[str]:
    """Return the kinds of the recorded events, in order."""
    return [event["kind"] for event in read_events(folder)]


def refused(tmp_path: Path, **variant: Any) -> Trainer:
    """Return a Trainer in whose training branches were tried and refused."""
    made = trainer(tmp_path / "refused", **variant)
    callback = trying(accepts=False)
    trainenv.attach(made, out=tmp_path / "run", callback=callback, config={"branching": OFTEN})
    made.train()
    assert kinds(tmp_path / "run").count("decision") >= 1
    return made


@pytest.mark.parametrize("variant", VARIANTS)
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
    load = Stage.load

    def without(stage: Stage, state: Mapping[str, Any]) -> None:
        generators = stage.generators
        left_out = {name: value for name, value in state.items() if name != part}
        load(stage, {"generators": state["generators"], **left_out})
        if part == "generators":
            stage.generators = generators

    monkeypatch.setattr(Stage, "load", without)
    assert not all_equal(state_of(plain), state_of(refused(tmp_path)))
