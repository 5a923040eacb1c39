"""Policies of Stable-Baselines3: they learn what a known world rewards; what that costs; they are kept without pickle."""

from __future__ import annotations

import ast
import json
import random
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.known_world import Known, history, telemetry
from trainenv.agents.rl.learners import DQN, MOVING, PPO, USEFUL, Learner, MaskablePPO, useful
from trainenv.agents.rl.policy import Policy, train_in_model, train_in_run
from trainenv.agents.rl.rl_methods import Apprentice, dqn_model, ppo_model, ppo_real, shortened
from trainenv.compare.allowed_flops import allowance
from trainenv.config.schema import RunConfig, TrainingConfig
from trainenv.envs.observation import FEATURES
from trainenv.envs.world_model import WorldModelEnv
from trainenv.interventions import ActionCodec
from trainenv.loop import train
from trainenv.records.run_folder import RunFolder, read_events
from trainenv.records.telemetry_log import read_telemetry
from trainenv.run import TrainingRun
from trainenv.types import DECISIONS, Intervention, UserError

CONFIG = TrainingConfig(steps=100, reset_warmup=4, schedule={"warmup": 0})
SMALL: dict[str, Any] = {
    "steps": 200,
    "batch_size": 4,
    "reset_warmup": 4,
    "model": {"width": 32, "layers": 1, "heads": 2, "context": 32},
    "schedule.warmup": 10,
    "validation": {"every": 50, "sequences": 8},
    "monitor.block": 8,
    "checkpoints.every": 100,
}
LEARNERS: list[Learner] = [
    PPO(decisions=1280, episodes=8, rollout=16, batch=64, lr=1e-2, reluctance=0.5),
    MaskablePPO(decisions=1280, episodes=8, rollout=16, batch=64, lr=1e-2, reluctance=0.5),
    DQN(decisions=1600, episodes=8, first=200, batch=64, lr=2e-3, follow=100, updates=4),
]


def cuts(action: np.ndarray) -> float:
    """A world that wants the learning rate cut by 20 % and a new clip policy left alone."""
    return 0.02 * (action[0] == 1) - 0.01 * (action[2] != 0) - 0.01 * (action[3] != 0)


def played(env: WorldModelEnv, agent: Any) -> float:
    """The return of an episode."""
    (observation, info), total, over = env.reset(seed=0), 0.0, False
    while not over:
        observation, reward, terminated, truncated, info = env.step(agent.act(observation, info))
        total, over = total + reward, terminated or truncated
    return total


# ── learning ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.name)
def test_they_learn_what_a_known_world_rewards(learner: Learner) -> None:
    """Doing nothing returns 0 in four decisions, at best there are 0.08."""
    model, roots = Known(reward=cuts), [history(), history(20, left=80)]
    trained = train_in_model(model, roots, CONFIG, learner)
    assert trained.decisions == learner.decisions
    assert len(trained.returns) == learner.decisions // DECISIONS
    assert played(WorldModelEnv(model, roots, CONFIG, reach=DECISIONS), trained.policy) > 0.055


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.name)
def test_the_same_seed_gives_the_same_policy_and_the_process_keeps_its_generators(
    learner: Learner,
) -> None:
    def weights(seed: int) -> bytes:
        changed = replace(learner, decisions=256, seed=seed)
        policy = train_in_model(Known(reward=cuts), [history()], CONFIG, changed).policy
        return b"".join(tensor.numpy().tobytes() for tensor in policy.network.state_dict().values())

    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    before = (
        random.getstate(),
        np.random.get_state()[1].tobytes(),  # noqa: NPY002
        torch.get_rng_state().numpy().tobytes(),
    )
    first, again, other = (weights(seed) for seed in (3, 3, 4))
    after = (
        random.getstate(),
        np.random.get_state()[1].tobytes(),  # noqa: NPY002
        torch.get_rng_state().numpy().tobytes(),
    )
    assert first == again != other
    assert before == after


def test_what_a_policy_is_not_to_see_changes_nothing() -> None:
    learner = PPO(decisions=256, episodes=8, rollout=8, batch=64, sees=("validation", "lr"))
    policy = train_in_model(Known(reward=cuts), [history()], CONFIG, learner).policy
    rng, seen = np.random.default_rng(0), np.isin(FEATURES, learner.sees)
    with torch.no_grad():
        policy.network.action_net.weight.mul_(300)  # so that what is seen decides
    chosen = set()
    for _ in range(20):
        one, other = rng.normal(size=(2, len(FEATURES))).astype(np.float32)
        chosen.add(tuple(policy.act(one, {})))
        assert np.array_equal(policy.act(np.where(seen, one, other), {}), policy.act(one, {}))
    assert len(chosen) > 1


