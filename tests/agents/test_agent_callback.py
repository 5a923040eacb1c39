"""An agent in a driven run sees what the environment shows, acts as it would there, pays for its looks and survives a kill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv import RunConfig, Telemetry, TrainingRun
from trainenv.agents import AgentCallback, ClipOnly, DoNothing
from trainenv.agents.agent_callback import _written
from trainenv.agents.contract import Action, Observation
from trainenv.agents.waste_budget import ComputeDebt
from trainenv.config.presets import find, read_yaml
from trainenv.envs.training import TrainingEnv
from trainenv.loop import resume, train
from trainenv.records.run_folder import RunFolder, read_events
from trainenv.records.telemetry_log import telemetry_of
from trainenv.tools.json_lines import plain
from trainenv.types import Reading, UserError

NERVOUS = read_yaml(find("uncertainty")) | {
    "window": 16,
    "min_history": 4,
    "threshold": 0.2,
    "single": 0.5,
    "lenient": 1.0,
    "refractory": 3,
}
SMALL: dict[str, Any] = {
    "steps": 43,
    "batch_size": 4,
    "reset_warmup": 4,
    "model": {"width": 32, "layers": 1, "heads": 2, "context": 32},
    "schedule.warmup": 3,
    "validation": {"every": 20, "sequences": 4},
    "checkpoints": {"every": 10, "moments": "exact"},
    "monitor": {"block": 5, "probe_every": 3, "uncertainty": NERVOUS},
    "environment.decision_steps": 10,
    "interventions": {"allow_spam": True, "allow_data_reorder": True, "allow_skip_batch": True},
}
CONFIG = RunConfig.load("tiny", SMALL)


@dataclass
class Listed:
    """Takes the actions of a list, one a decision, and remembers what it was shown."""

    actions: np.ndarray
    count: int = 0
    seen: list[tuple[bytes, dict[str, Any]]] = field(default_factory=list)

    def act(self, observation: Observation, info: Mapping[str, Any], /) -> Action:
        self.seen.append(
            (
                observation.tobytes(),
                {key: np.asarray(info[key]).tolist() for key in info if key != "flops"},
            )
        )
        self.count += 1
        return self.actions[self.count - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def random_actions(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, [4, 3, 5, 2, 2, 2], (8, 6))


def in_the_environment(actions: np.ndarray) -> tuple[Listed, TrainingRun]:
    """The run as the environment trains it, from the same seed."""
    env, agent = TrainingEnv(CONFIG), Listed(actions)
    observation, info = env.reset(options={"snapshot": TrainingRun.from_config(CONFIG).snapshot()})
    over = False
    while not over:
        shown = {
            name: value for name, value in info.items() if name not in ("charges", "action_mask")
        }  # of the reward, no agent's business; the mask is shown flat
        action = agent.act(observation, shown | {"action_masks": env.action_masks()})
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    return agent, env.run


def drives(
    path: Path, callback: AgentCallback | None, config: RunConfig = CONFIG, **more: Any
) -> tuple[dict[str, Any], TrainingRun]:
    run = TrainingRun.from_config(config)
    return train(run, RunFolder.create(path, config), callback=callback, **more), run


# ── what it is shown ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", [0, 1])
def test_it_sees_and_does_what_it_would_in_the_environment(seed: int, tmp_path: Path) -> None:
    """Bit for bit, and the run ends as it would there."""
    expected, trained = in_the_environment(random_actions(seed))
    agent = Listed(random_actions(seed))
    _, run = drives(tmp_path / "run", AgentCallback(agent=agent))
    assert len(agent.seen) == 5  # steps 0, 10, 20, 30, 40; the run ends at 43
    assert agent.seen == expected.seen
    assert run.fingerprint() == trained.fingerprint()
    assert [info["step"] for _, info in agent.seen] == [0, 10, 20, 30, 40]
    assert any(info["fired"] for _, info in agent.seen)
    assert any(info["masked"] for _, info in agent.seen)


def test_what_was_done_is_on_record(tmp_path: Path) -> None:
    """The part of the action that the masks allow: ZClip is in force already, so setting it is left out."""
    agent = Listed(
        np.array([[1, 0, 2, 0, 0, 0], [0, 0, 3, 0, 0, 0], [0] * 6, [0, 0, 0, 1, 0, 0], [0] * 6])
    )
    drives(tmp_path / "run", AgentCallback(agent=agent))
    done = [
        (e["step"], e["detail"])
        for e in read_events(tmp_path / "run")
        if e["kind"] == "intervention"
    ]
    assert done == [(0, {"lr_scale": 0.8}), (10, {"clip": "arc"}), (30, {"momentum_reset": True})]


def test_doing_nothing_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    _, run = drives(tmp_path / "run", AgentCallback(agent=DoNothing()))
    straight = TrainingRun.from_config(CONFIG)
    straight.advance(CONFIG.steps)
    assert run.fingerprint() == straight.fingerprint()


def test_clip_only_sets_it_once(tmp_path: Path) -> None:
    _, run = drives(tmp_path / "run", AgentCallback(agent=ClipOnly("arc")))
    assert [(step, one.clip) for step, one in run.applied] == [(0, "arc")]
    assert [e["step"] for e in read_events(tmp_path / "run") if e["kind"] == "intervention"] == [0]
    same = RunConfig.load(CONFIG, {"clip.policy": "arc"})
    straight = TrainingRun.from_config(same)
    straight.advance(CONFIG.steps)
    assert all((a == b).all() for a, b in zip(run.model.parameters(), straight.model.parameters()))


# ── blocks that end elsewhere ───────────────────────────────────────────────────────────────────────────────────────


def test_where_a_block_ends_past_a_decision_it_decides_there(tmp_path: Path) -> None:
    config = RunConfig.load(
        CONFIG, {"monitor.block": 7, "checkpoints.every": 1000, "validation.every": 0}
    )
    agent = Listed(np.zeros((8, 6), dtype=np.int64))
    drives(tmp_path / "run", AgentCallback(agent=agent), config)
    steps = [info["step"] for _, info in agent.seen]
    assert steps[0] == 0
    assert [step // 10 for step in steps] == [0, 1, 2, 3, 4]  # one in each decision's stretch
    assert all(step % 10 < 7 for step in steps)


# ── what it pays ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_its_looks_are_charged(tmp_path: Path) -> None:
    alone, _ = drives(tmp_path / "alone", None)
    summary, run = drives(tmp_path / "run", AgentCallback(agent=DoNothing()))
    looked = summary["flops"]["evaluate"] - alone["flops"]["evaluate"]
    assert looked == pytest.approx(5 * run.flops_per_evaluation)
    assert summary["step"] == 43


@pytest.mark.parametrize("decision", [1, 10])
def test_paid_for_the_whole_costs_no_more_than_doing_nothing(decision: int, tmp_path: Path) -> None:
    config = RunConfig.load(
        CONFIG,
        {"environment.decision_steps": decision, "monitor.probe_every": 0, "validation.every": 0},
    )
    alone, _ = drives(tmp_path / "alone", None, config)
    summary, run = drives(tmp_path / "run", AgentCallback(agent=DoNothing(), pays=True), config)
    total, most = sum(summary["flops"].values()), sum(alone["flops"].values())
    assert most - run.flops_per_step - 2 * run.flops_per_evaluation <= total <= most
    assert run.horizon.progress(run.step) == 1.0


@settings(max_examples=50, deadline=None)
@given(amounts=st.lists(st.floats(0, 1e7), max_size=20), each=st.floats(1.0, 1e6))
def test_a_tab_takes_what_was_spent_and_less_than_a_step_more(
    amounts: list[float], each: float
) -> None:
    class Run:
        flops_ahead = each

    tab = ComputeDebt()
    taken = sum(tab.settle(Run(), amount) for amount in amounts)  # type: ignore[arg-type]
    assert sum(amounts) <= (taken + 1e-6) * each * (1 + 1e-9)
    assert (taken - 1 - 1e-6) * each <= sum(amounts) * (1 + 1e-9)


# ── after a kill ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("every", "killed_at"), [(10, 20), (8, 24)])
def test_it_goes_on_to_the_same_end_after_a_kill(
    every: int, killed_at: int, tmp_path: Path
) -> None:
    """Also from a checkpoint in the middle of a decision."""
    config = RunConfig.load(CONFIG, {"checkpoints.every": every, "checkpoints.keep_last": 50})
    whole = Listed(random_actions(3))
    _, straight = drives(tmp_path / "whole", AgentCallback(agent=whole, pays=True), config)
    agent = Listed(random_actions(3))
    run = TrainingRun.from_config(config)
    first = AgentCallback(agent=agent, pays=True)
    train(
        run,
        RunFolder.create(tmp_path / "run", config),
        callback=first,
        stop=lambda: run.step >= killed_at,
    )
    before = len(agent.seen)
    again, second = AgentCallback(agent=agent, pays=True), TrainingRun.from_config(config)
    agent.count = -1  # what a new process would not know
    folder, _ = resume(tmp_path / "run", second, again)
    train(second, folder, callback=again)
    assert 0 < before < len(agent.seen)
    assert agent.seen == whole.seen
    assert second.fingerprint() == straight.fingerprint()
    assert second.ledger.as_dict() == straight.ledger.as_dict()


def test_steps_survive_json_whatever_was_measured() -> None:
    reading = Reading(volatility=1.5, threshold=float("inf"), fired=True)
    lost = Telemetry(
        *(3, 2, 64, float("nan"), float("inf"), 1.0, float("inf"), 0.5, "arc"),
        *(1e-3, 0.5, 0.1, 1.0, -1, 0.25),
        stressors=("lr_spike",),
        reading=reading,
    )
    kept = json.loads(json.dumps(plain(_written(lost)), allow_nan=False))
    assert repr(telemetry_of([kept | kept["reading"]])) == repr([lost])


def test_no_agent() -> None:
    with pytest.raises(UserError, match="act"):
        AgentCallback(agent=42)  # type: ignore[arg-type]
