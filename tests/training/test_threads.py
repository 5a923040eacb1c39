"""Runs in threads: torch's generators and numeric settings are the process's, and each run has the bits that it has alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv.config.schema import RunConfig, TrainingConfig
from trainenv.models import build
from trainenv.run import TrainingRun
from trainenv.tools import rng
from trainenv.tools.rng import exclusive, seeded
from trainenv.types import Intervention

SMALL: dict[str, Any] = {
    "steps": 40,
    "threads": 1,
    "model": {"width": 16, "layers": 1, "heads": 2, "context": 8, "dropout": 0.2},
    "batch_size": 4,
    "validation.sequences": 4,
    "monitor": {"block": 2, "probe_every": 3},
}
Result = TypeVar("Result")


def at_once(job: Callable[[int], Result], count: int) -> list[Result]:
    """What the job gives in each of so many threads, which begin together."""
    begin = threading.Barrier(count)

    def after_all_are_here(number: int) -> Result:
        begin.wait(30)
        return job(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(after_all_are_here, range(count)))


def trained(**settings: Any) -> tuple[str, float, float]:
    run = TrainingRun.from_config("tiny", SMALL | settings)
    losses = [t.loss for _ in range(6) for t in run.advance(2)]
    fork = run.fork()
    fork.apply(Intervention(lr_scale=0.8))
    fork.advance(2)
    return run.fingerprint() + fork.fingerprint(), losses[-1], run.evaluate()


@pytest.mark.parametrize("count", [2, 4])
def test_equal_runs_in_threads_end_equal_to_one_alone(count: int) -> None:
    alone = trained()
    assert at_once(lambda number: trained(), count) == [alone] * count


def test_unequal_runs_do_not_meet() -> None:
    different: list[dict[str, Any]] = [{}, {"seed": 5}, {"deterministic": True}, {"threads": 2}]
    alone = [trained(**settings) for settings in different]
    assert at_once(lambda number: trained(**different[number]), 4) == alone
    assert not torch.are_deterministic_algorithms_enabled()


def own(number: int) -> TrainingRun:
    def batches(index: int) -> Tensor:
        torch.manual_seed(100 * number + index)  # which is pure, if not polite
        return torch.randint(0, 8, (4, 6))

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    with seeded(number):
        model = nn.Sequential(nn.Embedding(8, 16), nn.Dropout(0.3), nn.Linear(16, 8))
    config = TrainingConfig.model_validate({"steps": 40, "threads": 1})
    validation = [torch.arange(12).view(2, 6) % 8]
    return TrainingRun(
        model,
        torch.optim.Adam(model.parameters(), 1e-2),
        batches,
        config,
        objective=loss,
        validation=validation,
    )


def test_runs_of_own_parts() -> None:
    def go(run: TrainingRun) -> tuple[list[float], float, str]:
        return [t.loss for _ in range(8) for t in run.advance(3)], run.evaluate(), run.fingerprint()

    alone = [go(own(number)) for number in range(3)]
    runs = [own(number) for number in range(3)]
    assert at_once(lambda number: go(runs[number]), 3) == alone


def test_data_that_seed_the_generators_disturb_nobody() -> None:
    run, before = own(1), torch.get_rng_state()
    assert run.flops_ahead > 0
    run.advance(2)
    run.evaluate()
    assert torch.equal(torch.get_rng_state(), before)


def test_models_are_made_alike_while_another_thread_trains() -> None:
    config = RunConfig.load("tiny", SMALL)
    alone = build.build(config, 64, torch.device("cpu")).state_dict()
    run = TrainingRun.from_config("tiny", SMALL)
    straight = run.fork()

    def job(number: int) -> Any:
        if number == 0:
            return [run.advance(1) for _ in range(20)]
        return [build.build(config, 64, torch.device("cpu")).state_dict() for _ in range(5)]

    for made in at_once(job, 2)[1]:
        assert all(torch.equal(made[name], alone[name]) for name in alone)
    straight.advance(20)
    assert run.fingerprint() == straight.fingerprint()


def test_a_run_that_is_made_of_own_parts_while_another_thread_trains_is_warned_of() -> None:
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive():
            inside.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(30)
    model = nn.Embedding(2, 2)
    optimizer, config = (
        torch.optim.SGD(model.parameters(), 0.1),
        TrainingConfig.model_validate({"steps": 3}),
    )
    threading.Timer(0.2, done.set).start()
    with pytest.warns(UserWarning, match=r"another thread is training .*rng.exclusive"):
        TrainingRun(model, optimizer, lambda index: torch.ones(2, 2, dtype=torch.long), config)
    thread.join(30)
    with exclusive():  # as it asks for
        TrainingRun(model, optimizer, lambda index: torch.ones(2, 2, dtype=torch.long), config)


def test_a_run_that_fails_lets_the_others_in() -> None:
    run = own(0)

    def fails(model: nn.Module, tokens: Tensor) -> Tensor:
        raise KeyError("mine")

    run.objective = fails
    with pytest.raises(KeyError, match="mine"):
        run.advance(1)
    assert at_once(lambda number: own(7).advance(1)[0].loss, 1) == [own(7).advance(1)[0].loss]


def test_a_run_inside_another_one_s_loss() -> None:
    inner = own(3)
    expected = [t.loss for t in inner.fork().advance(2)]
    seen: list[float] = []

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        seen.extend(t.loss for t in inner.advance(1))
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    outer, plain = own(4), own(4)
    outer.objective = loss
    assert [t.loss for t in outer.advance(2)] == [t.loss for t in plain.advance(2)]
    assert seen == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_of_a_thread_that_trains_is_not_locked_out() -> None:
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive():
            inside.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(30)
    child = os.fork()
    if not child:
        os._exit(0 if rng._lock.acquire(timeout=5) else 1)
    done.set()
    thread.join(30)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_seeding_for_a_while_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    with seeded(3):
        first = torch.rand(4)
    with seeded(3):
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.get_rng_state(), before)