def test_ppo_starts_near_doing_nothing() -> None:
    from trainenv.agents.rl.env_views import ImaginedEpisodes, View

    episodes = ImaginedEpisodes(
        WorldModelEnv(Known(), [history()], CONFIG), View(sees=MOVING), episodes=2, seed=0
    )
    for reluctance, low, high in ((0.0, 0.24, 0.26), (3.0, 0.85, 0.89)):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            policy = PPO(reluctance=reluctance).learner(episodes).policy
            chance = (
                policy.get_distribution(torch.zeros(1, len(FEATURES))).distribution[0].probs[0, 0]
            )
        assert low < float(chance) < high


def test_episodes_side_by_side_are_those_of_the_environment() -> None:
    from trainenv.agents.rl.env_views import ImaginedEpisodes, View

    env = WorldModelEnv(Known(reward=cuts), [history(left=30)], CONFIG, divergence="expected")
    vectors = np.array(
        [ActionCodec().encode(intervention) for intervention in useful(ActionCodec())]
    )
    view = View(sees=FEATURES, actions=vectors, scale=50.0)
    many, choices = (
        ImaginedEpisodes(env, view, episodes=3, seed=0),
        np.random.default_rng(0).integers(len(vectors), size=(7, 3)),
    )
    first = many.reset()
    returned = np.zeros(3)
    for count, chosen in enumerate(choices):
        if count % 3 == 0:
            alone = [env.fork() for _ in range(3)]
            for one in alone:
                one.reset()
        expected = [one.step(vectors[choice]) for one, choice in zip(alone, chosen)]
        observations, rewards, overs, infos = many.step(chosen)
        assert rewards == pytest.approx([50 * step[1] for step in expected], abs=1e-5)
        assert overs.tolist() == [step[3] for step in expected] == [count % 3 == 2] * 3
        returned += rewards / 50
        seen = [info["terminal_observation"] for info in infos] if overs.any() else observations
        assert np.array_equal(seen, [step[0] for step in expected])
        if overs.any():
            assert np.array_equal(observations, first)
            assert many.returns[-3:] == pytest.approx(returned, abs=1e-6)
            returned[:] = 0


# ── what it costs ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_flops_of_a_policy_in_a_world_model() -> None:
    ppo = PPO(decisions=128, episodes=4, rollout=16, epochs=3, batch=32, width=8)
    trained = train_in_model(Known(), [history()], CONFIG, ppo, flops_per_state=1000.0)
    weights = sum(parameter.numel() for parameter in trained.policy.network.parameters())
    assert trained.flops == {"model": weights * (2 * 128 + 6 * 3 * 128) + 1000.0 * (128 + 1)}
    dqn = DQN(decisions=128, episodes=4, first=64, updates=2, batch=16, width=8)
    trained = train_in_model(Known(), [history()], CONFIG, dqn, flops_per_state=0.0)
    weights = sum(parameter.numel() for parameter in trained.policy.network.q_net.parameters())
    updates = 2 * ((128 - 64) // 4)  # after each decision of all four but the first 64
    assert trained.flops == {"model": weights * (2 * 128 + 8 * 16 * updates)}


def test_real_runs_cost_what_they_cost_and_end_before_the_limit() -> None:
    config = RunConfig.load(
        "tiny", SMALL | {"steps": 24, "environment.decision_steps": 4, "schedule.warmup": 2}
    )
    learner = PPO(decisions=24, rollout=8, batch=8, sees=FEATURES, width=8)
    whole = train_in_run(config, learner)
    assert (whole.decisions, whole.stopped, len(whole.returns)) == (24, False, 4)
    real, run = whole.flops["verify"] + whole.flops["evaluate"], TrainingRun.from_config(config)
    assert whole.flops["verify"] == pytest.approx(24 * 4 * run.flops_ahead)
    assert whole.flops["evaluate"] > (24 + 4) * run.flops_per_evaluation  # and the monitor's looks
    for share in (0.4, 0.5, 0.54):
        limited = train_in_run(config, learner, flops=share * real)
        spent = limited.flops["verify"] + limited.flops["evaluate"]
        assert limited.stopped
        assert (share - 0.15) * real < spent <= share * real


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.name)
def test_training_in_a_world_model_ends_before_the_limit(learner: Learner) -> None:
    learner = replace(learner, decisions=480)
    whole = train_in_model(Known(), [history()], CONFIG, learner, flops_per_state=1e5).flops[
        "model"
    ]
    limited = train_in_model(
        Known(), [history()], CONFIG, learner, flops_per_state=1e5, flops=0.6 * whole
    )
    assert limited.stopped
    assert 0.4 * whole < limited.flops["model"] <= 0.6 * whole


