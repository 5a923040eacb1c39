"""The Gymnasium wrapper: actions are drafts, and only what holds up beside doing nothing is put in force."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.support.branched_runs import SMALL, draft, lr
from trainenv.envs.synthetic import SyntheticEnv
from trainenv.envs.training import TrainingEnv
from trainenv.run import TrainingRun
from trainenv.types import UserError
from trainenv.wrappers import SpeculativeVerification

NOTHING, LOWER, RESET = [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]


def made(
    seed: int = 0, overrides: dict[str, Any] | None = None, **more: Any
) -> SpeculativeVerification:
    env = SpeculativeVerification(
        TrainingEnv("tiny", {**SMALL, **(overrides or {})}), **{"verify_steps": 6} | more
    )
    env.reset(seed=seed)
    return env


def vector(action: list[int]) -> Any:
    return np.array(action, dtype=np.int64)


def test_spaces_pass_through_and_gymnasium_is_content() -> None:
    env = made(verify_steps=2)
    assert env.observation_space == env.training.observation_space
    assert env.action_space == env.training.action_space
    with pytest.warns(
        UserWarning, match="different from the unwrapped version"
    ):  # a wrapper is meant to be
        check_env(env, skip_render_check=True)


def test_around_what_gymnasium_makes() -> None:
    env = SpeculativeVerification(
        gym.make("trainenv/GPT2-Tiny-v0", overrides=SMALL), verify_steps=4
    )
    env.reset(seed=1)
    observation, _, terminated, truncated, info = env.step(vector(LOWER))
    assert env.observation_space.contains(observation)
    assert (terminated, truncated) == (False, False)
    assert info["verdict"]
    assert env.training.run.step == 4 + 8


def test_doing_nothing_is_not_verified() -> None:
    env, bare = made(), TrainingEnv("tiny", SMALL)
    bare.reset(seed=0)
    ours, theirs = env.step(vector(NOTHING)), bare.step(NOTHING)
    assert np.array_equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]
    assert ours[4]["verdict"] == ""
    assert env.training.run.ledger["verify"] == 0
    assert env.training.run.fingerprint() == bare.run.fingerprint()


def test_what_holds_up_is_put_in_force_and_what_does_not_is_not() -> None:
    for rule, scale in ((made(rule="agreement"), 0.8), (made(rule="annealed", fold=False), 1.0)):
        if scale == 1.0:
            rule.settings = type(rule.settings)(verify_steps=6, fold=False, rule=_Never())
        rule.step(vector(LOWER))
        assert rule.training.run.lr_scale == scale
        assert (
            rule.training.run.step == 6 + 8
        )  # the steps of the branch, or of the control, are kept
        assert rule.training.run.ledger["verify"] > 0


class _Never:
    measure = "horizon"

    def objection(self, branch: Any, control: Any, /) -> str:
        return "never"

    def rank(self, branch: Any, /) -> float:
        return 0.0


def test_verify_and_commit() -> None:
    env = made(fold=False)
    env.step(vector(NOTHING))
    run: TrainingRun = env.training.run
    before = run.fingerprint()
    verdict = env.verify(draft(lr(0.9), lr(1.1)))
    assert run.fingerprint() == before
    kept = env.commit(verdict)
    assert len(kept) == 6
    assert run.step == 14
    with pytest.raises(UserError, match=r"call verify\(plan\) first"):
        env.commit(verdict)
    verdict = env.verify(draft(lr(0.9)))
    env.step(vector(NOTHING))
    with pytest.raises(UserError, match="make new Rollouts"):
        env.commit(verdict)


def test_never_past_the_end_of_the_budget() -> None:
    env = made(overrides={"steps": 12}, verify_steps=50)
    env.step(vector(NOTHING))
    assert env.verify(draft(lr(0.9))).steps == 4
    truncated = env.step(vector(LOWER))[3]
    assert truncated
    assert env.training.run.step == 12
    with pytest.raises(UserError, match="nothing left to verify"):
        env.verify(draft(lr(0.9)))


def test_what_the_mask_forbids_is_still_told() -> None:
    env = made(overrides={"interventions.allow_data_reorder": False})
    info = env.step(vector([1, 0, 0, 0, 1, 0]))[4]
    assert info["masked"] == ["data_reorder"]
    assert info["verdict"]


def test_other_environments_are_refused() -> None:
    for env in (gym.make("CartPole-v1"), SyntheticEnv()):
        with pytest.raises(UserError, match="expected an environment of a training run, found"):
            SpeculativeVerification(env)
    with pytest.raises(UserError, match="agreement"):
        SpeculativeVerification(TrainingEnv("tiny", SMALL), rule="agrement")
    with pytest.raises(UserError, match="reset"):
        SpeculativeVerification(TrainingEnv("tiny", SMALL)).step(vector(LOWER))
