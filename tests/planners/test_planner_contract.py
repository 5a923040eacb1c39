"""Every planner keeps the contract, the contract catches those that do not, and planners are found by name."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainenv import planners
from trainenv.planners import PlanBuilder, testing
from trainenv.planners.support.sequences import NOTHING
from trainenv.types import Candidate, Intervention, Plan, Planner, PlanningProblem, UserError

# Small where the default takes long: what is checked does not depend on it.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("grid", {}),
    ("grid", {"decisions": 2, "candidates": 20}),
    ("grid", {"judge": "executor"}),
    ("random", {"decisions": 4, "candidates": 20}),
    ("bandit", {}),
    ("bandit", {"method": "ucb"}),
    ("bandit", {"method": "halving"}),
    ("bayes", {"candidates": 6, "startup": 3}),
    ("bayes", {"candidates": 6, "startup": 3, "judge": "executor", "batch": 4}),
    ("mcts", {"simulations": 16}),
    ("mcts", {"simulations": 8, "variant": "puct"}),
    ("pbt", {}),
    ("pbt", {"explore": "pb2", "population": 5, "generations": 3}),
    ("autolrs", {}),
    ("shapes", {}),
    ("shapes", {"factors": (0.8, 1.1), "lengths": (0.0, 1.0), "kept": 2}),
    ("cem", {}),
    ("cem", {"candidates": 8, "rounds": 2, "elite": 3, "knots": (0.5, 1.0)}),
]


def identity(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join([value[0], *(str(v) for v in value[1].values())])
    return value.__name__  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("check", testing.CHECKS, ids=identity)
@pytest.mark.parametrize("variant", VARIANTS, ids=identity)
def test_every_planner_keeps_the_contract(
    variant: tuple[str, dict[str, Any]], check: testing.contract.Check
) -> None:
    check(planners.make(variant[0], **variant[1]))


def test_every_name_is_in_the_suite() -> None:
    assert {name for name, _ in VARIANTS} == set(planners.NAMES)
    assert set(planners.NAMES) == {
        "autolrs",
        "bandit",
        "bayes",
        "cem",
        "grid",
        "mcts",
        "pbt",
        "random",
        "shapes",
    }


# ── the contract catches ────────────────────────────────────────────────────────────────────────────────────────────

LOWER = (Intervention(lr_scale=0.9),)


@dataclass(frozen=True, kw_only=True)
class Good:
    """A user's planner: lower the learning rate or not, as the model says."""

    def plan(self, problem: PlanningProblem, /) -> Plan:
        draft = PlanBuilder(problem, "good")
        draft.forecast([LOWER])
        return draft.plan()


class NoDataclass:
    plan = Good.plan


@dataclass
class NotFrozen:
    plan = Good.plan


@dataclass(frozen=True, kw_only=True)
class Twice(Good):
    def plan(self, problem: PlanningProblem, /) -> Plan:
        plan = super().plan(problem)
        return replace(plan, candidates=tuple(one for one in plan.candidates for _ in range(2)))


@dataclass(frozen=True, kw_only=True)
class GloballyRandom(Good):
    def plan(self, problem: PlanningProblem, /) -> Plan:
        random.random()
        return super().plan(problem)


@dataclass(frozen=True, kw_only=True)
class Remembers(Good):
    seen: Any = None

    def plan(self, problem: PlanningProblem, /) -> Plan:
        object.__setattr__(self, "seen", problem.generator.random())
        return super().plan(problem)


@dataclass(frozen=True, kw_only=True)
class Careless(Good):
    """Talks to the model and the executor itself, as if there were no masks, budgets and faults."""

    def plan(self, problem: PlanningProblem, /) -> Plan:
        assert problem.model is not None
        assert problem.executor is not None
        sequences = [NOTHING, LOWER, (Intervention(clip="arc"),)]
        forecasts = problem.model.forecast(problem.history, [one[0] for one in sequences])
        problem.executor.run(sequences, 50, measure="annealed")
        scored = [
            Candidate(interventions=one, score=f.annealed.mean, forecast=f)
            for one, f in zip(sequences, forecasts, strict=True)
        ]
        return Plan(planner="careless", candidates=tuple(sorted(scored, key=lambda one: one.score)))