def test_it_stops_when_asked() -> None:
    trained = train_in_model(
        Known(),
        [history()],
        CONFIG,
        PPO(decisions=2000, episodes=8, rollout=8, batch=64),
        stop=lambda: True,
    )
    assert (trained.stopped, trained.decisions) == (True, 8)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=[0, 1], ids=["ppo", "dqn"])
def policy(request: pytest.FixtureRequest) -> Policy:
    learner = LEARNERS[request.param]
    return train_in_model(
        Known(reward=cuts), [history()], CONFIG, replace(learner, decisions=400)
    ).policy


def test_a_policy_comes_back_as_it_was(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path / "policy")
    back = Policy.load(tmp_path / "policy")
    assert (back.learner, back.sizes, back.actions) == (
        policy.learner,
        policy.sizes,
        policy.actions,
    )
    for observation in (
        np.random.default_rng(0).normal(0, 3, (50, len(FEATURES))).astype(np.float32)
    ):
        action = back.act(observation, {})
        assert np.array_equal(action, policy.act(observation, {}))
        ActionCodec().decode(action)
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == [
        "policy.json",
        "policy.safetensors",
    ]


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "policy.json").unlink(),
        lambda folder: (folder / "policy.safetensors").unlink(),
        lambda folder: (folder / "policy.json").write_text("{"),
        lambda folder: (folder / "policy.json").write_text("[]"),
        lambda folder: (folder / "policy.safetensors").write_bytes(b"\x80\x04K\x01."),  # a pickle
        lambda folder: changed(folder, "format", "another"),
        lambda folder: changed(folder, "features", ["loss"]),
        lambda folder: changed(folder, "sizes", [4, 3]),
        lambda folder: changed(folder, "actions", [[0, 0, 0, 0, 0, 0]]),
        lambda folder: changed(folder, "learner", {"name": "a2c", "sees": []}),
        lambda folder: changed(folder, "learner", {"name": "ppo", "sees": [], "width": 9}),
        lambda folder: changed(folder, "learner", {"name": "ppo", "sees": [], "width": 10**9}),
    ],
)
def test_a_damaged_policy_is_refused(harm: Any, policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    harm(tmp_path)
    with pytest.raises(UserError, match=r"policy|width"):
        Policy.load(tmp_path)


def changed(folder: Path, key: str, value: Any) -> None:
    card = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(card | {key: value}))


# ── the package, and mistakes ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["policy", "learners", "rl_methods"])
def test_the_package_is_imported_late(name: str) -> None:
    """Neither it nor the one module that needs it at once."""
    source = ast.parse((Path(__file__).parents[2] / "agents" / "rl" / f"{name}.py").read_text())
    late = [node for node in ast.walk(source) if isinstance(node, ast.Import | ast.ImportFrom)]
    at_once = [ast.unparse(node) for node in source.body if node in late]
    assert not [
        line for line in at_once if "stable_baselines3" in line.split()[1] or "env_views" in line
    ]


def test_without_the_package_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(UserError, match=r"pip install 'trainenv\[sb3\]'"):
        train_in_model(Known(), [history()], CONFIG)
    with pytest.raises(UserError, match=r"pip install 'trainenv\[sb3\]'"):
        train_in_run(RunConfig.load("tiny", SMALL))


def test_the_list_is_of_what_the_action_space_has() -> None:
    config = CONFIG.interventions
    usual = useful(ActionCodec(config))
    assert usual == USEFUL[:-1]
    assert usual[0].does_nothing
    skips = useful(ActionCodec(config.model_copy(update={"allow_skip_batch": True})))
    assert skips == USEFUL
    few = useful(ActionCodec(config.model_copy(update={"lr_scales": (1.0, 0.5)})))
    assert {intervention.lr_scale for intervention in few} == {1.0}
    assert Intervention(clip="arc") in few


@pytest.mark.parametrize(
    "wrong",
    [
        {"decisions": 0},
        {"width": 1.5},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"sees": ("lr", "luck")},
        {"width": 10**6},
        {"seed": 2**32},
    ],
)
def test_bad_hyperparameters(wrong: dict[str, Any]) -> None:
    for learner in (PPO, DQN):
        with pytest.raises(UserError, match=next(iter(wrong))):
            learner(**wrong)


