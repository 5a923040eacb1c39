"""The synthetic environment: its contract, its law, and the optimum that it claims to know."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import product

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from trainenv.config.schema import EnvironmentConfig, InterventionConfig
from trainenv.envs.synthetic import REFERENCE, Law, SyntheticEnv, World
from trainenv.interventions import ActionCodec
from trainenv.types import Snapshot, UserError

NOTHING = [0, 0, 0, 0, 0, 0]
EVERYTHING = InterventionConfig(allow_spam=True, allow_data_reorder=True, allow_skip_batch=True)


def fresh(seed: int = 0, **settings) -> SyntheticEnv:
    env = SyntheticEnv(**settings)
    env.reset(seed=seed)
    return env


def play(env: SyntheticEnv, actions: Iterable) -> list[tuple]:
    """Results of all steps to the end of the episode, as values that compare with ==."""
    seen = []
    for action in actions:
        if env.state.over:
            break
        observation, *rest = env.step(action)
        seen.append((observation.tobytes(), *rest))
    return seen


def total(env: SyntheticEnv, actions: Iterable) -> float:
    return sum(step[1] for step in play(env, actions))


def random_actions(seed: int, count: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, [4, 3, 5, 2, 2, 2], (count, 6))


def seed_with_base(low: float, high: float) -> int:
    """The first seed of `reset` whose hidden base learning rate is in a range."""
    return next(seed for seed in range(1000) if low < fresh(seed).world.base < high)


# ── the contract ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_gymnasium_and_sb3_find_nothing_to_say():
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    env = gym.make("trainenv/Synthetic-v0").unwrapped
    check_env(env)
    check_env_sb3(env)


def test_the_spaces_and_masks_are_those_of_the_tiny_run():
    env = fresh()
    assert env.observation_space == gym.spaces.Box(-10, 10, (32,), np.float32)
    assert env.action_space == gym.spaces.MultiDiscrete([4, 3, 5, 2, 2, 2])
    assert env.action_masks().dtype == np.bool_
    assert env.action_masks().shape == (18,)
    assert np.array_equal(env.action_masks(), np.concatenate(ActionCodec().masks(env.state)))


def test_the_same_seed_gives_the_same_episode_and_another_seed_another():
    first, again, other = (play(fresh(seed), random_actions(3)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.parametrize("at", [0, 1, 17, 59])
def test_a_snapshot_goes_on_bit_for_bit_through_json(at):
    env = fresh(2, interventions=EVERYTHING)
    actions = random_actions(0)
    play(env, actions[:at])
    snapshot = env.snapshot()
    carried = Snapshot(
        step=snapshot.step,
        tensors={},
        state=json.loads(json.dumps(snapshot.state, allow_nan=False)),
    )
    fork, elsewhere = env.fork(), SyntheticEnv(interventions=EVERYTHING)
    elsewhere.reset(options={"snapshot": carried})
    ahead = play(env, actions[at:])
    assert play(fork, actions[at:]) == ahead
    assert play(elsewhere, actions[at:]) == ahead
    env.restore(snapshot)
    assert play(env, actions[at:]) == ahead


def test_a_fork_leaves_its_parent_alone():
    env = fresh(2)
    before = env.snapshot()
    play(env.fork(), random_actions(1))
    assert env.snapshot() == before


def test_rewards_without_charges_add_up_to_the_fall_in_the_log_loss():
    for seed in range(20):
        env = fresh(seed)
        steps = play(env, random_actions(seed))
        fall = math.log(REFERENCE / env.state.validation)
        assert sum(step[1] + step[4]["charges"] for step in steps) == pytest.approx(fall, abs=1e-12)


def test_the_charge_is_for_spikes():
    env = fresh(seed_with_base(4, 6))
    steps = play(env, [NOTHING] * 60)
    assert sum(step[4]["fired"] for step in steps) > 0
    assert all(
        step[4]["charges"] == EnvironmentConfig().instability_charge * step[4]["fired"]
        for step in steps
    )


def test_the_budget_truncates_and_a_step_after_the_end_is_an_error():
    env = fresh(seed_with_base(0.25, 0.5), decisions=7)
    steps = play(env, [NOTHING] * 9)
    assert [step[2:4] for step in steps] == [(False, False)] * 6 + [(False, True)]
    with pytest.raises(UserError, match="over"):
        env.step(NOTHING)
    env.reset()
    env.step(NOTHING)


def test_a_learning_rate_far_too_high_diverges_with_finite_values():
    env = fresh(seed_with_base(4, 6))
    seen = [env.step([3, 0, 1, 0, 0, 0])]
    while not (seen[-1][2] or seen[-1][3]):
        seen.append(env.step([3, 0, 0, 0, 0, 0]))
    assert seen[-1][2:4] == (True, False)
    assert env.state.validation == 2 * REFERENCE
    assert all(
        np.isfinite(observation).all() and math.isfinite(reward) for observation, reward, *_ in seen
    )


def test_info_holds_plain_values():
    for step in play(fresh(seed_with_base(4, 6)), random_actions(0)):
        info = step[4]
        assert {key: type(value) for key, value in info.items()} == {
            "step": int,
            "validation_loss": float,
            "fired": int,
            "masked": list,
            "charges": float,
            "action_mask": list,
        }
        assert type(step[1]) is float
        assert [type(flag) for flag in step[2:4]] == [bool, bool]
        json.dumps(info, allow_nan=False)


def test_masked_parts_are_left_out_and_named():
    env = fresh()
    *_, info = env.step(
        [0, 0, 2, 0, 1, 1]
    )  # ZClip is in force, reorder and skip are off by default
    assert info["masked"] == ["clip", "data_reorder", "skip_batch"]


@pytest.mark.parametrize(
    "action", [[4, 0, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0], [0, 0], [0.5, 0, 0, 0, 0, 0]]
)
def test_an_action_out_of_range_is_the_users_mistake(action):
    with pytest.raises(UserError):
        fresh().step(action)


def test_mistakes_are_said_clearly():
    for call in (
        SyntheticEnv().action_masks,
        SyntheticEnv().snapshot,
        SyntheticEnv().fork,
        SyntheticEnv().optimum,
    ):
        with pytest.raises(UserError, match="reset"):
            call()
    with pytest.raises(UserError, match="reset"):
        SyntheticEnv().step(NOTHING)
    with pytest.raises(UserError, match="snapshot"):
        SyntheticEnv().reset(options={"snapshots": 1})
    with pytest.raises(UserError, match="training run"):
        SyntheticEnv().restore(Snapshot(step=0, tensors={}, state={}))
    with pytest.raises(UserError, match="Snapshot"):
        SyntheticEnv().restore({})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="decisions"):
        SyntheticEnv(decisions=0)
    with pytest.raises(UserError, match="divergence_loss"):
        SyntheticEnv(environment=EnvironmentConfig(divergence_loss=1.0))


# ── the law ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_short_horizons_lie():
    """Cutting the learning rate half-way looks better at once and is worse at the end."""
    env = fresh(seed_with_base(0.9, 1.2), spikes=False)
    play(env, [NOTHING] * 25)
    kept, cut = env.fork(), env.fork()
    play(kept, [NOTHING])
    play(cut, [[1, 0, 0, 0, 0, 0]])
    assert cut.state.validation < kept.state.validation
    play(kept, [NOTHING] * 60)
    play(cut, [NOTHING] * 60)
    assert cut.state.validation > kept.state.validation


def test_the_best_look_one_decision_ahead_is_far_from_the_best_return():
    env = fresh(seed_with_base(0.9, 1.2), spikes=False)
    best = env.optimum()[0]
    gained = 0.0
    while not env.state.over:
        gained += env.step(
            max(
                ([rate, 0, 0, 0, 0, 0] for rate in range(4)),
                key=lambda action: env.fork().step(action)[1],
            )
        )[1]
    assert gained < best - 0.05


def test_spikes_become_likelier_steeply_above_the_critical_learning_rate():
    law = Law()
    assert law.chance(0.5) < 0.01 < law.chance(1.0) < 0.03
    assert law.chance(2.0) > 0.2
    assert law.chance(4.0) > 0.8


def at_a_spike() -> SyntheticEnv:
    """An environment whose next decision spikes, not the first, with nothing left of earlier spikes."""
    for seed in range(1000):
        env = fresh(seed, interventions=EVERYTHING)
        for decision in range(40):
            ahead = env.fork()
            if ahead.step(NOTHING)[4]["fired"] and decision > 5 and env.state.excess < 1e-3:
                return env
            env = ahead
            if env.state.over:
                break
    raise AssertionError("no spike found")


def test_a_spike_decays_and_an_adaptive_policy_makes_it_smaller():
    bare, clipped = at_a_spike(), at_a_spike()
    bare.step([0, 0, 1, 0, 0, 0])
    clipped.step(NOTHING)
    assert 0 < clipped.state.excess < 0.5 * bare.state.excess
    assert bare.state.gradient > clipped.state.gradient > 1
    calm = SyntheticEnv(spikes=False)
    calm.restore(bare.snapshot())
    play(calm, [NOTHING] * 3)
    assert calm.state.excess < 0.3 * bare.state.excess


def test_a_momentum_reset_shortens_a_spike_and_costs_progress_without_one():
    env = at_a_spike()
    env.step([0, 0, 1, 0, 0, 0])
    calm = SyntheticEnv(spikes=False)
    calm.restore(env.snapshot())
    kept, reset = calm.fork(), calm.fork()
    kept.step(NOTHING)
    reset.step([0, 0, 0, 1, 0, 0])
    assert reset.state.excess < 0.5 * kept.state.excess
    kept, reset = fresh(1, spikes=False), fresh(1, spikes=False)
    play(kept, [NOTHING] * 60)
    play(reset, [[0, 0, 0, 1, 0, 0], *[NOTHING] * 59])
    assert reset.state.validation > kept.state.validation


def test_a_flagged_spike_can_be_skipped_after_a_rewind():
    env = at_a_spike()
    before = env.snapshot()
    assert not env.action_masks()[-1]
    _, _, _, _, info = env.step(NOTHING)
    flagged = env.state.flagged[-1]
    assert info["fired"] == 1
    env.rewind(before)
    assert env.state.flagged_ahead == (flagged,)
    assert env.action_masks()[-1]
    end = env.state.horizon.end
    assert end == 59
    again = env.fork()
    assert again.step(NOTHING)[4]["fired"] == 1  # the same data, the same spike
    _, _, _, _, info = env.step([0, 0, 0, 0, 0, 1])
    assert env.state.order.index(env.state.decision - 1) != flagged
    assert info["charges"] == pytest.approx(0.1 / 60 + 0.001 * info["fired"])
    with pytest.raises(UserError, match="rewind"):
        env.rewind(fresh(99).snapshot())


def test_a_reorder_moves_the_data_ahead_and_no_data_behind():
    env = fresh(0, interventions=EVERYTHING)
    play(env, [NOTHING] * 10)
    env.step([0, 0, 0, 0, 1, 0])
    order = env.state.order
    assert [order.index(k) for k in range(10)] == list(range(10))
    assert [order.index(k) for k in range(10, 60)] != list(range(10, 60))
    assert len({order.index(k) for k in range(256)}) == 256


def test_a_budget_spent_elsewhere_brings_the_end_nearer():
    env = fresh(0, decisions=10)
    play(env, [NOTHING] * 4)
    env.spend(6)
    _, reward, terminated, truncated, info = env.step(NOTHING)
    assert (terminated, truncated) == (False, True)
    assert info["charges"] == pytest.approx(0.06)
    assert reward == pytest.approx(-0.06)


def test_the_hidden_base_is_a_function_of_the_seed_and_covers_its_range():
    bases = [World.of(seed).base for seed in range(500)]
    assert 0.25 < min(bases) < 0.3
    assert 5 < max(bases) < 6
    assert World.of(3) == World.of(3)


# ── the known optimum ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(2))
def test_brute_force_over_every_action_agrees_with_the_optimum(seed):
    """All pairs of the 4 × 3 × 4 × 2 actions that are legal in one decision or another (SPAM, reorder and skip are masked)."""
    env = fresh(seed, spikes=False, decisions=2)
    bound, plan = env.optimum()
    actions = [(*action, 0, 0) for action in product(range(4), range(3), range(4), range(2))]
    best = -math.inf
    for first in actions:
        ahead = env.fork()
        reward = ahead.step(first)[1]
        best = max(best, *(reward + ahead.fork().step(second)[1] for second in actions))
    assert bound == pytest.approx(best, abs=1e-12)
    assert total(env, [env.codec.encode(intervention) for intervention in plan]) == bound


@pytest.mark.parametrize("seed", range(3))
def test_brute_force_over_both_multipliers_agrees_with_the_optimum(seed):
    """All sequences over the last three decisions of a run."""
    env = fresh(seed, spikes=False, decisions=12)
    play(env, [[3, 1, 1, 0, 0, 0], *[NOTHING] * 8])
    both = [(rate, decay, 0, 0, 0, 0) for rate, decay in product(range(4), range(3))]
    best = max(total(env.fork(), sequence) for sequence in product(both, repeat=3))
    assert env.optimum()[0] == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("bounds", [(0.01, 10.0), (0.7, 1.15)])
@pytest.mark.parametrize("base", [(0.25, 0.5), (0.9, 1.2), (3, 6)])
def test_brute_force_over_learning_rates_agrees_with_the_optimum(base, bounds):
    """All sequences over five decisions, within wide and narrow bounds."""
    space = InterventionConfig(lr_bounds=bounds, weight_decay_scales=(1.0,))
    env = fresh(seed_with_base(*base), spikes=False, decisions=6, interventions=space)
    env.step([0, 0, 1, 0, 0, 0])
    rates = [(rate, 0, 0, 0, 0, 0) for rate in range(4)]
    best = max(total(env.fork(), sequence) for sequence in product(rates, repeat=5))
    bound, plan = env.optimum()
    assert bound == pytest.approx(best, abs=1e-12)
    scales = np.cumprod([intervention.lr_scale for intervention in plan])
    assert bounds[0] <= scales.min() <= scales.max() <= bounds[1]


def test_no_policy_beats_the_optimum_and_it_beats_doing_nothing():
    for seed in range(5):
        env = fresh(seed, spikes=False)
        bound, plan = env.optimum()
        assert total(env.fork(), [env.codec.encode(i) for i in plan]) == bound
        assert total(env.fork(), [NOTHING] * 60) < bound - 0.01
        assert all(total(env.fork(), random_actions(draw)) < bound for draw in range(5))


def test_going_on_along_the_optimum_stays_optimal():
    env = fresh(3, spikes=False)
    bound, plan = env.optimum()
    gained = total(env, [env.codec.encode(intervention) for intervention in plan[:20]])
    assert gained + env.optimum()[0] == pytest.approx(bound, abs=1e-12)


def test_with_spikes_the_optimum_bounds_every_return_and_the_reference_is_near_it():
    returns, bounds = [], []
    for seed in range(12):
        env = fresh(seed)
        bound, _ = env.optimum()
        for actions in (random_actions(seed), [NOTHING] * 60):
            calm = SyntheticEnv(spikes=False)
            calm.restore(env.snapshot())
            assert total(env.fork(), actions) <= total(calm, actions) + 1e-12 <= bound + 2e-12
        returns.append(
            total(env, [env.codec.encode(intervention) for intervention in env.reference()])
        )
        bounds.append(bound)
    assert all(value <= bound for value, bound in zip(returns, bounds))
    assert np.mean(returns) > np.mean(bounds) - 0.1


def test_at_the_end_there_is_nothing_left_to_gain():
    env = fresh(0, spikes=False, decisions=1)
    env.step(NOTHING)
    assert env.optimum() == (0.0, [])


# ── learning ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ppo_trains_and_acts():
    import torch
    from stable_baselines3 import PPO

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = PPO(
            "MlpPolicy",
            SyntheticEnv(),
            n_steps=256,
            batch_size=128,
            n_epochs=2,
            gamma=1.0,
            seed=0,
            device="cpu",
        )
        before = torch.cat([p.detach().clone().flatten() for p in model.policy.parameters()])
        model.learn(512)
        after = torch.cat([p.detach().flatten() for p in model.policy.parameters()])
    finally:
        torch.set_num_threads(threads)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
    env = SyntheticEnv()
    observation, _ = env.reset(seed=1)
    while not env.state.over:
        action, _ = model.predict(observation, deterministic=True)
        assert env.action_space.contains(action)
        observation, *_ = env.step(action)
