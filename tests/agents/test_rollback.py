"""Harm that has begun is gone round: when, how, what it costs, and that nothing has happened where the way round is no better."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.support.steered_runs import LOWER, SMALL, Promising, Steered, steered, tokens, toy
from trainenv.agents.branching import Branching, rollback, triggers
from trainenv.agents.branching.rewind_points import RewindPoints
from trainenv.checkpoints.store import CheckpointStore
from trainenv.config.schema import RunConfig
from trainenv.loop import train
from trainenv.records.decision_files import read_decisions
from trainenv.records.metrics import measure
from trainenv.records.run_folder import RunFolder
from trainenv.records.telemetry_log import read_telemetry
from trainenv.run import TrainingRun
from trainenv.types import Intervention
from trainenv.verification.replay import Replay
from trainenv.verification.verify import Verification

pytestmark = pytest.mark.usefixtures("alarms", "at_once")
HARM: dict[str, Any] = {"triggers": ["harm"], "default_clip": False}
KICK = {60: -200.0}  # at a third of the rate it does harm too, but less


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Harm is answered at the first probe that sees it, and small gains count."""
    monkeypatch.setattr(triggers, "_HEALS", 0.0)
    monkeypatch.setattr(rollback, "_MARGIN", 0.01)


def corrupt(run: TrainingRun, first: int, last: int) -> TrainingRun:
    """These batches run backwards."""

    def batches(index: int) -> Tensor:
        return tokens(index).flip(1) if first <= index <= last else tokens(index)

    run._batches = batches
    return run