# ── methods ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["ppo-model", "dqn-model", "ppo-real"])
def test_methods_stay_within_the_budget_and_steer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.load("tiny", SMALL | {"seed": 2**40 + 7})
    smaller = {
        "PPO": {"decisions": 256, "episodes": 8, "batch": 64, "reluctance": 0.0},
        "DQN": {"decisions": 256, "first": 64, "batch": 32},
    }
    made = {"PPO": PPO, "DQN": DQN}
    for learner, values in smaller.items():
        little = partial(
            lambda kind, values, **asked: kind(**asked | values | {"width": 8}),
            made[learner],
            values,
        )
        monkeypatch.setattr(f"trainenv.agents.rl.rl_methods.{learner}", little)
    model = Known(reward=cuts)
    methods = {
        "ppo-model": partial(ppo_model, model=model),
        "dqn-model": partial(dqn_model, model=model),
        "ppo-real": ppo_real,
    }
    folder = tmp_path / "run"
    summary = methods[name](config, folder, lambda run, window: None, lambda: False)
    assert summary["ended"] == "budget spent"
    assert summary["flops"]["model"] > 0
    assert sum(summary["flops"].values()) <= 1.005 * allowance(config)
    rows, events = read_telemetry(folder), read_events(folder)
    assert rows["progress"].iloc[-1] == pytest.approx(1, abs=0.02)
    assert Policy.load(folder / "policy").learner.seed == 7
    acted = [event["step"] for event in events if event["kind"] == "intervention"]
    if name == "ppo-real":
        assert summary["flops"]["verify"] > 0.2 * sum(summary["flops"].values())
        assert summary["step"] < 110
    else:
        assert min(acted) >= 24  # the end of the first block after a tenth
        assert summary["step"] > 120


def test_an_apprentice_leaves_a_diverged_run_alone() -> None:
    class Run:
        done, step, config = False, 40, CONFIG

    lost = [telemetry(step, loss=float("nan")) for step in range(1, 41)]
    apprentice = Apprentice(
        train=lambda histories: pytest.fail("nothing to learn from"), until=10, again=10
    )
    assert apprentice.on_block_end(Run(), lost).events == ()  # type: ignore[arg-type]
    assert apprentice.acting is None


def test_an_apprentice_trains_anew_on_what_is_newest(tmp_path: Path) -> None:
    config = RunConfig.load("tiny", SMALL | {"environment.decision_steps": 8})
    run, trainings = TrainingRun.from_config(config), list[tuple[int, list[int]]]()
    cut = train_in_model(
        Known(), [history()], CONFIG, PPO(decisions=64, episodes=4, rollout=8, batch=32)
    )

    def train_again(histories: Any) -> Any:
        trainings.append((run.step, [h.telemetry[-1].step for h in histories]))
        return replace(cut, flops={"model": 2 * run.flops_per_step})

    train(
        run,
        RunFolder.create(tmp_path / "run", config),
        callback=Apprentice(train=train_again, until=20, again=50),
    )
    assert [step for step, _ in trainings] == [
        24,
        74,
        124,
    ]  # ends of blocks; none within 50 steps of the end
    assert trainings[0][1] == [16, 24]
    assert trainings[1][1] == [16, 24, 32, 40, 48, 50, 58, 66, 74]
    assert (len(trainings[2][1]), trainings[2][1][-1]) == (16, 124)
    assert run.ledger["model"] == pytest.approx(3 * 2 * run.flops_per_step)
    assert run.horizon.end <= 200 - 6


def test_a_shortened_run_goes_the_same_way() -> None:
    plant = {"at": 800, "kind": "random_tokens", "steps": 8}
    config = RunConfig.load(
        "tiny", {"steps": 1600, "stressors.planted": [plant], "environment.decision_steps": 48}
    )
    short = shortened(config, 16)
    assert (
        short.steps,
        short.schedule.warmup,
        short.reset_warmup,
        short.environment.decision_steps,
    ) == (100, 3, 1, 3)
    assert [(p.at, p.kind, p.steps) for p in short.stressors.planted] == [(50, "random_tokens", 1)]
    assert short.validation.sequences == 8
    same = {"optimizer", "model", "clip", "corpus", "seed", "batch_size"}
    assert short.model_dump(include=same) == config.model_dump(include=same)
