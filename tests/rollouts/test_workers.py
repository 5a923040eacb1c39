"""Verification over worker processes: the same bits as in turn, and processes that die."""

from __future__ import annotations

import gc
import math
import multiprocessing.spawn
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import run_settings
from trainenv.agents.branching.branching_loop import verification_of
from trainenv.config.schema import BranchingConfig, RunConfig, TrainingConfig
from trainenv.rollouts import remote
from trainenv.rollouts.executor import NOTHING, Rollouts
from trainenv.rollouts.fork import Start
from trainenv.rollouts.future import Future
from trainenv.rollouts.parts_digest import parts_digest
from trainenv.rollouts.placement import side_by_side
from trainenv.rollouts.pool import Lost, Worker, Workers, _no_script
from trainenv.rollouts.worker import answered, packed, unpacked
from trainenv.run import TrainingRun
from trainenv.training import snapshots
from trainenv.training.ledger import Ledger
from trainenv.training.schedules import Constant
from trainenv.types import (
    CLIP_NAMES,
    Branchable,
    Candidate,
    Intervention,
    Measure,
    Plan,
    RunGroup,
    Snapshot,
    Telemetry,
    UserError,
)
from trainenv.verification.verify import Verification

SMALL: dict[str, Any] = run_settings.SMALL | {
    "steps": 48,
    "block_steps": 2,
    "validation": {"every": 0, "sequences": 4},
    "interventions": {"lr_bounds": [1e-2, 1e12]},
}
LOWER, FATAL = (Intervention(lr_scale=0.5),), (Intervention(lr_scale=1e12, clip="none"),)
RESET = (Intervention(), Intervention(momentum_reset=True, clip="zclip", data_reorder=True))
TOO_LOW = (Intervention(lr_scale=0.05),) * 2
CHOICES = (NOTHING, LOWER, RESET, FATAL, TOO_LOW)


def made(overrides: dict[str, Any] | None = None, **parts: Any) -> TrainingRun:
    return TrainingRun.from_config("tiny", SMALL | (overrides or {}), **parts)


@pytest.fixture(scope="module")
def run() -> Iterator[TrainingRun]:
    """A run some steps in. Its workers are started once, for it takes seconds."""
    run = made()
    run.advance(10)
    yield run
    remote.dismiss(run)


def rollouts(run: TrainingRun, workers: int, **more: Any) -> Rollouts:
    return Rollouts(
        run, **({"decision_steps": 5, "cooldown": 6, "fold": False} | more), workers=workers
    )


def came_to(future: Future, run: TrainingRun) -> str:
    """All of a future, to the bit."""
    fork = run.fork()
    if future.state is not None:
        fork.restore(future.state)
    return repr((future, future.telemetry, future.state and fork.fingerprint()))


def measured(
    run: TrainingRun,
    workers: int,
    sequences: Sequence[Any],
    steps: int,
    measure: Measure,
    **more: Any,
) -> list[str]:
    """Outcomes and costs of futures, in words."""
    draw, spent = more.pop("draw", 0), run.ledger.as_dict()
    executor = rollouts(run, workers, **more)
    outcomes = executor.run(sequences, steps, measure=measure, draw=draw)
    cost = {purpose: flops - spent[purpose] for purpose, flops in run.ledger.as_dict().items()}
    futures = [came_to(executor.future(one, steps, draw=draw), run) for one in sequences]
    return [*map(repr, outcomes), *futures, repr(cost)]


def present(run: TrainingRun) -> list[Worker]:
    """The workers of a run that live."""
    workers = remote._kept[run]
    assert workers is not None
    return [worker for worker in workers._workers if worker.alive]


# ── the same bits ───────────────────────────────────────────────────────────────────────────────────────────────────


def no_gain(future: Sequence[Telemetry], control: Sequence[Telemetry]) -> str:
    return "stopped: it gains nothing" if future[-1].loss > control[-1].loss else ""


@pytest.mark.parametrize(
    ("measure", "more"),
    [
        ("annealed", {}),
        ("final", {}),
        ("horizon", {"draw": 1, "evaluate_every": 4, "stopping": no_gain}),
    ],
)
def test_branches_in_workers_are_those_in_turn_to_the_bit(
    run: TrainingRun, measure: Measure, more: dict[str, Any]
) -> None:
    before = run.fingerprint()
    in_turn = measured(run, 0, CHOICES, 12, measure, **more)
    assert measured(run, 2, CHOICES, 12, measure, **more) == in_turn
    assert run.fingerprint() == before
    assert len(present(run)) == 2  # it was over workers
    assert "diverged=True" in in_turn[3]
    assert more or "lr_scale in force must stay within" in in_turn[4]