@dataclass(frozen=True, kw_only=True)
class Swallows(Good):
    def plan(self, problem: PlanningProblem, /) -> Plan:
        draft = PlanBuilder(problem, "swallows")
        try:
            draft.forecast([LOWER])
        except BaseException:
            draft.fail("the model failed")
        return draft.plan()


@dataclass(frozen=True, kw_only=True)
class Patient(Good):
    def plan(self, problem: PlanningProblem, /) -> Plan:
        draft = PlanBuilder(problem, "patient")
        for _ in range(1000):
            draft.model.forecast(problem.history, [Intervention()])
        return draft.plan()


@dataclass(frozen=True, kw_only=True)
class Longwinded(Good):
    def plan(self, problem: PlanningProblem, /) -> Plan:
        plan = super().plan(problem)
        extra = Candidate(interventions=LOWER * 3, score=plan.candidates[-1].score)
        return replace(plan, candidates=(*plan.candidates, extra))


CAUGHT: list[tuple[Any, str]] = [
    (NoDataclass(), "is_a_frozen_dataclass"),
    (NotFrozen(), "is_a_frozen_dataclass"),
    (Twice(), "ranks_doing_nothing"),
    (GloballyRandom(), "is_deterministic"),
    (Remembers(), "is_deterministic"),
    (Careless(), "never_proposes_what_is_masked"),
    (Careless(), "does_nothing_where_nothing_else_is_legal"),
    (Careless(), "stops_at_its_budget"),
    (Careless(), "does_nothing_without_a_budget"),
    (Careless(), "survives_a_broken_model"),
    (Careless(), "survives_a_broken_executor"),
    (Careless(), "says_what_it_needs"),
    (Patient(), "stops_when_the_time_is_up"),
    (Swallows(), "can_be_interrupted"),
    (Longwinded(), "plans_at_the_end_of_a_run"),
]


@pytest.mark.parametrize(
    ("planner", "name"), CAUGHT, ids=lambda v: v if isinstance(v, str) else type(v).__name__
)
def test_the_contract_catches(planner: Planner, name: str) -> None:
    check = next(check for check in testing.CHECKS if check.__name__ == name)
    check(Good())
    with pytest.raises(Exception, match=r".") as caught:
        check(copy.copy(planner))
    assert caught.type in (AssertionError, UserError, RuntimeError, OSError, AttributeError)


def test_every_check_has_been_seen_to_fail() -> None:
    assert {name for _, name in CAUGHT} == {check.__name__ for check in testing.CHECKS}


# ── found by name ───────────────────────────────────────────────────────────────────────────────────────────────────

