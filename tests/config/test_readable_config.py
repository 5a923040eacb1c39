"""Configurations for people: names of other trainers, shares of the run, comments in the written file."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from trainenv.config.other_names import _OTHERS, called_here
from trainenv.config.schema import BranchingConfig, RunConfig
from trainenv.config.section import field_at
from trainenv.config.written import as_yaml
from trainenv.types import UserError

# ── names of other trainers ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("learning_rate", "here it is called 'optimizer.lr'"),
        ("optimizer.learning_rate", "here it is called 'optimizer.lr'"),
        ("max_steps", "here it is called 'steps'"),
        ("model.n_layer", "here it is called 'model.layers'"),
        ("block_size", "here it is called 'model.context'"),
        ("max_grad_norm", "here you write clip: {policy: norm, max_norm: 1.0}"),
        ("output-dir", "here you write --out FOLDER"),
        ("model.lr", "did you mean 'optimizer.lr'"),
        ("optimizer.lrr", "did you mean 'lr'"),
    ],
)
def test_a_key_of_another_trainer_is_named_in_ours(key: str, words: str) -> None:
    with pytest.raises(UserError, match=f"unknown key '{key}'") as error:
        RunConfig.load("tiny", {key: 1})
    assert words in str(error.value)


def test_our_names_for_them_are_keys() -> None:
    for ours in _OTHERS:
        if ":" not in ours and not ours.startswith("--"):
            assert field_at(RunConfig, ours) is not None, ours
    assert called_here("nothing of the kind") == ""


def test_no_key_of_ours_is_taken_for_another() -> None:
    names = {name for others in _OTHERS.values() for name in others} - {"max_norm"}
    assert not names & set(RunConfig.model_fields)


# ── values that Python would take for numbers, or ignore ────────────────────────────────────────


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"steps": True}, "steps: expected a number, found true; write it in digits"),
        ({"optimizer.lr": False}, "optimizer.lr: expected a number, found false"),
        ({"optimizer.betas": [True, 0.9]}, "optimizer.betas: expected a number, found true"),
        ({"branching.every": True}, "branching.every: expected a number, found true"),
        ({"corpus.path": "a.txt"}, "found name: stdlib with a path; set corpus.name too, to text"),
    ],
)
def test_a_value_that_would_be_misread_is_refused(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        RunConfig.load("tiny", overrides)
    assert words in str(error.value)


def test_true_stays_true_where_it_may() -> None:
    config = RunConfig.load("tiny", {"monitor.enabled": False, "deterministic": True})
    assert (config.monitor.enabled, config.deterministic) == (False, True)


# ── clipping at a norm ──────────────────────────────────────────────────────────────────────────


def test_clipping_at_a_norm_is_said_as_it_is_meant() -> None:
    clip = RunConfig.load("tiny", {"clip": {"policy": "norm", "max_norm": 0.5}}).clip
    assert (clip.in_force, clip.options_of("none")) == ("none", {"max_norm": 0.5})
    assert clip.options_of("zclip") == {}


def test_another_policy_leaves_the_norm_behind() -> None:
    config = RunConfig.load("tiny", {"clip": {"policy": "norm", "max_norm": 0.5}})
    assert RunConfig.load(config, {"clip.policy": "arc"}).clip.max_norm is None
    assert RunConfig.load(config, {"clip.policy": "norm"}).clip.max_norm == 0.5


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        ({"policy": "norm"}, "set clip.max_norm: 1.0"),
        ({"policy": "zclip", "max_norm": 1.0}, "set clip.policy: norm, or leave max_norm out"),
        ({"policy": "norm", "max_norm": 0}, "clip.max_norm: Input should be greater than 0"),
    ],
)
def test_a_norm_goes_with_its_policy(clip: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        RunConfig.load("tiny", {"clip": clip})


# ── shares of the run ───────────────────────────────────────────────────────────────────────────


def test_shares_become_steps_of_the_run() -> None:
    long = BranchingConfig().settings(16_000)
    assert (long.every, long.horizon, long.verify_steps) == (800, 1920, 64)
    tiny = RunConfig.load("tiny")
    steps = tiny.branching.settings(tiny.steps)
    assert (steps.every, steps.rewind, steps.save_every) == (75, 50, 24)
    assert (steps.horizon, steps.verify_steps, steps.refractory_steps) == (180, 6, 40)


def test_a_short_run_has_the_fewest_steps_that_show_something() -> None:
    short = BranchingConfig().settings(40)
    assert (short.every, short.save_every, short.horizon, short.verify_steps) == (8, 8, 8, 5)


def test_whole_numbers_stay_as_they_are() -> None:
    config = BranchingConfig(every=30, refractory_steps=0, horizon=4.0)
    settings = config.settings(16_000)
    assert (settings.every, settings.refractory_steps, settings.horizon) == (30, 0, 4)
    assert settings.settings(7) == settings


@pytest.mark.parametrize("value", [0, -1, 1.5, "x", None])
def test_what_is_neither_steps_nor_a_share_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"branching.every: expected a whole number of steps, at"):
        RunConfig.load("tiny", {"branching.every": value})


# ── the written file ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("preset", ["tiny", "demo", "t5-base", "mtp"])
def test_the_written_file_is_the_configuration_with_comments(preset: str) -> None:
    config = RunConfig.load(
        preset, {"name": "a: b # c", "corpus": {"name": "text", "path": "/ü/" + "long " * 60}}
    )
    text = as_yaml(config)
    assert RunConfig(**yaml.safe_load(text)) == config
    lines = text.splitlines()
    assert max(len(line) for line in lines if line.lstrip().startswith("#")) <= 100
    place = lines.index("  lr: " + yaml.safe_dump(config.optimizer.lr).splitlines()[0])
    assert lines[place - 1] == "  # Base learning rate, above 0"