interventions = st.builds(
    Intervention,
    lr_scale=st.sampled_from([0.5, 0.9, 1.0, 1.1, 300.0]),
    clip=st.sampled_from([None, *CLIP_NAMES]),
    momentum_reset=st.booleans(),
    data_reorder=st.booleans(),
    skip_batch=st.booleans(),
)


@settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    drafted=st.lists(st.tuples(interventions, interventions), min_size=1, max_size=4),
    steps=st.integers(1, 8),
)
def test_whatever_is_drafted(run: TrainingRun, drafted: list[Any], steps: int) -> None:
    sequences = [NOTHING, *drafted]
    settings = {"decision_steps": 3, "cooldown": 3}
    assert measured(run, 2, sequences, steps, "annealed", **settings) == measured(
        run, 0, sequences, steps, "annealed", **settings
    )


def test_a_future_is_gone_on_with_and_adopted(run: TrainingRun) -> None:
    ends = []
    state, spent = run.snapshot(), run.ledger.as_dict()
    for workers in (0, 2):
        executor = rollouts(run, workers)
        executor.run([NOTHING, LOWER], 4, measure="horizon")
        executor.run([NOTHING, LOWER], 9, measure="horizon")  # from the four on
        assert len(executor.adopt(LOWER, 9)) == 9
        ends.append((run.fingerprint(), run.ledger["main"] - spent["main"]))
        run.restore(state)
        run.ledger.load(spent)
    assert ends[0] == ends[1]
    assert ends[0][1] == pytest.approx(9 * run.flops_per_step)


def test_a_verification_judges_the_same(run: TrainingRun) -> None:
    drafted = [Candidate(interventions=one, score=-0.1) for one in (LOWER, RESET, FATAL)]
    plan = Plan(
        planner="scripted", candidates=(*drafted, Candidate(interventions=NOTHING, score=0.0))
    )
    verdicts = []
    for workers in (0, 2):
        verification = Verification(verify_steps=8, fold=False, workers=workers)
        verdicts.append(
            repr(
                verification.verify(verification.rollouts(run, decision_steps=5), plan, horizon=20)
            )
        )
    assert verdicts[0] == verdicts[1]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 2)])
