"""Tuning at equal compute: half of the budget finds a setting, and what it found is what trains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from trainenv import RunConfig, TrainingRun, UserError
from trainenv.agents import TunedSchedule
from trainenv.records.run_folder import RunFolder
from trainenv.records.telemetry_log import read_telemetry

CONFIG = RunConfig.load(
    "tiny",
    {
        "steps": 160,
        "batch_size": 4,
        "model": {"width": 16, "layers": 1, "heads": 1, "context": 16},
        "schedule.warmup": 16,
        "validation": {"every": 0, "sequences": 8},
        "monitor": {"block": 16, "probe_every": 0},
        "clip.policy": "none",
        "optimizer.lr": 3e-5,  # far too low
    },
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    path = tmp_path_factory.mktemp("tuned") / "run"
    return TunedSchedule(trials=6, lr_factors=(0.1, 100.0)).train(CONFIG, path), path


def test_half_of_the_budget_is_for_trials(trained: tuple[dict[str, Any], Path]) -> None:
    summary, _ = trained
    run = TrainingRun.from_config(CONFIG)
    budget = 160 * run.flops_ahead
    assert 0.45 * budget < summary["flops"]["plan"] <= 0.5 * budget
    assert summary["flops"]["evaluate"] == pytest.approx(
        2 * run.flops_per_evaluation
    )  # of the run, before and after it
    total = summary["flops"]["plan"] + summary["flops"]["main"]
    assert budget - run.flops_ahead < total <= budget
    assert summary["flops"]["main"] == pytest.approx(summary["step"] * run.flops_ahead)


def test_the_best_trial_is_what_trains(trained: tuple[dict[str, Any], Path]) -> None:
    summary, path = trained
    found, trials = summary["tuned"], summary["tuned"]["trials"]
    assert len(trials) == 6
    assert (trials[0]["lr_factor"], trials[0]["clip"]) == (
        1.0,
        "none",
    )  # the configuration as it is
    best = min(trials, key=lambda trial: trial["loss"])
    assert (found["lr_factor"], found["clip"]) == (best["lr_factor"], best["clip"])
    assert found["lr_factor"] > 3
    assert all(
        0.1 <= trial["lr_factor"] <= 100 and trial["clip"] in ("none", "zclip", "arc")
        for trial in trials
    )
    config = RunConfig.load(path / "config.yaml")
    assert config.optimizer.lr == pytest.approx(3e-5 * found["lr_factor"])
    assert (config.clip.policy, config.steps) == (found["clip"], summary["step"])
    assert config.schedule.warmup == round(16 * config.steps / 160)
    rows = read_telemetry(path)
    assert max(rows["lr"]) == pytest.approx(3e-5 * found["lr_factor"], rel=0.1)
    assert summary["final_validation_loss"] < trials[0]["loss"]


def test_a_trial_is_a_short_full_run(trained: tuple[dict[str, Any], Path]) -> None:
    """Warm-up and annealing of its own; what it is judged by is the loss at its end."""
    summary, _ = trained
    run = TrainingRun.from_config(CONFIG)
    each = summary["flops"]["plan"] / 6
    steps = round((each - run.flops_per_evaluation) / run.flops_ahead)
    alone = TrainingRun.from_config(
        CONFIG, {"steps": steps, "schedule.warmup": round(16 * steps / 160)}
    )
    alone.advance(steps)
    assert summary["tuned"]["trials"][0]["loss"] == alone.evaluate()


def test_the_same_seed_finds_the_same(tmp_path: Path) -> None:
    config = RunConfig.load(CONFIG, {"steps": 64})
    one, two, other = (
        TunedSchedule(trials=3, seed=seed).train(config, tmp_path / str(place))
        for place, seed in enumerate((1, 1, 2))
    )
    assert one["tuned"] == two["tuned"]
    assert one["final_validation_loss"] == two["final_validation_loss"]
    assert one["tuned"]["trials"][1:] != other["tuned"]["trials"][1:]


def test_a_small_budget_has_fewer_trials_or_none(tmp_path: Path) -> None:
    run = TrainingRun.from_config(CONFIG)
    each = 8 + run.flops_per_evaluation / run.flops_ahead  # steps' worth of the shortest trial
    for steps in (int(4.5 * each), int(1.5 * each)):
        config = RunConfig.load(CONFIG, {"steps": steps})
        summary = TunedSchedule(trials=6).train(config, tmp_path / str(steps))
        assert len(summary["tuned"]["trials"]) == int(steps / 2 / each)
        assert summary["flops"]["plan"] + summary["flops"]["main"] <= steps * run.flops_ahead
    assert (summary["tuned"]["lr_factor"], summary["step"]) == (1.0, steps)


def test_a_trial_that_diverges_counts_as_twice_a_uniform_guess(tmp_path: Path) -> None:
    config = RunConfig.load(CONFIG, {"optimizer.lr": 1e30})
    summary = TunedSchedule(trials=3).train(config, tmp_path / "run")
    assert {trial["loss"] for trial in summary["tuned"]["trials"]} == {
        2 * math.log(TrainingRun.from_config(config).model.config.vocab_size)
    }
    assert summary["tuned"]["lr_factor"] == 1.0


def test_told_to_stop_it_leaves_a_run_to_go_on_with(tmp_path: Path) -> None:
    summary = TunedSchedule(trials=6).train(CONFIG, tmp_path / "run", stop=lambda: True)
    assert summary["ended"] == "interrupted"
    assert summary["tuned"]["trials"] == []
    _, snapshot = RunFolder.resume(tmp_path / "run")
    assert snapshot.step == 16


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trials", 0),
        ("share", 0.0),
        ("share", 1.0),
        ("lr_factors", (2.0, 3.0)),
        ("lr_factors", (0.0, 3.0)),
        ("lr_factors", (0.1, math.inf)),
        ("clips", ("median",)),
    ],
)
def test_bad_hyperparameters(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name):
        TunedSchedule(**{name: value})
