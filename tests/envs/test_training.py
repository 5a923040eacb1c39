"""The training environment: its contract with Gymnasium and SB3, its rewards, and that it is a value like its run."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from trainenv.checkpoints.file import read, write
from trainenv.config.presets import find, read_yaml
from trainenv.envs.observation import FEATURES
from trainenv.envs.synthetic import SyntheticEnv
from trainenv.envs.training import TrainingEnv
from trainenv.interventions import ActionCodec
from trainenv.run import TrainingRun
from trainenv.training import snapshots
from trainenv.types import Intervention, Snapshot, UserError

NOTHING = [0, 0, 0, 0, 0, 0]
NERVOUS = read_yaml(find("uncertainty")) | {
    "window": 16,
    "min_history": 4,
    "threshold": 0.2,
    "single": 0.5,
    "lenient": 1.0,
    "refractory": 3,
}
SMALL: dict[str, Any] = {
    "steps": 30,
    "batch_size": 4,
    "reset_warmup": 4,
    "model": {"width": 32, "layers": 1, "heads": 2, "context": 32},
    "schedule.warmup": 3,
    "validation.sequences": 4,
    "monitor": {"probe_every": 3, "uncertainty": NERVOUS},
    "environment.decision_steps": 5,
}
FREE = {"interventions": {"allow_spam": True, "allow_data_reorder": True, "allow_skip_batch": True}}


def fresh(seed: int = 0, **settings: Any) -> TrainingEnv:
    env = TrainingEnv("tiny", {**SMALL, **settings})
    env.reset(seed=seed)
    return env


def seen(returned: tuple[Any, ...], *, flops: bool = True) -> tuple[Any, ...]:
    """Result of `step` as values that compare with ==; the ledger, which forks share, on request."""
    observation, *rest = returned
    info = {key: value for key, value in rest[-1].items() if flops or key != "flops"}
    return (observation.tobytes(), *rest[:-1], json.dumps(info, allow_nan=False))


def play(env: TrainingEnv, actions: Iterable[Any], *, flops: bool = True) -> list[tuple[Any, ...]]:
    """Results of all steps to the end of the episode."""
    steps = []
    for action in actions:
        steps.append(env.step(action))
        if steps[-1][2] or steps[-1][3]:
            break
    return [seen(step, flops=flops) for step in steps]


def random_actions(seed: int, count: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, [4, 3, 5, 2, 2, 2], (count, 6))


def numbers(value: Any) -> Iterable[float]:
    if isinstance(value, dict):
        for part in value.values():
            yield from numbers(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, np.ndarray):
        yield from value.ravel().tolist()
    elif isinstance(value, int | float):
        yield float(value)


# ── the contract ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_gymnasium_and_sb3_find_nothing_to_say() -> None:
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    check_env_sb3(TrainingEnv("tiny", SMALL))
    made = gym.make("trainenv/GPT2-Tiny-v0", overrides=SMALL)
    check_env(made.unwrapped)
    check_env_sb3(made)


def test_the_spaces() -> None:
    env = TrainingEnv("tiny", SMALL)
    assert env.observation_space == gym.spaces.Box(-10, 10, (len(FEATURES),), np.float32)
    assert env.action_space == gym.spaces.MultiDiscrete([4, 3, 5, 2, 2, 2])
    few = TrainingEnv("tiny", {**SMALL, "interventions.lr_scales": [1.0, 0.5]})
    assert few.action_space == gym.spaces.MultiDiscrete([2, 3, 5, 2, 2, 2])


def test_ppo_learns_a_few_decisions() -> None:
    from stable_baselines3 import PPO

    env = gym.make("trainenv/GPT2-Tiny-v0", overrides={**SMALL, "environment.decision_steps": 3})
    learner = PPO("MlpPolicy", env, n_steps=8, batch_size=4, n_epochs=1, seed=0, device="cpu")
    learner.learn(16)
    assert learner.num_timesteps == 16
    assert all(torch.isfinite(p).all() for p in learner.policy.parameters())


def test_maskable_ppo_takes_only_what_is_legal() -> None:
    contrib = pytest.importorskip("sb3_contrib")
    masks = pytest.importorskip("sb3_contrib.common.maskable.utils")
    env = TrainingEnv("tiny", SMALL)
    learner = contrib.MaskablePPO(
        "MlpPolicy", env, n_steps=4, batch_size=4, n_epochs=1, seed=0, device="cpu"
    )
    learner.learn(4)
    observation, _ = env.reset(seed=1)
    over = False
    while not over:
        action, _ = learner.predict(observation, action_masks=masks.get_action_masks(env))
        observation, _, terminated, truncated, info = env.step(action)
        assert info["masked"] == []
        over = terminated or truncated


@pytest.mark.parametrize("size", ["Small", "Medium", "Large"])
def test_the_large_ones_are_made_at_once_and_build_nothing_before_reset(size: str) -> None:
    tracemalloc.start()
    started = time.perf_counter()
    env = gym.make(f"trainenv/GPT2-{size}-v0")
    taken = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 5
    assert peak < 20e6
    inner = env.unwrapped
    assert isinstance(inner, TrainingEnv)
    assert inner.config.name == size.lower()
    assert inner.observation_space.shape == (len(FEATURES),)
    with pytest.raises(UserError, match="reset"):
        _ = inner.run


def test_the_registered_ones_are_the_presets() -> None:
    for size in ("Tiny", "Small", "Medium", "Large"):
        assert gym.spec(f"trainenv/GPT2-{size}-v0").kwargs == {"config": size.lower()}


# ── rewards, and how an episode ends ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
def test_rewards_and_charges_add_up_to_the_fall_in_the_log_loss(seed: int) -> None:
    env = fresh(seed, **FREE)
    first = env.run.evaluate()
    returned = []
    for action in random_actions(seed):
        returned.append(env.step(action))
        if returned[-1][2] or returned[-1][3]:
            break
    fall = math.log(first / env.run.evaluate())
    assert returned[-1][3]
    assert abs(sum(reward + info["charges"] for _, reward, _, _, info in returned) - fall) < 1e-9
    assert returned[-1][4]["validation_loss"] == env.run.evaluate()
    for _, _, _, _, info in returned:
        assert info["charges"] == pytest.approx(0.001 * info["fired"], abs=1e-15)


def test_firing_is_charged() -> None:
    env = fresh(environment={"decision_steps": 5, "instability_charge": 0.25})
    fired = [env.step(NOTHING)[4] for _ in range(6)]
    assert sum(info["fired"] for info in fired) > 0
    assert all(info["charges"] == 0.25 * info["fired"] for info in fired)


def test_the_budget_truncates() -> None:
    env = fresh(steps=13)
    ends = [env.step(NOTHING) for _ in range(3)]
    assert [step[4]["step"] for step in ends] == [5, 10, 13]
    assert [step[2:4] for step in ends] == [(False, False), (False, False), (False, True)]
    assert ends[-1][0][FEATURES.index("budget_left")] == 0
    with pytest.raises(UserError, match="over"):
        env.step(NOTHING)
    env.reset()
    env.step(NOTHING)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer.lr": 1e3, "clip.policy": "none"},
        {"optimizer.lr": 1e6},
        {"optimizer.lr": 1e30, "clip.policy": "none"},
        {"optimizer.lr": 10.0, "precision": "fp16"},
    ],
    ids=str,
)
def test_divergence_terminates_with_finite_values(settings: dict[str, Any]) -> None:
    env = fresh(**settings)
    first = env.run.evaluate()
    steps = [env.step(NOTHING)]
    while not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(NOTHING))
    assert steps[-1][2:4] == (True, False)
    for observation, reward, _, _, info in steps:
        assert env.observation_space.contains(observation)
        assert all(map(math.isfinite, numbers((observation, reward, info))))
    cap = 2 * env.run.uniform_loss
    assert steps[-1][4]["validation_loss"] == cap
    assert sum(step[1] + step[4]["charges"] for step in steps) == pytest.approx(
        math.log(first / cap), abs=1e-9
    )
    with pytest.raises(UserError, match="over"):
        env.step(NOTHING)


def test_weights_that_are_not_numbers_terminate_with_finite_values() -> None:
    env = fresh()
    env.step(NOTHING)
    with torch.no_grad():
        next(env.run.model.parameters()).fill_(math.nan)
    observation, reward, terminated, truncated, info = env.step(NOTHING)
    assert (terminated, truncated) == (True, False)
    assert all(map(math.isfinite, numbers((observation, reward, info))))
    snapshot = env.snapshot()
    json.dumps(snapshot.state["environment"], allow_nan=False)
    observation, info = env.reset(options={"snapshot": snapshot})
    assert all(map(math.isfinite, numbers((observation, info))))
    with pytest.raises(UserError, match="over"):
        env.step(NOTHING)


# ── the same again ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_seed_and_actions_give_the_same_and_another_seed_another() -> None:
    actions = random_actions(1)
    first, again, other = (
        play(fresh(seed, **FREE, **{"model.dropout": 0.1}), actions) for seed in (3, 3, 4)
    )
    assert first == again
    assert first[0] != other[0]


def test_resets_without_a_seed_differ_and_follow_from_the_last_seed() -> None:
    env, twin = fresh(1), fresh(1)
    first = env.run.config.seed
    env.reset()
    twin.reset()
    assert env.run.config.seed != first
    assert env.run.fingerprint() == twin.run.fingerprint()
    env.reset(seed=1)
    assert env.run.config.seed == first
    assert env.run.step == 0
    assert env.run.ledger["main"] == 0


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_snapshot_goes_on_bit_for_bit(at: int, tmp_path: Path) -> None:
    settings = {**FREE, "model.dropout": 0.1}
    env = fresh(2, **settings)
    actions = random_actions(5)
    play(env, actions[:at])
    snapshot = env.snapshot()
    mark = snapshots.fingerprint(snapshot)
    write(snapshot, tmp_path / "run.ptz")
    carried = read(tmp_path / "run.ptz")
    fork, elsewhere = env.fork(), TrainingEnv("tiny", {**SMALL, **settings})
    masks = env.action_masks()
    ahead = play(env, actions[at:], flops=False)
    assert len(ahead) == 6 - at
    assert np.array_equal(fork.action_masks(), masks)
    assert play(fork, actions[at:], flops=False) == ahead
    elsewhere.reset(options={"snapshot": carried})
    assert np.array_equal(elsewhere.action_masks(), masks)
    assert play(elsewhere, actions[at:], flops=False) == ahead
    env.restore(snapshot)
    assert play(env, actions[at:], flops=False) == ahead
    env.reset(seed=9, options={"snapshot": snapshot})
    assert play(env, actions[at:], flops=False) == ahead
    assert snapshots.fingerprint(snapshot) == mark


def test_reset_to_a_snapshot_tells_where_it_is() -> None:
    env = fresh(2)
    env.step(NOTHING)
    snapshot = env.snapshot()
    _, before = env.reset(options={"snapshot": snapshot})
    observation, info = TrainingEnv("tiny", SMALL).reset(options={"snapshot": snapshot})
    assert info["step"] == before["step"] == 5
    assert info["validation_loss"] == before["validation_loss"]
    assert observation[FEATURES.index("budget_left")] == pytest.approx(25 / 30)


def test_a_fork_leaves_its_parent_alone() -> None:
    free = {
        "model.dropout": 0.1,
        "environment.compute_charge": 0.0,
    }  # else the parent pays for the branch
    env = fresh(2, **free)
    env.step(NOTHING)
    before, memory = env.run.fingerprint(), env.snapshot().state["environment"]
    twin = fresh(2, **free)
    twin.step(NOTHING)
    fork = env.fork()
    play(fork, random_actions(1))
    assert env.run.fingerprint() == before
    assert env.snapshot().state["environment"] == memory
    assert play(env, random_actions(3), flops=False) == play(twin, random_actions(3), flops=False)
    fork.reset(seed=2)
    assert fork.run is not env.run


def test_the_snapshot_of_a_bare_run_can_be_gone_on_from() -> None:
    run = TrainingRun.from_config("tiny", {**SMALL, "seed": 11})
    run.advance(7)
    env = fresh(0)
    _, info = env.reset(options={"snapshot": run.snapshot()})
    assert env.run.config.seed == 11
    assert env.run.fingerprint() == run.fingerprint()
    assert info["validation_loss"] == run.evaluate()
    env.step([1, 0, 0, 1, 0, 0])
    run.apply(Intervention(lr_scale=0.8, momentum_reset=True))
    run.advance(5)
    assert env.run.fingerprint() == run.fingerprint()
    run.advance(30)
    env.restore(run.snapshot())
    with pytest.raises(UserError, match="over"):
        env.step(NOTHING)


def test_an_environment_is_the_run_that_it_holds() -> None:
    env = fresh(4)
    run = TrainingRun.from_config("tiny", {**SMALL, "seed": env.run.config.seed})
    env.step([0, 2, 3, 0, 0, 0])
    run.apply(Intervention(weight_decay_scale=2.0, clip="arc"))
    run.advance(5)
    assert env.run.fingerprint() == run.fingerprint()


# ── actions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_masks_are_the_codec_s_at_every_step() -> None:
    env = fresh(0, **FREE)
    for action in random_actions(2, 6):
        masks = env.action_masks()
        assert masks.dtype == np.bool_
        assert np.array_equal(
            masks, np.concatenate(ActionCodec(env.config.interventions).masks(env.run))
        )
        env.step(action)


def test_masked_parts_are_left_out_and_named() -> None:
    env, plain = fresh(), fresh()
    *_, info = env.step(
        [1, 0, 2, 0, 1, 1]
    )  # ZClip is in force, reorder and skip are off by default
    assert info["masked"] == ["clip", "data_reorder", "skip_batch"]
    *_, info = plain.step([1, 0, 0, 0, 0, 0])
    assert info["masked"] == []
    assert env.run.fingerprint() == plain.run.fingerprint()
    tight = fresh(**{"interventions.lr_bounds": [0.85, 1.05]})
    *_, info = tight.step([1, 0, 0, 0, 0, 0])
    assert info["masked"] == ["lr_scale"]
    assert tight.run.lr_scale == 1


@pytest.mark.parametrize(
    "action", [[4, 0, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0], [0, 0], [0.5, 0, 0, 0, 0, 0], None]
)
def test_an_action_out_of_range_is_the_users_mistake_and_changes_nothing(action: Any) -> None:
    env = fresh()
    before = env.run.fingerprint()
    with pytest.raises(UserError):
        env.step(action)
    assert issubclass(UserError, ValueError)
    assert env.run.fingerprint() == before
    env.step(NOTHING)


def test_mistakes_are_said_clearly() -> None:
    env = TrainingEnv("tiny", SMALL)
    for call in (
        env.action_masks,
        env.snapshot,
        env.fork,
        lambda: env.run,
        lambda: env.step(NOTHING),
    ):
        with pytest.raises(UserError, match="reset"):
            call()
    with pytest.raises(UserError, match="snapshot"):
        env.reset(options={"snapshots": 1})
    with pytest.raises(UserError, match="Snapshot"):
        env.reset(options={"snapshot": {"step": 3}})
    with pytest.raises(UserError, match="render"):
        TrainingEnv("tiny", SMALL, render_mode="human")
    with pytest.raises(UserError, match="did you mean 'width'"):
        TrainingEnv("tiny", {"model.widht": 3})
    with pytest.raises(UserError, match="tiny"):
        TrainingEnv("tyni")
    twin = SyntheticEnv()
    twin.reset(seed=0)
    with pytest.raises(UserError, match="synthetic"):
        env.restore(twin.snapshot())
    with pytest.raises(UserError):
        env.restore(Snapshot(step=0, tensors={}, state={}))


def test_info_holds_plain_values_and_no_clock() -> None:
    env = fresh(**FREE)
    _, first = env.reset(seed=0)
    json.dumps(first, allow_nan=False)
    for action in random_actions(0, 6):
        _, reward, terminated, truncated, info = env.step(action)
        assert {key: type(value) for key, value in info.items()} == {
            "step": int,
            "validation_loss": float,
            "fired": int,
            "masked": list,
            "flops": dict,
            "charges": float,
            "action_mask": list,
        }
        assert [type(reward), type(terminated), type(truncated)] == [float, bool, bool]
        assert all(type(value) is float for value in info["flops"].values())
        json.dumps(info, allow_nan=False)


def test_observations_are_not_shared() -> None:
    env = fresh()
    first = env.step(NOTHING)[0]
    kept = first.copy()
    second = env.step(NOTHING)[0]
    assert np.array_equal(first, kept)
    assert not np.shares_memory(first, second)


# ── compute ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def calm(**settings: Any) -> TrainingEnv:
    """An environment that charges for compute only."""
    return fresh(
        environment={"decision_steps": 5, "instability_charge": 0.0, "compute_charge": 0.5},
        **settings,
    )


def test_branches_are_charged_by_their_share_of_the_budget() -> None:
    env = calm()
    assert env.step(NOTHING)[4]["charges"] == 0
    for _ in range(2):
        branch = env.run.fork()
        branch.advance(3)
    env.run.evaluate()
    *_, info = env.step(NOTHING)
    assert info["charges"] == pytest.approx(0.5 * 6 / 30)
    assert info["flops"]["verify"] == pytest.approx(6 * info["flops"]["main"] / 10)
    assert env.step(NOTHING)[4]["charges"] == 0


def test_a_rewind_is_charged_once_and_ends_the_episode_earlier() -> None:
    env = calm()
    env.step(NOTHING)
    back = env.run.snapshot()
    env.step(NOTHING)
    env.run.advance(2)
    env.run.rewind(back)
    *_, info = env.step(NOTHING)
    assert info["charges"] == pytest.approx(0.5 * 7 / 30)
    assert info["step"] == 10
    assert info["flops"]["rewound"] == pytest.approx(7 * info["flops"]["main"] / 10)
    returned = [env.step(NOTHING) for _ in range(3)]
    assert all(step[4]["charges"] == 0 for step in returned)
    assert returned[-1][3]
    assert returned[-1][4]["step"] == 30 - 7
    spent = returned[-1][4]["flops"]
    assert spent["main"] + spent["rewound"] == pytest.approx(30 * spent["main"] / 23)


def test_what_other_branches_spent_is_not_charged_after_a_restore() -> None:
    env = calm()
    env.step(NOTHING)
    snapshot = env.snapshot()
    env.run.fork().advance(4)
    env.restore(snapshot)
    assert env.step(NOTHING)[4]["charges"] == 0