def same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way round is the way that was gone, but for the data."""
    monkeypatch.setattr(rollback, "_RATE", 1.0)


def the_detour(of: Steered) -> dict[str, Any]:
    (found,) = (decision for decision in of.decisions if decision["why"] == "harm")
    return found


# ── the way ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_from_the_newest_state_before_it_to_where_the_run_is() -> None:
    found = steered(toy(kicked=KICK, branching=HARM), planner=Promising())
    rewind, decision = found.of("rewind")[0], the_detour(found)
    assert (rewind["step"], rewind["detail"]["to"]) == (
        61,
        56,
    )  # at the look itself, and the checkpoint before it
    assert rewind["detail"]["harm"] > 1
    assert (decision["at"], decision["step"], decision["accepted"]) == (61, 56, 1)
    control, way = decision["branches"]
    assert way["interventions"] == [{"lr_scale": 1 / 3, "skip_batch": True}, {"lr_scale": 3.0}]
    assert way["delta"] < -0.01
    told = read_telemetry(found.path)
    assert control["losses"] == told[(told["line"] == 0) & (told["step"] > 56)]["loss"].tolist()
    assert way["losses"] == told[(told["line"] == 1) & (told["step"] <= 61)]["loss"].tolist()


@pytest.mark.parametrize(("share", "at"), [(0.0, 61), (0.02, 64), (0.05, 67)])
def test_harm_must_last_a_share_of_the_run(
    share: float, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "_HEALS", share)
    found = steered(toy(kicked=KICK, branching=HARM), planner=Promising())
    assert the_detour(found)["at"] == at  # of 120 steps


def test_harm_that_heals_sooner_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "_HEALS", 0.5)
    found = steered(toy(kicked=KICK, branching=HARM), planner=Promising())
    assert not found.decisions
    assert not found.of("rewind")


def test_a_rollback_must_gain_more_than_a_lower_rate_does(monkeypatch: pytest.MonkeyPatch) -> None:
    found = steered(toy(kicked=KICK, branching=HARM), planner=Promising())
    gain = -the_detour(found)["branches"][1]["delta"]
    for margin, accepted in ((0.9 * gain, 1), (1.1 * gain, None)):
        monkeypatch.setattr(rollback, "_MARGIN", margin)
        found = steered(toy(kicked=KICK, branching=HARM), planner=Promising())
        assert the_detour(found)["accepted"] == accepted


def test_the_rate_is_what_it_was_once_it_is_back() -> None:
    found = steered(toy(kicked=KICK, branching=HARM), planner=Promising())
    scales = read_telemetry(found.path, kept_only=True).set_index("step")["lr_scale"]
    assert scales[[56, 57, 61, 62]].tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1])
    assert found.run.lr_scale == pytest.approx(1.0)


def test_data_that_did_it_are_skipped() -> None:
    found = steered(corrupt(toy(lr=0.3, branching=HARM), 56, 75), planner=Promising())
    decision = the_detour(found)
    assert decision["accepted"] == 1
    start, at = decision["step"], decision["at"]
    kept = read_telemetry(found.path, kept_only=True)["data_index"]
    assert not set(range(start, at + 1)) & set(
        kept
    )  # the one to come was skipped too: there is a look at each step
    assert set(range(start)) | {at + 1} <= set(kept)


def test_harm_that_is_gone_round_in_time_is_no_event() -> None:
    short, looks = {60: -80.0}, {"block": 16, "probe_every": 4}
    left = steered(
        toy(kicked=short, branching={"triggers": []}, monitor=looks), planner=Promising()
    )
    assert measure(left.path).instability.events == 1
    found = steered(toy(kicked=short, branching=HARM, monitor=looks), planner=Promising())
    assert the_detour(found)["accepted"] == 1
    instability = measure(found.path).instability
    assert (instability.events, instability.cut_short) == (0, 1)


def test_what_was_decided_on_the_way_holds_but_for_a_higher_rate() -> None:
    def way(*interventions: Intervention) -> Intervention:
        run = toy(kicked=KICK)
        run.advance(56)
        snapshot, since = run.snapshot(), run.advance(3)
        for one in interventions:
            run.apply(one)
        since += run.advance(2)
        point = RewindPoints(deque([snapshot])).fork_before_harm(run, 61, since)
        assert point is not None
        plan = rollback.plan_rollback(run, point, Verification()).plan
        return plan.candidates[0].interventions[0]

    assert way().lr_scale == pytest.approx(1 / 3)
    assert way(LOWER).lr_scale == pytest.approx(0.8 / 3)
    assert way(Intervention(lr_scale=1.1)).lr_scale == pytest.approx(1 / 3)
    assert way().clip is None
    assert way(Intervention(clip="zclip"), Intervention(clip="arc"), LOWER).clip == "arc"


def test_without_a_state_from_before_it_there_is_no_way() -> None:
    run = toy(kicked=KICK)
    run.advance(56)
    snapshot, since = run.snapshot(), run.advance(5)
    for rising, snapshots, known in (
        (61, [], since),
        (56, [snapshot], since),  # the look before it was at 55
        (57, [snapshot], since[1:]),  # nobody knows what the run has done since
    ):
        assert RewindPoints(deque(snapshots)).fork_before_harm(run, rising, known) is None
    point = RewindPoints(deque([snapshot])).fork_before_harm(run, 57, since)
    assert point is not None
    assert (point.step, point.since) == (56, tuple(since))


def test_a_run_without_a_state_from_before_it_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RewindPoints, "at_or_before", lambda self, step: None)
    found = steered(toy(kicked=KICK, branching=HARM), planner=Promising())
    (skipped,) = found.of("skipped")
    assert skipped["detail"]["reason"].startswith(
        "there is no state to go back to from step 60 or before"
    )
    assert "fault" not in skipped["detail"]


# ── when ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_asked_at_each_look_and_saves_states_to_go_back_to() -> None:
    steps: list[int] = []
    looks, saves = (
        {"block": 16, "probe_every": 8},
        {"every": 50, "keep_last": 99, "moments": "exact"},
    )
    run, callback = (
        toy(branching=HARM | {"save_every": 8}, monitor=looks, checkpoints=saves),
        Branching(planner=Promising()),
    )
    folder = steered(run, callback, watch=lambda run, window: steps.append(run.step)).path
    assert steps == sorted([*range(1, 121, 8), 50, 100, 120])
    saved = CheckpointStore(folder / "checkpoints").steps()
    assert saved == [0, 9, 17, 25, 33, 41, 49, 50, 65, 73, 81, 89, 97, 100, 113, 120]
    assert callback.state_dict()["remembered"] == saved[-9:-1]  # the end is not to be gone back to


def test_without_the_trigger_nobody_is_asked_more_often() -> None:
    steps: list[int] = []
    run = toy(
        kicked=KICK,
        branching={"triggers": ["fired"]},
        monitor={"block": 16, "probe_every": 8},
        checkpoints={"every": 50},
    )
    found = steered(run, watch=lambda run, window: steps.append(run.step))
    assert steps[:4] == [16, 32, 48, 50]
    assert CheckpointStore(found.path / "checkpoints").steps()[:3] == [0, 50, 100]


def test_harm_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    same(monkeypatch)
    found = steered(toy(kicked=KICK, branching=HARM), planner=Promising())
    assert [decision["accepted"] for decision in found.decisions] == [None]


@pytest.mark.parametrize("least", [0.1, 2.5])
def test_less_harm_than_is_asked_for_is_let_be(least: float) -> None:
    found = steered(toy(kicked=KICK, branching=HARM | {"harm": least}), planner=Promising())
    assert len(found.decisions) == (least < 1)


# ── where it is no better ───────────────────────────────────────────────────────────────────────────────────────────────


def test_where_it_is_no_better_the_run_goes_on_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    same(monkeypatch)
    found = steered(toy(kicked=KICK, branching=HARM), planner=Promising())
    assert the_detour(found)["accepted"] is None
    assert "it is not better by 0.01" in the_detour(found)["branches"][1]["reason"]
    left = toy(kicked=KICK)
    told = read_telemetry(found.path)
    assert found.of("rewind") == []
    # To the bit up to there, and from there on but for the budget, which is shorter by what was tried.
    assert told["loss"][:61].tolist() == [t.loss for t in left.advance(61)]
    spent = math.ceil(the_detour(found)["cost"]["flops"] / found.run.flops_ahead)
    assert 120 - spent - 1 <= found.run.step <= 120 - spent + 1
    left.spend(120 - found.run.step)
    assert told["loss"][61:].tolist() == [t.loss for t in left.advance(found.run.step - 61)]


@pytest.mark.parametrize("share", [0.01, 0.04, 0.08, 0.2])
def test_what_may_be_thrown_away_is_not_exceeded(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for accepted in (1, None):
        run = toy(kicked=KICK, branching=HARM | {"max_waste": share})
        allowed = share * 120 * run.flops_ahead
        found = steered(run, planner=Promising())
        assert [decision["accepted"] for decision in found.decisions] == [accepted] * (share > 0.05)
        assert [event["detail"]["reason"][:17] for event in found.of("skipped")] == [
            "no budget is left"
        ] * (share < 0.05)
        assert found.callback._state.waste.wasted <= allowed
        assert (
            found.total
            <= 120 * run.flops_ahead + run.flops_of_probes(120) + 2 * run.flops_per_evaluation
        )
        same(monkeypatch)


def test_every_step_is_on_the_ledger() -> None:
    found = steered(toy(kicked=KICK, branching=HARM), planner=Promising())
    flops, step = found.summary["flops"], found.run.flops_per_step
    assert flops["rewound"] == 5 * step
    assert flops["verify"] == 0  # the branch has become the run
    assert flops["main"] == found.run.step * step
    assert found.run.horizon.end == found.run.step


def test_a_detour_that_fails_is_told_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any, *one: Any, **how: Any) -> Any:
        raise MemoryError("no room for a fork")

    monkeypatch.setattr(Verification, "verify", fails)
    found = steered(toy(kicked=KICK, branching=HARM), planner=Promising())
    assert [event["detail"]["reason"] for event in found.of("skipped")] == [
        "MemoryError: no room for a fork"
    ]
    assert (found.run.step, found.decisions) == (120, [])


def test_a_rate_below_its_bounds_is_no_way() -> None:
    found = steered(
        toy(kicked=KICK, branching=HARM, interventions={"lr_bounds": (0.5, 2.0)}),
        planner=Promising(),
    )
    assert the_detour(found)["branches"][1]["fate"] == "failed"
    assert "lr_scale" in the_detour(found)["branches"][1]["reason"]
    assert found.run.lr_scale == 1.0


# ── on record ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("accepted", [1, None])
def test_it_is_replayed_to_the_bit(
    accepted: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rollback, "_MARGIN", 0.01 if accepted else 9.0)
    planted = {
        "stressors.planted": [{"at": 63, "kind": "lr_spike", "steps": 1, "size": 20}],
        "branching": HARM,
    }
    config = RunConfig.load(
        "tiny", SMALL | planted | {"checkpoints.moments": "exact", "branching.max_waste": 0.3}
    )
    run, folder = TrainingRun.from_config(config), RunFolder.create(tmp_path / "run", config)
    train(run, folder, callback=Branching(planner=Promising()))
    (decision,) = read_decisions(folder.path)
    assert (decision["why"], decision["verification"]["control"], decision["accepted"]) == (
        "harm",
        "recorded",
        accepted,
    )
    replay = Replay.of(folder.path, str(decision["step"]))
    assert (replay.agrees, replay.off) == (True, 0)
    assert len(replay.rows) == 2


def test_an_alarm_on_the_way_counts(alarms: Callable[..., None]) -> None:
    alarms(59)
    found = steered(
        toy(kicked=KICK, branching=HARM | {"triggers": ["harm", "fired"], "refractory_steps": 8}),
        planner=Promising(),
    )
    assert [decision["why"] for decision in found.decisions][:2] == ["fired", "harm"]
    assert found.of("fired")[1]["line"] == 1
    assert found.of("rewind")[1]["detail"]["to"] <= 51  # for what it has done is still there
