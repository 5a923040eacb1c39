"""Plans to the end of the run: their first part is followed without a trial, within limits, and never does harm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from tests.support.made_models import history
from tests.support.steered_runs import Dreamer, Pupil, Steered, steered, toy
from trainenv import planners
from trainenv.agents.branching import Branching, PlanningOptions
from trainenv.agents.branching.decision import Skipped
from trainenv.agents.branching.follow import first_part
from trainenv.agents.branching.lr_range import RangeTest
from trainenv.agents.branching.rewind_points import RewindPoints
from trainenv.agents.branching.triggers import Triggers
from trainenv.config.schema import RunConfig
from trainenv.loop import resume, train
from trainenv.models.spec import ModelSpec
from trainenv.records.run_folder import RunFolder
from trainenv.records.telemetry_log import read_telemetry
from trainenv.run import TrainingRun
from trainenv.types import (
    Candidate,
    Intervention,
    PathValues,
    Plan,
    RunHistory,
)

pytestmark = pytest.mark.usefixtures("alarms")

MOST = 0.22
ONLY: dict[str, Any] = {
    "triggers": ["checkpoint"],
    "untried_change": MOST,
    "min_gain": 0.003,
    "default_clip": False,
}


@dataclass
class Wishing(Dreamer):
    """A model that wishes for a level of ln learning rate, as a factor on the rate of the schedule.

    Attributes:
        level: Level that it wishes for.
        spread: Disagreement of its values, nats.
        fault: `raises`, `nan` or none.
        lengths: Numbers of decisions of the paths that it valued.
    """

    level: float = 1.0
    spread: float = 0.0
    fault: str = ""
    flops_per_path: float = 0.0
    lengths: list[int] = field(default_factory=list)

    def path_values(self, history: RunHistory, paths: NDArray[np.float64], /) -> PathValues:
        """See `PathModel`."""
        self.lengths.append(paths.shape[1])
        if self.fault == "raises":
            raise RuntimeError("the paths broke")
        now = math.log(history.telemetry[-1].lr_scale) if history.telemetry else 0.0
        held = (now - self.level) ** 2
        change = 0.1 * (((now + paths - self.level) ** 2).mean(axis=1) - held)
        if self.fault == "nan":
            change = np.full(len(paths), math.nan)
        spread = np.full(len(paths), self.spread)
        return PathValues(change=change, disagreement=spread, low=change - 1, high=change + 1)


def loop(model: Any, **planning: Any) -> Branching:
    """The loop with a planner to the end."""
    options = PlanningOptions(**{"to_the_end": True, **planning})
    return Branching(planner=planners.make("shapes"), model=model, planning=options)


def ran(model: Any, run: TrainingRun | None = None, **settings: Any) -> Steered:
    return steered(run or toy(branching=ONLY | settings), loop(model))


def planned(found: Steered) -> list[dict[str, Any]]:
    return [e for e in found.of("intervention") if e["detail"].get("plan")]


def scales(found: Steered) -> list[float]:
    kept = read_telemetry(found.path, kept_only=True)
    return [float(value) for value in kept["lr_scale"]]


# ── the first part of a path ──────────────────────────────────────────────────────────────────────


def plan_of(*factors: float, score: float = -0.05, faults: Sequence[str] = ()) -> Plan:
    path = Candidate(interventions=tuple(Intervention(lr_scale=f) for f in factors), score=score)
    still = Candidate(interventions=(Intervention(),), score=0.0)
    ranked = tuple(sorted((path, still), key=lambda one: one.score))
    return Plan(planner="mine", candidates=ranked, faults=tuple(faults))


def part(plan: Plan, *, every: int = 12, min_gain: float = 0.003) -> float:
    """Ln of the change, with decisions of four steps."""
    found = first_part(plan, history(decision=4), every=every, most=MOST, min_gain=min_gain)
    assert found.candidate == plan.best
    return math.log(found.intervention.lr_scale)


def test_the_first_part_is_the_product_until_the_next_decision() -> None:
    assert part(plan_of(1.02, 1.03, 1.05, 2.0)) == pytest.approx(math.log(1.02 * 1.03 * 1.05))
    assert part(plan_of(1.02, 1.03, 1.05), every=4) == pytest.approx(math.log(1.02))
    assert part(plan_of(1.02, 1.03, 1.05), every=1) == pytest.approx(math.log(1.02))
    assert part(plan_of(1.02, 1.03), every=400) == pytest.approx(math.log(1.02 * 1.03))


def test_a_raise_is_cut_to_the_limit_and_a_fall_to_three_times_it() -> None:
    assert part(plan_of(4.0)) == pytest.approx(MOST)
    assert part(plan_of(0.7)) == pytest.approx(math.log(0.7))
    assert part(plan_of(0.05)) == pytest.approx(-3 * MOST)


@pytest.mark.parametrize(
    ("plan", "reason", "fault"),
    [
        (plan_of(1.1, score=-0.002), "no path promises enough", False),
        (plan_of(1.1, score=0.1), "no path promises enough", False),
        (plan_of(1.1, score=0.1, faults=["it broke"]), "it broke", True),
        (plan_of(1.25, 0.8, 1.0, 2.0), "holds the rate for now", False),
        (plan_of(1.0, 1.0, 1.0, 2.0), "holds the rate for now", False),
    ],
)
def test_nothing_is_changed_for_less(plan: Plan, reason: str, fault: bool) -> None:
    with pytest.raises(Skipped, match=reason) as skipped:
        part(plan)
    assert skipped.value.fault == fault


def test_a_path_that_was_valued_counts_although_the_model_failed_later() -> None:
    assert part(plan_of(1.1, faults=["it broke"])) == pytest.approx(math.log(1.1))


# ── in the loop ───────────────────────────────────────────────────────────────────────────────────


def test_a_higher_rate_is_taken_step_by_step_and_nothing_is_wasted() -> None:
    found = ran(Wishing(level=1.0))
    events = planned(found)
    assert [e["step"] for e in events] == [16, 32, 48, 64, 80, 96][: len(events)]
    assert len(events) >= 4
    assert all(e["detail"]["lr_scale"] <= math.exp(MOST) * (1 + 1e-9) for e in events)
    assert all(e["detail"]["plan"]["forecast"] < -0.003 for e in events)
    assert found.run.lr_scale == pytest.approx(math.e, rel=0.25)
    assert found.summary["step"] == 120
    assert found.summary["flops"].get("verify", 0) == found.summary["flops"].get("rewound", 0) == 0
    assert found.decisions == []
    rates = scales(found)
    assert rates[:16] == [1.0] * 16
    assert rates[16] == pytest.approx(math.exp(MOST))
    assert rates == sorted(rates)


def test_a_lower_rate_is_reached_in_larger_steps() -> None:
    found = ran(Wishing(level=-1.2))
    first, *_ = planned(found)
    assert -3 * MOST - 1e-9 <= math.log(first["detail"]["lr_scale"]) < -MOST
    assert math.log(found.run.lr_scale) == pytest.approx(-1.2, abs=0.2)


def test_a_small_gain_changes_nothing() -> None:
    found = ran(Wishing(level=1.0), min_gain=5.0)
    assert found.run.applied == ()
    reasons = {e["detail"]["reason"] for e in found.of("skipped")}
    assert reasons == {"no path promises enough"}


def test_no_rate_above_the_highest_factor() -> None:
    found = ran(Wishing(level=3.0), max_lr_factor=1.5)
    assert planned(found)
    assert max(scales(found)) <= 1.5 * (1 + 1e-9)


def test_no_raise_where_the_index_fired_since_the_last_decision(
    alarms: Callable[..., None],
) -> None:
    alarms(13, 29, 45, 61, 77, 93, 109)
    assert ran(Wishing(level=1.0)).run.applied == ()
    assert ran(Wishing(level=-1.0)).run.lr_scale < 0.6
    alarms(13)
    later = ran(Wishing(level=1.0))
    assert planned(later)[0]["step"] == 32


def test_the_rate_stays_where_drafts_may_not_change_it() -> None:
    assert ran(Wishing(level=1.0), parts=["clip"]).run.applied == ()


def test_with_untried_change_0_every_change_is_tried() -> None:
    found = ran(Wishing(level=0.5), untried_change=0.0)
    assert planned(found) == []
    assert found.decisions
    assert found.summary["flops"]["verify"] > 0
    longest = max(len(one["interventions"]) for d in found.decisions for one in d["branches"])
    assert longest > 1


@pytest.mark.parametrize("fault", ["raises", "nan"])
def test_a_path_model_that_fails_does_no_harm(fault: str) -> None:
    alone = steered(toy(branching=ONLY | {"triggers": []}), loop(Wishing()))
    found = ran(Wishing(level=1.0, fault=fault))
    assert found.run.fingerprint() == alone.run.fingerprint()
    reasons = [e["detail"]["reason"] for e in found.of("skipped")]
    assert len(reasons) >= 5
    word = {"raises": "the paths broke", "nan": "not finite"}[fault]
    assert all(word in reason for reason in reasons)


class Told(Pupil):
    """A learner whose model wishes for a rate."""

    @property
    def model(self) -> Wishing:
        return Wishing(seen=len(self.taken), level=1.0)


def test_the_model_of_a_learner_values_paths_too() -> None:
    assert len(planned(ran(Told()))) >= 4


class Pathless(Wishing):
    """A model that has lost its paths."""

    values_paths = False


def test_a_model_without_paths_is_asked_for_forecasts_and_its_drafts_are_tried() -> None:
    model = Pathless(level=1.0)
    found = ran(model)
    assert model.lengths == []
    assert planned(found) == []
    assert found.decisions


def test_paths_are_charged_and_the_waste_stays_within_its_budget() -> None:
    run = toy(branching=ONLY | {"max_waste": 0.02})
    found = ran(Wishing(level=1.0, flops_per_path=100.0), run)
    spent = found.summary["flops"]["plan"]
    waste = found.callback.state_dict()["purse"]
    assert spent > 0
    assert spent <= waste["wasted"] * (1 + 1e-9)
    assert waste["wasted"] <= waste["allowed"] * (1 + 1e-9)
    assert found.summary["step"] < 120  # the run is that much shorter


def test_a_followed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    straight = ran(Wishing(level=1.0))
    run = toy(branching=ONLY)
    folder = RunFolder.create(tmp_path / "run", run.config)
    train(run, folder, callback=loop(Wishing(level=1.0)), stop=lambda: run.step >= 40)
    assert 40 <= run.step < 60
    second = toy(branching=ONLY)
    callback = loop(Wishing(level=1.0))
    folder, _ = resume(tmp_path / "run", second, callback)
    train(second, folder, callback=callback)
    assert second.fingerprint() == straight.run.fingerprint()
    assert second.ledger.as_dict() == straight.run.ledger.as_dict()
    assert second.applied == straight.run.applied


# ── before the first step ─────────────────────────────────────────────────────────────────────────


class KnownRate(ModelSpec):
    """Facts about a model whose usual learning rate is known."""

    def usual_lr(self, model: nn.Module) -> float:
        """See `ModelSpec`."""
        return 1e-3


def known(**settings: Any) -> TrainingRun:
    run = toy(branching=ONLY | {"triggers": ["start", "checkpoint"]} | settings)
    run.model.spec = KnownRate()  # type: ignore[assignment]
    return run


def test_a_plan_is_followed_from_the_first_step_on_and_a_cut_has_no_limit() -> None:
    found = ran(Wishing(level=-2.0), known())
    first = planned(found)[0]
    assert first["step"] == 0
    assert first["detail"]["plan"]["why"] == "start"
    assert math.log(first["detail"]["lr_scale"]) < -3 * MOST - 0.1
    assert scales(found)[0] == pytest.approx(first["detail"]["lr_scale"])


def test_a_raise_before_the_first_step_keeps_its_limit() -> None:
    found = ran(Wishing(level=1.0), known())
    assert planned(found)[0]["step"] == 0
    assert scales(found)[0] == pytest.approx(math.exp(MOST))


def test_nothing_is_planned_at_the_start_for_a_small_gain_or_an_unknown_usual_rate() -> None:
    small = ran(Wishing(level=-0.4), known())  # a gain of 0.016 nats
    assert planned(small)[0]["step"] > 0
    unknown = toy(branching=ONLY | {"triggers": ["start", "checkpoint"]})
    assert planned(ran(Wishing(level=-2.0), unknown))[0]["step"] > 0


def test_the_state_to_go_back_to_at_the_start_has_the_planned_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points: list[tuple[int, float]] = []
    remember = RewindPoints.remember

    def spy(self: RewindPoints, run: TrainingRun, *, most: int) -> None:
        points.append((run.step, run.lr_scale))
        remember(self, run, most=most)

    monkeypatch.setattr(RewindPoints, "remember", spy)
    ran(Wishing(level=-2.0), known())
    assert points[0][0] == 0
    assert points[0][1] < 0.5


@pytest.mark.parametrize("fault", ["raises", "nan"])
def test_a_model_that_fails_at_the_start_does_no_harm(fault: str) -> None:
    alone = steered(toy(branching=ONLY | {"triggers": []}), loop(Wishing()))
    found = ran(Wishing(fault=fault), known())
    assert found.run.fingerprint() == alone.run.fingerprint()
    assert found.of("skipped")[0]["step"] == 0


def test_without_its_trigger_nothing_is_planned_at_the_start() -> None:
    assert planned(ran(Wishing(level=-2.0), known(triggers=["checkpoint"])))[0]["step"] > 0


# ── the range test ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Outcome:
    """Outcome of a proposal of the range test."""

    tried: bool
    reason: str


def consulted(
    monkeypatch: pytest.MonkeyPatch, model: Any, factor: float, **settings: Any
) -> Outcome:
    """Let the range test propose a factor once, at step 24."""

    def observe(self: RangeTest, window: Sequence[Any]) -> None:
        if any(t.step == 24 for t in window):
            self.factor = factor

    monkeypatch.setattr(RangeTest, "observe", observe)
    settings = ONLY | {"triggers": ["warmup"]} | settings
    run = toy(branching=settings, schedule={"warmup": 20})
    found = steered(run, loop(model))
    reasons = [e["detail"]["reason"] for e in found.of("skipped")]
    return Outcome(tried=bool(found.decisions), reason="; ".join(reasons))


def test_another_rate_is_not_tried_if_the_model_expects_that_it_ends_higher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vetoed = consulted(monkeypatch, Wishing(level=1.0), 0.5)
    assert not vetoed.tried
    assert "the model forecasts +" in vetoed.reason
    assert consulted(monkeypatch, Wishing(level=-0.5), 0.5).tried
    assert not consulted(monkeypatch, Wishing(level=1.0, spread=9.0), 0.5).tried
    assert consulted(monkeypatch, Pathless(level=1.0), 0.5).tried
    assert consulted(monkeypatch, Wishing(level=1.0), 0.5, untried_change=0.0).tried


def test_a_higher_rate_is_not_tried_where_plans_raise_it(monkeypatch: pytest.MonkeyPatch) -> None:
    skipped = consulted(monkeypatch, Wishing(level=1.0), 2.0)
    assert not skipped.tried
    assert "raised by plans to the end, not by a trial" in skipped.reason
    assert consulted(monkeypatch, Pathless(level=1.0), 2.0).tried
    assert consulted(monkeypatch, Wishing(level=1.0), 2.0, untried_change=0.0).tried


def test_a_model_that_fails_vetoes_nothing_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert consulted(monkeypatch, Wishing(fault="nan"), 0.5).tried
    broken = consulted(monkeypatch, Wishing(fault="raises"), 0.5)
    assert "the paths broke" in broken.reason


# ── when to plan again ────────────────────────────────────────────────────────────────────────────


def checkpoints(*followed: bool, every: int = 10) -> list[int]:
    """Steps of checkpoints whose plans are followed or promise too little."""
    settings = RunConfig.load("tiny", {"branching.every": every}).branching.settings(1000)
    triggers = Triggers(settings)
    plans = iter(followed)
    found = []
    for run in (toy_at(step) for step in range(200)):
        if triggers.reason(run, (), least=0, busy=False) != "checkpoint":
            continue
        found.append(run.step)
        triggers.note_plan(followed=next(plans, False))
        triggers.schedule_checkpoint(run.step)
    return found[: len(followed)]


def toy_at(step: int) -> Any:
    """A run as far as triggers look at it."""
    whole = SimpleNamespace(end=1000)
    return SimpleNamespace(step=step, horizon=whole, config=SimpleNamespace(steps=1000))


def test_plans_that_promise_nothing_come_seldomer() -> None:
    assert checkpoints(True, True, True) == [10, 20, 30]
    assert checkpoints(False, False, False, False, False, False) == [10, 20, 40, 60, 100, 140]
    assert checkpoints(False, False, False, True, True) == [10, 20, 40, 60, 70]


def test_the_first_plan_must_promise_more_than_those_that_go_on_with_it() -> None:
    """Each step towards the level leaves less to gain."""
    gains = [-one["detail"]["plan"]["forecast"] for one in planned(ran(Wishing(level=0.5)))]
    assert gains[0] > 1.6 * gains[1]
    assert not planned(ran(Wishing(level=0.5), min_gain=gains[0] / 1.59))
    assert len(planned(ran(Wishing(level=0.5), min_gain=gains[0] / 1.61))) == 1
    assert len(planned(ran(Wishing(level=0.5), min_gain=0.99 * gains[1]))) == 2
