"""The loop does no harm: it never throws away more than it stated, and where it can't tell it does nothing and says so."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.lengths import either
from tests.support.steered_runs import Dreamer, Promising, Steered, refused, steered, toy
from trainenv.agents.branching import Branching
from trainenv.loop import resume, train
from trainenv.records.run_folder import RunFolder
from trainenv.rollouts import executor
from trainenv.rollouts.fork import Start
from trainenv.run import TrainingRun
from trainenv.types import Branchable, Plan, PlanningProblem, RunGroup, RunHistory
from trainenv.verification import record
from trainenv.verification.rules import Agreement
from trainenv.verification.verify import Verification

pytestmark = pytest.mark.usefixtures("alarms")

STEPS = either(short=300, long=400)
EXAMPLES = int(os.environ.get("FAULT_EXAMPLES", "3"))  # beside those that are always tried
HOW: dict[str, Any] = {
    "max_waste": 0.08,
    "every": 20,
    "verify_steps": 3,
    "top_k": 2,
    "default_clip": True,
}
MESSAGE = "it broke"  # what every fault says


class Broken(Exception):
    """Error that a faulty part raises."""


@dataclass(frozen=True)
class Fault:
    """Fault that is planted in an example.

    Attributes:
        part: `model`, `objective`, `batches`, `optimizer`, `planner`, `world model`, `rule` or `disk`.
        how: `raises`; of a loss `nan`, with a NaN gradient, or `masked`, with a gradient of 0.
        who: `run`, `control` or `branch`, in which parts that train fail.
        first: First step of the run at which it fails.
        last: Last step of the run at which it fails.
    """

    part: str
    how: str
    who: str
    first: int
    last: float


class Stage:
    """A run in which a fault strikes."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self.met, self.verifying = fault, 0, False
        self.roles: dict[int, str] = {}  # by model
        self.run = toy(
            STEPS,
            2e-2,
            HOW,
            validation={"every": 50},
            checkpoints={"every": 25, "moments": "exact"},
        )
        self._wrap(self.run)
        objective: Any = self.run.objective
        batches = self.run._batches
        self.run.objective = lambda model, micro, /: self._loss(objective, model, micro)
        self.run._batches = lambda index, /: self._batch(batches, index)

    def strikes(self, part: str, role: str = "") -> bool:
        """Return True if a part fails now."""
        fault = self.fault
        due = (
            part == fault.part
            and fault.first <= self.run.step + 1 <= fault.last
            and role in ("", fault.who)
        )
        self.met += due
        return due

    def raises(self, part: str, role: str = "") -> None:
        """Raise, if that is what it does now."""
        if self.fault.how == "raises" and self.strikes(part, role):
            raise Broken(MESSAGE)

    def _wrap(self, run: TrainingRun) -> None:
        role = self.roles.get(id(run.model), "run")
        step = run.optimizer.step

        def stepped(*given: Any, **named: Any) -> Any:
            self.raises("optimizer", role)
            return step(*given, **named)

        run.optimizer.step = stepped  # type: ignore[method-assign]
        run.model.register_forward_pre_hook(
            lambda *_: self.raises("model", role) if torch.is_grad_enabled() else None
        )

    def _batch(self, batches: Any, index: int) -> Any:
        self.raises("batches", "control" if self.verifying else "run")
        return batches(index)

    def _loss(self, objective: Any, model: Any, micro: Any) -> Any:
        role = self.roles.get(id(model), "run")
        loss = objective(model, micro)
        if not loss.requires_grad:
            return loss
        self.raises("objective", role)
        if self.fault.how in ("nan", "masked") and self.strikes("objective", role):
            return (
                loss * math.nan
                if self.fault.how == "nan"
                else (loss * 0.0) + torch.tensor(math.nan)
            )
        return loss

    @contextmanager
    def set(self) -> Iterator[None]:
        """Forks are told apart, and what verifies them is known to."""
        side_by_side, run, write = executor.side_by_side, executor.Rollouts.run, record.write

        def told_apart(
            parent: TrainingRun, starts: Sequence[Start], **how: Any
        ) -> RunGroup[Branchable]:
            together = side_by_side(parent, starts, **how)
            for place, fork in enumerate(together.runs):
                assert isinstance(fork, TrainingRun)
                self.roles[id(fork.model)] = "branch" if place else "control"
                fork.model._forward_pre_hooks.clear()
                fork.optimizer.__dict__.pop("step", None)
                self._wrap(fork)
            return together

        def verifying(rollouts: Any, *given: Any, **named: Any) -> Any:
            self.verifying = True
            try:
                return run(rollouts, *given, **named)
            finally:
                self.verifying = False

        def written(folder: Path, told: Any) -> Path:
            self.raises("disk")
            return write(folder, told)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(executor, "side_by_side", told_apart)
            patch.setattr(executor.Rollouts, "run", verifying)
            patch.setattr(record, "write", written)
            yield

    def callback(self) -> Branching:
        """The loop, whose drafts are verified and never accepted."""
        stage = self

        class Planner(Promising):
            def plan(self, problem: PlanningProblem, /) -> Plan:
                stage.raises("planner")
                return super().plan(problem)

        class Model(Dreamer):
            def forecast(self, history: RunHistory, interventions: Any, /) -> Any:
                stage.raises("world model")
                return super().forecast(history, interventions)

        class Rule(Agreement):
            def objection(self, branch: Any, control: Any, /) -> str:
                stage.raises("rule")
                return super().objection(branch, control)

        usual = refused()
        verification = Verification(top_k=2, verify_steps=3, rule=Rule())
        planner = Planner(forecasts=usual.forecasts, sequences=usual.sequences)
        return Branching(
            planner=planner, model=Model(flops_per_future=50.0), verification=verification
        )


