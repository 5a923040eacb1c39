"""Imagined runs: what is known of them is what real ones show, and what the model says is what they are rewarded for."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.known_world import UNIFORM, Known, history
from trainenv.config.schema import RunConfig, TrainingConfig
from trainenv.envs.imagined_run import FORECAST, KNOWN, Root, record_histories
from trainenv.envs.observation import FEATURES
from trainenv.envs.training import TrainingEnv
from trainenv.envs.world_model import WorldModelEnv
from trainenv.interventions import ActionCodec
from trainenv.run import TrainingRun
from trainenv.training.history import history_of
from trainenv.types import Intervention, RunHistory, UserError

NOTHING = [0, 0, 0, 0, 0, 0]
CONFIG = TrainingConfig(steps=100, reset_warmup=4, schedule={"warmup": 0})
FREE = {"interventions": {"allow_spam": True, "allow_data_reorder": True, "allow_skip_batch": True}}
SMALL: dict[str, Any] = {
    "steps": 53,
    "batch_size": 4,
    "reset_warmup": 7,
    "model": {"width": 32, "layers": 1, "heads": 2, "context": 16},
    "schedule.warmup": 12,
    "validation.sequences": 4,
    "monitor.probe_every": 3,
    "environment.decision_steps": 5,
    **FREE,
}


class Draws:
    """In place of a generator: what it draws is given."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def random(self, count: int) -> np.ndarray:
        assert count == len(self.values)
        return np.array(self.values)


def imagined(
    model: Known | None = None, *histories: RunHistory, config: TrainingConfig = CONFIG, **how: Any
) -> WorldModelEnv:
    env = WorldModelEnv(model or Known(), histories or (history(),), config, **how)
    env.reset(seed=0)
    return env


def feature(observation: np.ndarray, name: str) -> float:
    return float(observation[FEATURES.index(name)])


def played(env: WorldModelEnv, actions: Any) -> list[tuple[Any, ...]]:
    steps = []
    for action in actions:
        steps.append(env.step(action))
        if steps[-1][2] or steps[-1][3]:
            break
    return steps


def random_actions(seed: int, count: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, [4, 3, 5, 2, 2, 2], (count, 6))


# ── the contract ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("divergence", ["sampled", "expected"])
def test_gymnasium_and_sb3_find_nothing_to_say(divergence: Any) -> None:
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    model = Known(
        reward=lambda action: 0.01 * action.sum(), hazard=(0.3, 0.2, 0.1, 0.0), instability=0.4
    )
    env = WorldModelEnv(model, [history(), history(20, left=80)], CONFIG, divergence=divergence)
    check_env(env, skip_render_check=True)
    check_env_sb3(env)


def test_the_spaces_are_those_of_the_training_environment() -> None:
    config = RunConfig.load("tiny", {"interventions.lr_scales": [1.0, 0.5]})
    env, real = WorldModelEnv(Known(), [history()], config), TrainingEnv(config)
    assert env.action_space == real.action_space
    assert env.observation_space == real.observation_space


def test_the_shipped_model_imagines() -> None:
    worldmodel = pytest.importorskip("worldmodel")
    env = WorldModelEnv(worldmodel.load_pretrained(), [history()], CONFIG)
    env.reset(seed=1)
    steps = played(env, random_actions(0))
    assert steps[-1][2] or steps[-1][3]
    assert all(env.observation_space.contains(step[0]) and math.isfinite(step[1]) for step in steps)


def test_the_same_seed_and_actions_give_the_same_and_another_seed_another() -> None:
    def seen(seed: int) -> list[Any]:
        env = imagined(
            Known(hazard=(0.3,) * 4), history(), history(20, left=80), history(30, left=70)
        )
        observation, _ = env.reset(seed=seed)
        return [
            observation.tobytes(),
            *[(s[0].tobytes(), *s[1:4]) for s in played(env, random_actions(3))],
        ]

    assert seen(1) == seen(1)
    assert len({str(seen(seed)) for seed in range(8)}) > 3


def test_a_fork_goes_on_by_itself() -> None:
    env = imagined(Known(hazard=(0.2,) * 4))
    env.step(NOTHING)
    fork = env.fork()
    ahead = [s[1:4] for s in played(env, [NOTHING] * 9)]
    assert [s[1:4] for s in played(fork, [NOTHING] * 9)] == ahead


# ── what is known ───────────────────────────────────────────────────────────────────────────────────────────────────