THEIRS = '''
from dataclasses import dataclass
from planners import PlanBuilder
from trainenv.types import Intervention, Plan, PlanningProblem

@dataclass(frozen=True, kw_only=True)
class Halve:
    """Half the learning rate, as far as it is legal, when the model likes it."""
    scale: float = 0.8

    def plan(self, problem: PlanningProblem, /) -> Plan:
        draft = PlanBuilder(problem, "halve")
        draft.forecast([(Intervention(lr_scale=self.scale),)])
        return draft.plan()

no_planner = dict
'''


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "halving_by_hand-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halving-by-hand\nVersion: 1.0\n")
    entries = [
        "halve = halving_by_hand:Halve",
        "gone = no_such_module:X",
        "dict = halving_by_hand:no_planner",
        "grid = x:y",
    ]
    (info / "entry_points.txt").write_text("\n".join([f"[{planners.GROUP}]", *entries]))
    (tmp_path / "halving_by_hand.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("_installed")
def test_a_user_s_planner_is_found_and_keeps_the_contract() -> None:
    assert len(THEIRS.strip().splitlines()) < 30
    planner = planners.make("halve", scale=0.9)
    assert planner.plan(testing.ToyWorld().problem()).planner == "halve"
    testing.check(planner)
    with pytest.raises(UserError, match="no hyperparameter 'scal'; did you mean 'scale'"):
        planners.make("halve", scal=1)
    assert isinstance(planners.make("grid"), planners.Grid)  # ours go first


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone", "cannot be loaded: ModuleNotFoundError"),
        ("dict", "must make a planner"),
        ("halv", "did you mean 'halve'"),
    ],
)
def test_installed_planners_that_are_none(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        planners.make(name)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("grdi", {}, "did you mean 'grid'"),
    ("grid", {"candidate": 3}, "did you mean 'candidates'"),
    ("grid", {"candidates": 0}, "at least 1, found 0"),
    ("grid", {"judge": "modle"}, "did you mean 'model'"),
    ("grid", {"steps": 0}, "steps must be a whole number"),
    ("random", {"decisions": 1.5}, "decisions must be a whole number"),
    ("random", {"steps": -1}, "steps must be"),
    ("bandit", {"method": "thomson"}, "did you mean 'thompson'"),
    ("bandit", {"noise": 0}, "noise must be a finite number, above 0"),
    ("bandit", {"steps": True}, "steps must be a whole number"),
    ("bayes", {"sampler": "gpp"}, "did you mean 'gp'"),
    ("bayes", {"batch": 0}, "batch must be"),
    ("bayes", {"steps": 0}, "steps must be"),
    ("pbt", {"quantile": 0.6}, "at most 0.5"),
    ("pbt", {"population": 1}, "at least 2"),
    ("autolrs", {"share": float("nan")}, "share must be a finite number"),
    ("autolrs", {"tries": 0}, "tries must be"),
    ("shapes", {"factors": ()}, "factors must be numbers"),
    ("shapes", {"factors": (0.0, 2.0)}, "factors must be finite and above 0"),
    ("shapes", {"lengths": (0.5, 1.5)}, "lengths must be numbers from 0 to 1"),
    ("shapes", {"caution": -1.0}, "caution must be"),
    ("shapes", {"kept": 0}, "kept must be"),
    ("cem", {"candidates": 0}, "candidates must be"),
    ("cem", {"elite": 0}, "elite must be"),
    ("cem", {"spread": 0.0}, "spread must be"),
    ("cem", {"knots": (0.5, 0.9)}, "end them with 1.0"),
    ("cem", {"knots": (0.5, 0.5, 1.0)}, "knots must rise"),
    ("cem", {"knots": ()}, "knots must rise"),
]


@pytest.mark.parametrize(("name", "hyper", "said"), BAD)
def test_wrong_hyperparameters(name: str, hyper: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        planners.make(name, **hyper)


def test_what_a_planner_needs_is_told_before_anything_is_spent() -> None:
    problem, model, _ = testing.watched(testing.ToyWorld().problem())
    with pytest.raises(UserError, match="bandit needs an executor"):
        planners.make("bandit").plan(replace(problem, executor=None))
    with pytest.raises(UserError, match="grid needs a model or an executor"):
        planners.make("grid").plan(replace(problem, model=None, executor=None))
    with pytest.raises(UserError, match="grid needs a model"):
        planners.make("grid", judge="model").plan(replace(problem, model=None))
    assert model.calls == 0


def test_what_was_measured_before_an_executor_died_is_kept() -> None:
    problem, _, executor = testing.watched(testing.ToyWorld(seed=1).problem(1))
    executor.fault, executor.at = "raises", 2
    plan = planners.make("pbt").plan(problem)
    assert executor.calls == 3
    assert any("died" in fault for fault in plan.faults)
    assert not plan.complete
    assert sum(len(one.outcomes) for one in (*plan.candidates, *plan.dropped)) > 8
    assert plan.best.score < 0
    assert np.isfinite([one.score for one in plan.candidates]).all()
