"""The contract of planners, as checks that raise `AssertionError` and say what was expected.

    @pytest.mark.parametrize("check", trainenv.planners.testing.CHECKS, ids=lambda c: c.__name__)
    def test_contract(check):
        check(MyPlanner())

They need no data, no GPU and no pytest, and take about a second a planner in a toy world
(`trainenv.planners.testing.ToyWorld`).
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from trainenv.planners.testing.toy import ToyWorld
from trainenv.planners.testing.watched import EXECUTOR_FAULTS, MODEL_FAULTS, illegal, watched
from trainenv.types import Budget, Intervention, Plan, Planner, UserError

Check = Callable[[Planner], None]
_NARROW = (0.65, 1.25)  # bounds of the rate, inside those of the action space


def is_a_frozen_dataclass(planner: Planner) -> None:
    """Check that the planner is a frozen dataclass whose hyperparameters are keyword-only."""
    anything: Any = planner
    kind: Any = type(planner)
    assert callable(getattr(kind, "plan", None)), (
        f"expected a method plan(problem), found {planner!r}"
    )
    assert is_dataclass(anything), f"expected a dataclass, found {kind.__name__}"
    assert kind.__dataclass_params__.frozen, "expected @dataclass(frozen=True)"
    assert all(field.kw_only for field in fields(kind)), (
        "expected hyperparameters by keyword: @dataclass(kw_only=True)"
    )
    assert copy.deepcopy(planner) == planner


def ranks_doing_nothing(planner: Planner) -> None:
    """Check that doing nothing is among the candidates, and that each sequence is there once."""
    for seed in range(4):
        plan = planner.plan(ToyWorld(seed=seed).problem(seed))
        _check_plan(plan)
        sequences = [candidate.interventions for candidate in plan.candidates]
        assert len(set(sequences)) == len(sequences), "expected each sequence once"
        assert sum(candidate.does_nothing for candidate in plan.candidates) == 1, (
            "expected doing nothing once"
        )
        assert plan.complete, (
            "expected a complete plan where nothing limits it: the default budget must suffice"
        )


def is_deterministic(planner: Planner) -> None:
    """Check that equal seeds give equal plans, and that only generator and executor change."""
    world = ToyWorld(seed=3, noise=0.01)
    before = copy.deepcopy(planner)
    states = (random.getstate(), _numpy_state())
    first = planner.plan(world.problem(11))
    again = planner.plan(world.problem(11))
    assert first == again, "expected equal plans of equal seeds"
    assert before == planner, "expected the planner as it was"
    assert states == (random.getstate(), _numpy_state()), (
        "expected no global random state to be used"
    )
    problem = world.problem(11)
    masks = copy.deepcopy(problem.masks)
    history = copy.deepcopy(problem.history)
    planner.plan(problem)
    assert repr(problem.history.telemetry) == repr(history.telemetry), (
        "expected the history as it was"
    )
    assert all(bool((a == b).all()) for a, b in zip(masks, problem.masks, strict=True)), (
        "expected the masks as they were"
    )


def never_proposes_what_is_masked(planner: Planner) -> None:
    """Check that no masked intervention is in the plan, or given to the model or the executor.

    Proposals of the problem may be masked too. Half of the problems have bounds of the rate, within
    which changes of any size are legal.
    """
    bad = Intervention(lr_scale=0.8, clip="arc", momentum_reset=True)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        problem = ToyWorld(seed=seed).problem(seed)
        masks = tuple(mask & (rng.random(len(mask)) < 0.6) for mask in problem.masks)
        for mask in masks:
            mask[0] = True
        problem = replace(
            problem,
            masks=masks,
            masks_after=None,
            rate_bounds=_NARROW if seed % 2 else None,
            proposals=[(bad,), (bad, bad), (Intervention(lr_scale=0.9),)],
        )
        problem, model, executor = watched(problem)
        plan = planner.plan(problem)
        _check_plan(plan)
        asked = [
            *model.asked,
            *executor.asked,
            *(candidate.interventions for candidate in plan.candidates),
        ]
        assert not (found := illegal(problem, asked)), (
            f"expected only what is legal, found {found[0]}"
        )


def does_nothing_where_nothing_else_is_legal(planner: Planner) -> None:
    """Check that the plan does nothing if the masks leave one value a part, and the rate none."""
    problem = ToyWorld().problem()
    masks = tuple(np.arange(len(mask)) == 0 for mask in problem.masks)
    for bounds in (None, (1.0, 1.0)):
        plan = planner.plan(replace(problem, masks=masks, masks_after=None, rate_bounds=bounds))
        _check_plan(plan)
        assert [candidate.does_nothing for candidate in plan.candidates] == [True], (
            "expected doing nothing alone"
        )


def stops_at_its_budget(planner: Planner) -> None:
    """Check that spending stays within the limits, and that the plan states its cost.

    The model and the executor count futures, paths, steps and FLOPs; a path is a future too.
    """
    limits: list[dict[str, Any]] = [{"futures": n} for n in (0, 1, 2, 7, 30)]
    limits += [{"steps": n} for n in (0, 1, 69, 150, 1000)]
    limits += [{"flops": 1e6 * n} for n in (0, 1, 69, 150, 1000)]
    limits += [{"futures": futures, "steps": steps} for futures, steps in product((0, 5), (0, 300))]
    for limit in limits:
        problem, model, executor = watched(ToyWorld(seed=1).problem(1, budget=Budget(**limit)))
        plan = planner.plan(problem)
        _check_plan(plan)
        looked_at = model.futures + model.paths
        assert looked_at <= limit.get("futures", looked_at), (
            f"expected at most {limit['futures']} futures and paths, found {looked_at}"
        )
        for name, spent in (
            ("futures", model.futures),
            ("paths", model.paths),
            ("steps", executor.steps),
            ("flops", executor.flops),
        ):
            most = limit.get(name)
            assert most is None or spent <= most, f"expected at most {most} {name}, found {spent}"
            stated = getattr(plan.cost, name)
            assert stated == spent, (
                f"expected the {name} spent in the plan's cost, {spent}, found {stated}"
            )


def does_nothing_without_a_budget(planner: Planner) -> None:
    """Check that with a budget of 0 the plan does nothing and calls nothing."""
    for budget in (Budget(futures=0, steps=0), Budget(futures=0, flops=0.0), Budget(seconds=0.0)):
        problem, model, executor = watched(ToyWorld(seed=1).problem(1, budget=budget))
        plan = planner.plan(problem)
        _check_plan(plan)
        assert [candidate.does_nothing for candidate in plan.candidates] == [True], (
            "expected doing nothing alone"
        )
        assert model.calls == executor.calls == 0, "expected nothing to be called"


def stops_when_the_time_is_up(planner: Planner) -> None:
    """Check that a slow model may finish its call, and is not called again after the time limit."""
    problem, model, _ = watched(
        ToyWorld(seed=1).problem(1, budget=Budget(futures=None, seconds=0.02))
    )
    model.pause = 0.002
    start = time.monotonic()
    _check_plan(planner.plan(problem))
    assert time.monotonic() - start < 1.5, "expected a plan soon after the seconds are over"


def survives_a_broken_model(planner: Planner) -> None:
    """Check that a fault of the model at any call leads to a sound plan that states the fault."""
    for fault, at in product(MODEL_FAULTS, (0, 1, 3)):
        problem, model, _ = watched(ToyWorld(seed=2).problem(2))
        model.fault = fault
        model.at = at
        plan = planner.plan(problem)
        _check_plan(plan)
        if model.calls > at and fault in ("raises", "nan"):
            assert plan.faults or plan.dropped, (
                f"expected the plan to say that the model failed ({fault} at call {at})"
            )
            assert at or len(plan.candidates) == 1, f"expected doing nothing alone ({fault})"
        if not model.calls:
            return  # this planner uses no model


def survives_a_broken_executor(planner: Planner) -> None:
    """Check that a fault of the executor at any call leads to a sound plan that states the fault.

    Results measured before the fault must be kept.
    """
    for fault, at in product(EXECUTOR_FAULTS, (0, 1, 3)):
        problem, _, executor = watched(ToyWorld(seed=2).problem(2, budget=Budget(steps=100_000)))
        executor.fault = fault
        executor.at = at
        plan = planner.plan(problem)
        _check_plan(plan)
        assert plan.cost.steps == executor.steps, (
            f"expected all {executor.steps} steps in the cost, found {plan.cost.steps}"
        )
        if executor.calls > at and fault in (
            "raises",
            "too few",
            "rubbish",
            "error of the control",
        ):
            assert plan.faults or fault == "error of the control", (
                f"expected a fault in the plan ({fault} at call {at})"
            )
        if not executor.calls and fault != "cost raises":
            return  # this planner runs nothing


def can_be_interrupted(planner: Planner) -> None:
    """Check that `KeyboardInterrupt` passes through and is no fault of model or executor."""
    problem, model, executor = watched(ToyWorld().problem())
    model.fault = executor.fault = KeyboardInterrupt()
    try:
        planner.plan(problem)
    except KeyboardInterrupt:
        return
    assert model.calls == executor.calls == 0, "expected KeyboardInterrupt to pass through"


def says_what_it_needs(planner: Planner) -> None:
    """Check that without model and executor there is a clear `UserError`, or a sound plan."""
    message = ""
    try:
        _check_plan(planner.plan(ToyWorld().problem(model=None, executor=None)))
    except UserError as error:
        message = str(error)
    assert not message or "model" in message or "executor" in message, (
        f"expected the error to name what is missing, found {message}"
    )


def plans_at_the_end_of_a_run(planner: Planner) -> None:
    """Check plans with a few steps left, and with none."""
    for left in (0, 1, 60):
        problem = ToyWorld(seed=1).problem(1)
        history = replace(problem.history, lrs_ahead=problem.history.lrs_ahead[:left])
        plan = planner.plan(replace(problem, history=history))
        _check_plan(plan)
        longest = max(len(candidate.interventions) for candidate in plan.candidates)
        assert longest <= max(1, -(-left // history.decision_steps)), (
            f"expected no decision after the end, found {longest}"
        )


CHECKS: tuple[Check, ...] = (
    is_a_frozen_dataclass,
    ranks_doing_nothing,
    is_deterministic,
    never_proposes_what_is_masked,
    does_nothing_where_nothing_else_is_legal,
    stops_at_its_budget,
    does_nothing_without_a_budget,
    stops_when_the_time_is_up,
    survives_a_broken_model,
    survives_a_broken_executor,
    can_be_interrupted,
    says_what_it_needs,
    plans_at_the_end_of_a_run,
)


def check(planner: Planner) -> None:
    """Run all checks.

    Raises:
        AssertionError: The planner breaks a promise of the contract.
    """
    for one in CHECKS:
        one(planner)


def _check_plan(plan: Plan) -> None:
    """Check that the cost of a plan is the sum over its outcomes.

    `Plan` checks all its other promises itself.
    """
    assert isinstance(plan, Plan), f"expected a Plan, found {plan!r}"
    outcomes = [outcome for candidate in plan.candidates for outcome in candidate.outcomes]
    outcomes += [outcome for dropped in plan.dropped for outcome in dropped.outcomes]
    for name in ("steps", "flops"):
        listed = sum(getattr(outcome, name) for outcome in outcomes)
        stated = getattr(plan.cost, name)
        assert abs(listed - stated) <= 1e-9 * stated, (
            f"expected outcomes of all {stated} {name} in the plan, found {listed}"
        )
    assert plan.cost.seconds >= 0


def _numpy_state() -> list[Any]:
    """Return NumPy's global random state, which a planner must not use."""
    state = np.random.get_state(legacy=True)  # noqa: NPY002
    return [part.tolist() if isinstance(part, np.ndarray) else part for part in state]