def test_a_snapshot_is_unpacked_as_it_was(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (
        torch.tensor([0.0, -0.0, float("nan"), 1.5, 7.0, -2.0])
        .to(dtype)[: math.prod(shape)]
        .view(shape)
    )
    snapshot = Snapshot(
        step=3, tensors={"one": tensor}, state={"one": {"tensor": "one"}}, tier="8bit"
    )
    found = unpacked(packed(snapshot))
    assert (found.step, found.state, found.tier) == (3, snapshot.state, "8bit")
    assert (found.tensors["one"].dtype, found.tensors["one"].shape) == (dtype, tensor.shape)
    assert (
        found.tensors["one"].flatten().view(torch.uint8).tolist()
        == tensor.flatten().view(torch.uint8).tolist()
    )


def test_commands_are_sent_to_all_before_any_is_waited_for() -> None:
    order: list[str] = []

    class Quiet:
        def __init__(self, name: str) -> None:
            self.name = name

        def send(self, command: str, arguments: Any) -> None:
            order.append(f"to {self.name}")

        def receive(self) -> Any:
            order.append(f"from {self.name}")
            return {}

    one, two = Quiet("one"), Quiet("two")
    workers = Workers(RunConfig.load("tiny", SMALL), 2)
    workers.ask("advance", {one: {0: 5}, two: {1: 5}})  # type: ignore[dict-item]
    assert order == ["to one", "to two", "from one", "from two"]


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_worker_raises_is_told_of_that_branch_alone(run: TrainingRun) -> None:
    measured(run, 2, [NOTHING, LOWER], 1, "horizon")
    worker = present(run)[0]
    worker.send("advance", {0: -1})
    assert worker.receive()[0].error == "steps must be 0 or more, found -1"
    worker.send("advance", {0: "three"})
    assert worker.receive()[0].error.startswith("steps must be a whole number")
    worker.send("advance", {0: 3})
    assert [t.step for t in worker.receive()[0].value] == [12, 13, 14]
    assert worker.alive
    fork = run.fork()
    assert answered(fork, "apply", Intervention(lr_scale=1e-3)).refused
    assert answered(fork, "scale", 0.5).lr_scale == fork.lr_scale == 0.5


def followed(together: RunGroup[Branchable]) -> list[str]:
    """Answers of a fork to one command after the other."""
    fork = together.runs[1]
    fork.apply(Intervention(lr_scale=0.5, momentum_reset=True))
    said = [together.advance(3, [0, 1]), fork.lr_scale]
    fork.lr_scale *= 0.3
    said += [together.advance(2, [1]), together.evaluate([1])]
    with pytest.raises(UserError, match="must stay within"):
        fork.apply(Intervention(lr_scale=1e-3))
    fork.lr_scale *= 0.1
    said += [together.advance(2, [1]), fork.lr_scale, snapshots.fingerprint(together.snapshot(1))]
    return list(map(repr, said))


@pytest.mark.parametrize("answers", [0, 4, 6, 9])
def test_whenever_a_worker_is_lost(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    """It has answered so often: the fork says and spends what it would have."""
    measured(run, 2, [NOTHING, LOWER], 1, "horizon")
    _, second = present(run)
    receive, left = second.receive, [None] * answers

    def lost() -> Any:
        answer = receive()
        if not left:
            raise Lost(-signal.SIGKILL)
        left.pop()
        return answer

    monkeypatch.setattr(second, "receive", lost)
    ledgers = [Ledger(), Ledger()], [Ledger(), Ledger()]
    in_turn, away = (
        [Start(state=run.snapshot(), draw=1, ledger=ledger) for ledger in both] for both in ledgers
    )
    expected = followed(side_by_side(run, in_turn, fold=False, workers=0))
    with pytest.warns(UserWarning, match="exit code −9"):
        assert followed(side_by_side(run, away, fold=False, workers=2)) == expected
    assert [ledger.as_dict() for ledger in ledgers[1]] == [
        ledger.as_dict() for ledger in ledgers[0]
    ]


def test_what_can_not_be_trained_here_either_fails_in_words(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(run, 2, [NOTHING, LOWER], 1, "horizon")
    _, second = present(run)
    receive, told = second.receive, []

    def no_memory(self: TrainingRun, steps: int) -> list[Telemetry]:
        raise MemoryError("no more")

    def lost() -> Any:
        told.append(receive())
        if len(told) < 4:  # started, steered, trained, and then
            return told[-1]
        raise Lost(-signal.SIGKILL)

    monkeypatch.setattr(second, "receive", lost)
    monkeypatch.setattr(TrainingRun, "advance", no_memory)
    with pytest.warns(UserWarning, match="exit code −9"):
        outcomes = rollouts(run, 2, evaluate_every=3).run(
            [NOTHING, LOWER, RESET], 4, measure="horizon"
        )
    assert [outcome.error for outcome in outcomes[::2]] == ["", ""]
    assert (
        outcomes[1].error
        == "the worker ended with exit code −9; then, in turn: RuntimeError: MemoryError: no more"
    )


def test_runs_of_your_own_parts_are_trained_in_turn_and_told_so_once() -> None:
    model = torch.nn.Embedding(8, 8)
    config = TrainingConfig(steps=9, monitor={"probe_every": 0})  # type: ignore[arg-type]
    tokens = torch.randint(0, 8, (2, 9), generator=torch.Generator().manual_seed(0))
    own = TrainingRun(
        model,
        torch.optim.AdamW(model.parameters()),
        lambda index: tokens,
        config,
        validation=[tokens],
    )
    own.objective = lambda model, seen: model(seen).square().mean()
    with pytest.warns(
        UserWarning, match="trained in turn: worker processes build a run from its RunConfig"
    ):
        first = rollouts(own, 2).run([NOTHING, LOWER], 3, measure="horizon")
    second = rollouts(own, 2).run(
        [NOTHING, LOWER], 3, measure="horizon"
    )  # no warning, which would be an error
    assert repr(first) == repr(second)
    assert first[0].steps == 3


PARTS: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "seed": ({"seed": 1}, {}, {"data"}),
    "validation": ({}, {"validation": [torch.zeros(4, 17, dtype=torch.long)]}, {"validation set"}),
    "probe": ({}, {"probe": torch.zeros(2, 17, dtype=torch.long)}, {"probe"}),
    "schedule": ({}, {"schedule": Constant(warmup=3)}, {"schedule"}),
    "rate": ({"optimizer.lr": 1e-3}, {}, {"optimizer"}),
    "stress": (
        {"stressors": {"planted": [{"at": 40, "kind": "lr_spike", "size": 9.0}]}},
        {},
        {"stress"},
    ),
    "threads": ({"threads": 2}, {}, {"threads"}),
    "layers": ({"model": {**SMALL["model"], "layers": 2}}, {}, {"model"}),
}


@pytest.mark.parametrize("name", PARTS)
def test_likeness_names_the_part_that_differs(run: TrainingRun, name: str) -> None:
    overrides, parts, odd = PARTS[name]
    ours, theirs = parts_digest(run), parts_digest(made(overrides, **parts))
    assert {name for name in ours if ours[name] != theirs[name]} == odd


def test_likeness_is_of_the_parts_not_the_state(run: TrainingRun) -> None:
    assert parts_digest(run) == parts_digest(made())
    fork = run.fork()
    fork.restore(run.snapshot())
    fork.apply(Intervention(lr_scale=0.5, momentum_reset=True))
    fork.advance(2)
    assert parts_digest(fork) == parts_digest(run)
    fork.objective = lambda model, micro: model(micro).mean()
    assert parts_digest(fork) != parts_digest(run)


def test_a_configuration_of_the_loop_says_how_many() -> None:
    assert BranchingConfig().workers == 0
    assert verification_of(BranchingConfig(workers=3).settings(100)).workers == 3


def test_counts_below_what_makes_sense(run: TrainingRun) -> None:
    with pytest.raises(UserError, match="expected 1 worker or more, found 0"):
        Workers(RunConfig.load("tiny", SMALL), 0)
    with pytest.raises(UserError, match="workers must be a whole number, at least 0, found -1"):
        Verification(workers=-1)
    with pytest.raises(UserError, match="and -1"):
        rollouts(run, -1)
    with pytest.raises(UserError, match=r"branching\.workers"):
        RunConfig.load("tiny", SMALL | {"branching.workers": -1})


# ── their lives ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_script_that_runs_is_not_imported_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    script = ModuleType("__main__")
    script.__file__, script.__spec__ = "script.py", None
    monkeypatch.setitem(sys.modules, "__main__", script)
    with _no_script():
        prepared = multiprocessing.spawn.get_preparation_data("worker")
    assert not [key for key in prepared if key.startswith("init_main")]
    assert [
        key
        for key in multiprocessing.spawn.get_preparation_data("worker")
        if key.startswith("init_main")
    ]


def test_workers_end_with_their_run(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(Workers, "close", lambda self: closed.append(self))
    short_lived = made()
    workers = remote._made(short_lived, 2)
    assert remote._kept[short_lived] is workers
    del short_lived
    gc.collect()
    assert closed == [workers]


def test_a_killed_worker_changes_no_bit_and_a_crash_fails_its_branches(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a verification. What the one held is trained again here and charged once, what crashed the other isn't."""
    measured(run, 2, [NOTHING, LOWER], 1, "horizon")
    first, second = present(run)  # of the branches 0 and 2, and of 1

    struck = []

    def crash() -> None:
        raise Lost(-signal.SIGSEGV)

    def strike(future: Sequence[Telemetry], control: Sequence[Telemetry]) -> str:
        if not struck:
            struck.append(first.pid)
            os.kill(first.pid or 0, signal.SIGKILL)
            monkeypatch.setattr(second, "receive", crash)
        return ""

    executor = rollouts(run, 0)
    in_turn = executor.run([NOTHING, RESET, LOWER], 12, measure="annealed")
    with pytest.warns(
        UserWarning, match="the worker ended with exit code −9: what it trained is trained in turn"
    ):
        outcomes = rollouts(run, 2, stopping=strike).run(
            [NOTHING, RESET, LOWER], 12, measure="annealed"
        )
    assert [repr(outcomes[place]) for place in (0, 2)] == [repr(in_turn[place]) for place in (0, 2)]
    assert (outcomes[1].error, outcomes[1].steps) == ("the worker ended with exit code −11", 3)
    assert not first.alive


def test_the_lost_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Paper:
        def __init__(self, config: RunConfig, executor: str, workers: int) -> None:
            self.alive = True

        def check(self, digest: Any) -> None:
            assert self.alive

    monkeypatch.setattr("trainenv.rollouts.pool.Worker", Paper)
    workers = Workers(RunConfig.load("tiny", SMALL), 3)
    first, second, third = workers.ready({})
    assert list(workers.ready({})) == [first, second, third]
    second.alive = False  # type: ignore[misc]
    kept = workers.ready({})
    assert list(kept[:2]) == [first, third]
    assert len(kept) == 3
    assert second not in kept


def test_processes_are_closed_and_refuse_another_run(run: TrainingRun) -> None:
    """The last: it ends the workers of this module."""
    workers = remote._kept[run]
    assert workers is not None
    here = present(run)
    assert here
    with pytest.raises(
        UserError, match="build a run with another probe; state it in the configuration"
    ):
        here[0].check(parts_digest(run) | {"probe": "another"})
    with workers:
        pass
    assert not [
        worker for worker in here if worker.alive or (worker.pid and psutil.pid_exists(worker.pid))
    ]
    with pytest.raises(Lost, match=f"exit code −{signal.SIGTERM.value}"):
        here[0].receive()