def alone(fault: Fault) -> float:
    """The final loss of the same run, with the same fault of its own, that nobody steers."""
    stage = Stage(fault)
    with stage.set():
        folder = RunFolder.create(Path(tempfile.mkdtemp()) / "run", stage.run.config)
        return float(train(stage.run, folder)["final_validation_loss"] or math.inf)


def thrown_away(found: Steered) -> float:
    """Steps' worth of compute that is neither in the run nor in what it spends when nobody steers it."""
    flops = found.summary["flops"]
    kept = found.run.step * found.run.flops_per_step
    return (
        float(
            flops["main"]
            + flops["rewound"]
            + flops["verify"]
            + flops["plan"]
            + flops["model"]
            - kept
        )
        / found.run.flops_per_step
    )


PARTS = {
    "raises": (
        "model",
        "objective",
        "batches",
        "optimizer",
        "planner",
        "world model",
        "rule",
        "disk",
    ),
    "nan": ("objective",),
    "masked": ("objective",),
}
FAULTS = st.sampled_from(sorted(PARTS)).flatmap(
    lambda how: st.builds(
        Fault,
        part=st.sampled_from(PARTS[how]),
        how=st.just(how),
        who=st.sampled_from(
            ("control", "branch") if how == "raises" else ("run", "control", "branch")
        ),
        first=st.integers(2, 80),
        last=st.one_of(st.integers(0, 60), st.just(math.inf)),
    ).map(lambda fault: replace(fault, last=fault.first + fault.last))
)