def real_and_imagined(
    at: int, actions: np.ndarray, before: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Observations of a real run from its decision `at` on, and of an imagined one that starts there."""
    config = RunConfig.load("tiny", SMALL)
    real = TrainingEnv(config)
    observation, _ = real.reset(seed=2)
    run, telemetry, codec = (
        TrainingRun.from_config(real.run.config),
        [],
        ActionCodec(config.interventions),
    )
    for action in before:
        observation, *_ = real.step(action)
        run.apply(codec.legal(action, run)[0])
        telemetry += run.advance(5)
    assert run.step == 5 * at
    here = history_of(run, telemetry, horizon=20, validation=run.evaluate())
    env = WorldModelEnv(Known(), [here], config)
    first, _ = env.reset()
    theirs, ours = [observation], [first]
    for action in actions:
        theirs.append(real.step(action)[0])
        observation, _, _, ended, _ = env.step(action)
        ours.append(observation)
        if ended:
            break
    return theirs, ours


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("at", [1, 2, 6])
def test_what_is_known_is_what_a_real_run_shows(at: int, seed: int) -> None:
    """From within the warm-up or after it, through resets and skips, up to the shorter last decision."""
    free_of_spam = np.array([1, 1, 1, 1, 1, 0])
    before, actions = random_actions(100 + seed, at) * free_of_spam, random_actions(seed)
    before[:, 2] %= 4
    actions[:, 2] %= 4  # SPAM resets momentum of its own accord
    theirs, ours = real_and_imagined(at, actions, before)
    root = [name for name in FEATURES if name not in ("validation_fall",)]
    for name in root:
        assert feature(ours[0], name) == pytest.approx(feature(theirs[0], name), abs=1e-6), name
    assert feature(ours[0], "validation_fall") == 0
    assert len(ours) == 12 - at
    for real, own in zip(theirs[1:], ours[1:]):
        for name in set(KNOWN) - {"flagged"}:
            assert feature(own, name) == pytest.approx(feature(real, name), abs=2e-6), name


def test_all_other_features_stay_as_at_the_root() -> None:
    env = imagined(Known(reward=lambda action: 0.1))
    first, _ = env.reset()
    others = [place for place, name in enumerate(FEATURES) if name not in (*KNOWN, *FORECAST)]
    for observation, *_ in played(env, random_actions(1)):
        assert np.array_equal(observation[others], first[others])


def test_flagged_data_stay_until_they_are_skipped() -> None:
    config = CONFIG.model_copy(
        update={"interventions": CONFIG.interventions.model_copy(update={"allow_skip_batch": True})}
    )
    env = imagined(None, history(flagged=3), config=config)
    assert env.action_masks()[-1]
    observation, *_ = env.step(NOTHING)
    assert feature(observation, "flagged") == 1
    observation, *_, info = env.step([0, 0, 0, 0, 0, 1])
    assert (feature(observation, "flagged"), info["masked"]) == (0, [])
    assert not env.action_masks()[-1]


def test_masks_are_the_codec_s_and_what_they_forbid_is_left_out() -> None:
    model = Known()
    env = imagined(model)
    for action in random_actions(2, 6):
        masks = ActionCodec(CONFIG.interventions).masks(env.state)
        assert np.array_equal(env.action_masks(), np.concatenate(masks))
        *_, info = env.step(action)
        legal = [int(value) if mask[value] else 0 for value, mask in zip(action, masks)]
        assert model.actions[-1] == tuple(legal)
        assert len(info["masked"]) == sum(int(value) != kept for value, kept in zip(action, legal))


def test_without_a_validation_the_clean_probe_then_the_training_loss_stands_for_it() -> None:
    bare = history(validation=math.nan)
    assert Root.of(bare, CONFIG).validation == pytest.approx(3.0)
    probed = history(validation=math.nan, probe_loss=2.5)
    assert Root.of(probed, CONFIG).validation == pytest.approx(2.5)


# ── rewards ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-0.5, 0.2), min_size=6, max_size=6), st.floats(1.0, 5.0))
def test_rewards_are_the_model_s_and_add_up_to_the_fall_of_the_log_loss(
    rewards: list[float], validation: float
) -> None:
    """Up to the bound at which a run counts as diverged."""
    coming = iter(rewards)
    env = imagined(
        Known(reward=lambda action: next(coming)),
        history(validation=validation),
        divergence="expected",
    )
    steps = played(env, [NOTHING] * 6)
    last = steps[-1][4]["validation_loss"]
    assert sum(step[1] for step in steps) == pytest.approx(math.log(validation / last), abs=1e-6)
    cap = 2 * UNIFORM
    for step, reward in zip(steps[:-1], rewards):
        assert step[1] == pytest.approx(reward, abs=1e-6)
        assert step[2:4] == (False, False)
    assert steps[-1][2] == (not last < cap)
    assert last <= cap * (1 + 1e-9)
    assert feature(steps[-1][0], "validation") == pytest.approx(math.log(last / UNIFORM), abs=1e-5)
    assert feature(steps[-1][0], "validation_fall") == pytest.approx(
        min(10, max(-10, 10 * steps[-1][1])), abs=1e-4
    )


def test_the_budget_truncates_after_a_last_shorter_decision() -> None:
    env = imagined(None, history(left=25))
    steps = played(env, [NOTHING] * 9)
    assert [step[4]["step"] for step in steps] == [50, 60, 65]
    assert [step[2:4] for step in steps] == [(False, False), (False, False), (False, True)]
    assert feature(steps[-1][0], "budget_left") == 0
    with pytest.raises(UserError, match="over"):
        env.step(NOTHING)


@settings(max_examples=50, deadline=None)
@example(
    h=0.998046875, reward=0.0, loss=1.0, draw=0.998046875
)  # what is left when it does not come is beyond all bounds
@given(st.floats(0, 1), st.floats(-0.3, 0.3), st.floats(1.0, 5.0), st.floats(0, 0.999))
def test_a_drawn_divergence_and_its_absence_make_the_model_s_reward(
    h: float, reward: float, loss: float, draw: float
) -> None:
    model = Known(reward=lambda action: reward, hazard=(h,) * 4)
    env = imagined(
        model,
        history(validation=loss),
        config=CONFIG.model_copy(update={"environment": free_of_caps()}),
    )
    state, latent = env.start(0)
    (after,) = env.imagine([state], latent[None], [NOTHING], Draws(draw))
    assert after.diverged == (draw < h)
    lost = math.log(loss / UNIFORM)
    if after.diverged:
        assert after.reward == pytest.approx(lost)
        assert after.after.validation == pytest.approx(UNIFORM)
    elif h < 0.99:
        assert h * lost + (1 - h) * after.reward == pytest.approx(reward, abs=1e-6)


def free_of_caps() -> Any:
    return CONFIG.environment.model_copy(update={"divergence_loss": 1e9})


def test_hazards_are_told_for_four_decisions_and_asked_with_all_that_was_done() -> None:
    model = Known(hazard=(0.0, 0.0, 0.0, 0.0))
    env = imagined(model)
    played(env, [[1, 0, 0, 0, 0, 0], NOTHING, [0, 1, 0, 0, 0, 0], NOTHING, NOTHING, NOTHING])
    done = (
        Intervention(lr_scale=0.8),
        Intervention(),
        Intervention(weight_decay_scale=0.5),
        Intervention(),
    )
    assert [tuple(entry) for entry in model.entries] == [done[:count] for count in (1, 2, 3, 4)]
    for place in range(4):
        env = imagined(Known(hazard=tuple(float(place == k) for k in range(4))))
        assert [step[2] for step in played(env, [NOTHING] * 6)] == [False] * place + [True]
    silent = imagined(model := Known(hazard=(1.0,) * 4), divergence="expected")
    assert [step[2:4] for step in played(silent, [NOTHING] * 6)][-1] == (False, True)
    assert model.entries == []


def test_alarms_are_charged_by_their_chance() -> None:
    env = imagined(Known(instability=0.4))
    steps = played(env, [NOTHING] * 6)
    assert [step[4]["charges"] for step in steps] == pytest.approx([0.001 * 0.1] * 4 + [0.0] * 2)
    assert [step[1] for step in steps] == pytest.approx([0.01 - 0.0001] * 4 + [0.01] * 2, abs=1e-6)


@pytest.mark.parametrize(
    ("reach", "left", "decisions", "further"),
    [(1, 60, 1, 0.5), (4, 60, 4, 0.5), (6, 60, 6, 0.0), (4, 20, 2, 0.0)],
)
def test_within_reach_the_value_stands_for_the_rest(
    reach: int, left: int, decisions: int, further: float
) -> None:
    env = imagined(Known(value=0.5), history(left=left), reach=reach)
    steps = played(env, [NOTHING] * 9)
    assert len(steps) == decisions
    assert steps[-1][2:4] == (False, True)
    assert [step[1] for step in steps] == pytest.approx(
        [0.01] * (decisions - 1) + [0.01 + further], abs=1e-6
    )
    assert steps[-1][4]["validation_loss"] == pytest.approx(
        2.0 * math.exp(-0.01 * decisions), rel=1e-5
    )


def test_many_at_once_are_as_each_alone_and_asked_for_together() -> None:
    model = Known(
        reward=lambda action: 0.01 * float(action @ [1, 2, 3, 4, 5, 6]),
        hazard=(0.0,) * 4,
        instability=0.4,
    )
    env = imagined(model, history(), history(20, left=80))
    states, latents = zip(*(env.start(number) for number in (0, 1, 1, 0)))
    states, latents = list(states), np.stack(latents)
    actions = random_actions(5, 12).reshape(3, 4, 6)
    alone = []
    for number, place in zip((0, 1, 1, 0), range(4)):
        env.reset(options={"root": number})
        alone.append([env.step(action) for action in actions[:, place]])
    model.calls = 0
    for count, chosen in enumerate(actions):
        before = env.futures
        steps = env.imagine(states, latents, list(chosen), np.random.default_rng(0))
        assert env.futures - before == 8  # four inferences, four entries
        states, latents = [step.after for step in steps], np.stack([step.latent for step in steps])
        for place, step in enumerate(steps):
            observation, reward, terminated, truncated, info = alone[place][count]
            del info["action_mask"]
            assert np.array_equal(step.after.observation, observation)
            assert (step.reward, step.diverged, step.ended, step.info) == (
                reward,
                terminated,
                truncated,
                info,
            )
    assert model.calls == 3 * 2  # a call for each root


# ── roots, and mistakes ─────────────────────────────────────────────────────────────────────────────────────────────


def test_recorded_histories_are_of_runs_that_nobody_steers() -> None:
    config = RunConfig.load("tiny", SMALL)
    histories, flops = record_histories(config, runs=2, seed=7)
    assert [h.telemetry[-1].step for h in histories] == [*range(20, 51, 5)] * 2
    run = TrainingRun.from_config(config.model_copy(update={"seed": 8}))
    telemetry = run.advance(20)
    first = histories[7]
    assert [t.loss for t in first.telemetry] == [t.loss for t in telemetry]
    assert (first.validation, first.decision_steps, len(first.lrs_ahead)) == (run.evaluate(), 5, 33)
    assert flops > 2 * 53 * run.flops_per_step
    WorldModelEnv(Known(), histories, config).reset(seed=0)


def test_roots_are_drawn_or_chosen() -> None:
    env = imagined(None, history(20, left=80), history(30, left=70), history(40, left=60))
    assert {env.reset()[1]["step"] for _ in range(40)} == {20, 30, 40}
    assert [env.reset(options={"root": number})[1]["step"] for number in range(3)] == [20, 30, 40]


def test_mistakes_are_said_clearly() -> None:
    with pytest.raises(UserError, match="record_histories"):
        WorldModelEnv(Known(), [], CONFIG)
    with pytest.raises(UserError, match="divergence"):
        WorldModelEnv(Known(), [history()], CONFIG, divergence="never")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="reach"):
        WorldModelEnv(Known(), [history()], CONFIG, reach=0)
    with pytest.raises(UserError, match="telemetry"):
        WorldModelEnv(Known(), [history(left=0)], CONFIG)
    env = WorldModelEnv(Known(), [history()], CONFIG)
    for call in (env.action_masks, lambda: env.step(NOTHING), lambda: env.state):
        with pytest.raises(UserError, match="reset"):
            call()
    for number in (1, -1, 0.0, "a"):
        with pytest.raises(UserError, match="root"):
            env.reset(options={"root": number})
    with pytest.raises(UserError, match="snapshot"):
        env.reset(options={"snapshot": None})
    env.reset()
    with pytest.raises(UserError, match="action"):
        env.step([9, 0, 0, 0, 0, 0])
    with pytest.raises(UserError, match="finite"):
        imagined(Known(reward=lambda action: math.nan)).step(NOTHING)
    with pytest.raises(UserError, match="runs"):
        record_histories(RunConfig.load("tiny"), runs=0)


def test_it_can_be_made_by_gymnasium() -> None:
    spec = gym.envs.registration.EnvSpec(
        "trainenv/Imagined-v0",
        WorldModelEnv,
        kwargs={"model": Known(), "histories": [history()], "config": CONFIG},
    )
    env = gym.make(spec)
    env.reset(seed=0)
    assert env.step(np.array(NOTHING))[1] == pytest.approx(0.01)