@settings(
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(fault=FAULTS)
@example(Fault("objective", "masked", "run", 101, 101))
@example(Fault("objective", "nan", "run", 101, 140))
@example(Fault("objective", "nan", "run", 101, math.inf))
@example(Fault("objective", "nan", "control", 1, math.inf))
@example(Fault("model", "raises", "control", 1, math.inf))
@example(Fault("optimizer", "raises", "branch", 1, math.inf))
@example(Fault("batches", "raises", "control", 60, 100))
@example(Fault("disk", "raises", "run", 1, math.inf))
@example(Fault("world model", "raises", "run", 1, 100))
def test_whatever_fails_no_more_is_thrown_away_than_was_stated(fault: Fault) -> None:
    stage = Stage(fault)
    callback = stage.callback()
    stated = callback.cost_estimate(stage.run).steps
    with stage.set():
        found = steered(stage.run, callback)
    assert thrown_away(found) <= stated + 1
    named = [
        one
        for one in found.summary["faults"]
        if MESSAGE in one["reason"] or "not finite" in one["reason"]
    ]
    assert len({one["reason"] for one in found.summary["faults"]}) == len(found.summary["faults"])
    if stage.met and fault.how == "raises":
        assert named
    if fault.last < 0.9 * STEPS:  # it is over
        assert found.summary["ended"] == "budget spent"
        assert found.summary["final_validation_loss"] <= 1.01 * alone(fault)
    if fault.who != "run" or fault.how == "raises":
        assert found.of("rewind") == []
        assert found.run.lr_scale == 1.0


def test_each_fault_is_named_once_in_tree_summary_and_report() -> None:
    from trainenv.report.run.run_report import RunReport

    stage = Stage(Fault("model", "raises", "branch", 1, math.inf))
    with stage.set():
        found = steered(stage.run, stage.callback())
    assert len(found.decisions) > 1
    (fault,) = found.summary["faults"]
    assert (MESSAGE in fault["reason"], fault["times"]) == (True, len(found.decisions))
    assert RunReport(found.path).tree(200).count(MESSAGE) == 1
    page = RunReport(found.path).html().read_text(encoding="utf-8")
    assert page.count(MESSAGE) == 3  # once each in what to do, the timeline and the events


def test_an_error_of_the_run_itself_is_the_users_and_throws_nothing_away(tmp_path: Path) -> None:
    stage = Stage(Fault("objective", "raises", "run", 130, 130))
    folder = RunFolder.create(tmp_path / "run", stage.run.config)
    with stage.set(), pytest.raises(Broken, match=MESSAGE):
        train(stage.run, folder, callback=stage.callback())
    again = Stage(Fault("objective", "raises", "run", 0, -1))
    callback = again.callback()
    with again.set():
        folder, _ = resume(folder.path, again.run, callback)
        summary = train(again.run, folder, callback=callback)
    assert summary["ended"] == "budget spent"
    assert summary["rewinds"] == 0
    assert summary["final_validation_loss"] <= 1.01 * alone(again.fault)


def test_a_loop_whose_forks_all_fail_gives_up_and_says_so_once() -> None:
    stage = Stage(Fault("model", "raises", "control", 1, math.inf))
    with stage.set():
        found = steered(stage.run, stage.callback())
    assert [event["detail"]["reason"] for event in found.of("gave_up")] == [
        "doing nothing failed 2 times in a row, so that nothing can be compared"
    ]
    (fault,) = found.summary["faults"]
    assert fault["reason"].startswith(
        "doing nothing could not be trained to compare with, so nothing is done: Broken: it broke"
    )
    assert fault["times"] == 2
    assert found.decisions == []


@pytest.mark.parametrize("place", [13, 14, 15, 16, 31])  # a block of telemetry is 4 steps long
def test_one_loss_that_is_not_finite_is_one_odd_step(place: int) -> None:
    fault = Fault("objective", "masked", "run", place, place)
    stage = Stage(fault)
    with stage.set():
        found = steered(stage.run, stage.callback())
    assert found.of("rewind") == []
    assert found.run.lr_scale == 1.0
    assert [(one["step"], one["reason"], one["times"]) for one in found.summary["faults"]] == [
        (place, "the loss is not finite", 1)
    ]


def test_a_run_of_which_most_steps_are_odd_is_left_alone() -> None:
    """A third of all batches has no label."""
    run = toy(STEPS, 1e-2, HOW)
    objective: Any = run.objective
    run.objective = lambda model, micro, /: (
        objective(model, micro)
        * (math.nan if torch.is_grad_enabled() and int(micro[0, 0]) % 3 == 0 else 1.0)
    )
    found = steered(run, planner=refused())
    assert found.summary["ended"] == "budget spent"
    assert found.of("rewind") == []
    assert found.run.lr_scale == 1.0
    assert thrown_away(found) <= 0.1 * STEPS + 1
