"""Parameters that join, leave or are exchanged between steps: taken in, or refused in a sentence before the next step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.own_runs import adamw, config, go, net, run_of
from trainenv.checkpoints.store import CheckpointStore
from trainenv.run import TrainingRun
from trainenv.types import CLIP_POLICIES, Intervention, UserError

CLIPPED = {"clip": {"policy": "none", "options": {"none": {"max_norm": 0.01}}}}


def partly_frozen(make: Callable[[nn.Module], Any] = adamw, **settings: Any) -> TrainingRun:
    model = net()
    model[0].requires_grad_(False)
    return run_of(model, make(model), config=config(**settings))


def unfreeze(run: TrainingRun) -> None:
    run.model[0].requires_grad_(True)  # type: ignore[index, operator]


def group_later() -> TrainingRun:
    model = net()
    return run_of(model, adamw(model[1]), config=config(**CLIPPED))


def add_group(run: TrainingRun) -> None:
    run.optimizer.add_param_group({"params": run.model[0].parameters(), "lr": 5e-3})  # type: ignore[index]


@pytest.mark.parametrize(
    ("make", "join"),
    [(lambda: partly_frozen(**CLIPPED), unfreeze), (group_later, add_group)],
    ids=["unfrozen", "a group"],
)
def test_what_joins_is_clipped_scheduled_and_forked(
    make: Callable[[], TrainingRun], join: Callable[[TrainingRun], None]
) -> None:
    run = make()
    run.advance(4)
    join(run)
    run.apply(Intervention(lr_scale=0.5))
    fork, before = run.fork(), run.model[0].weight.detach().clone()  # type: ignore[index, union-attr]
    snapshot, expected = run.snapshot(), go(run, 3)
    assert go(fork, 3) == expected
    run.restore(snapshot)
    assert go(run, 3) == expected
    assert not torch.equal(run.model[0].weight, before)  # type: ignore[index, union-attr, arg-type]
    norms: list[float] = []
    run.optimizer.register_step_pre_hook(
        lambda optimizer, *_: norms.append(
            sum(float(p.grad.square().sum()) for g in optimizer.param_groups for p in g["params"])
        )
    )
    lr = run.advance(1)[-1].lr
    assert norms[0] ** 0.5 == pytest.approx(0.01, rel=1e-3)
    assert [group["lr"] / lr for group in run.optimizer.param_groups] == [1, pytest.approx(0.5)][
        : len(run.optimizer.param_groups)
    ]


@pytest.mark.parametrize("policy", CLIP_POLICIES)
def test_every_policy_takes_what_joins(policy: str) -> None:
    run = partly_frozen(clip={"policy": policy, "options": {"spam": {"warmup": 1, "interval": 9}}})
    run.advance(4)
    unfreeze(run)
    fork = run.fork()
    assert go(run, 3) == go(fork, 3)


def test_what_is_frozen_is_part_of_the_state(tmp_path: Path) -> None:
    run, store = partly_frozen(), CheckpointStore(tmp_path, moments="exact")
    start = run.snapshot()
    assert "frozen" not in start.state
    run.advance(2)
    unfreeze(run)
    run.advance(2)
    store.save(run.snapshot())
    expected = go(run, 3)
    other = partly_frozen()
    other.restore(store.load())
    assert go(other, 3) == expected
    first = go(partly_frozen(), 2)
    run.restore(start)
    assert not run.model[0].weight.requires_grad  # type: ignore[index, union-attr]
    assert go(run, 2) == first


def test_what_is_frozen_on_the_way_stays_as_it_is() -> None:
    run = run_of()
    run.advance(2)
    run.model[0].requires_grad_(False)  # type: ignore[index, operator]
    before, fork = run.model[0].weight.clone(), run.fork()  # type: ignore[index, union-attr, operator]
    assert go(run, 3) == go(fork, 3)
    assert torch.equal(run.model[0].weight, before)  # type: ignore[index, union-attr, arg-type]


def exchange(run: TrainingRun) -> None:
    run.model[1] = nn.Linear(6, 8)  # type: ignore[index, operator]


def tie(run: TrainingRun) -> None:
    run.model[1].weight = run.model[0].weight  # type: ignore[index, union-attr]


def freeze_all(run: TrainingRun) -> None:
    run.model.requires_grad_(False)


def drop_group(run: TrainingRun) -> None:
    run.optimizer.param_groups.pop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            exchange,
            "found 2 of 3 that are not.*; make the optimizer after the last change of the model, and a new run",
        ),
        (tie, "found 1 of 3 that are not"),
        (freeze_all, "require gradients, found none"),
        (drop_group, "must keep its 2 groups, found 1; make a new run"),
    ],
)
def test_what_cannot_be_taken_in_is_refused_before_the_next_step(
    change: Callable[[TrainingRun], None], message: str
) -> None:
    model = net()
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters()}]
    run = run_of(model, torch.optim.SGD(groups, 0.1))
    run.advance(2)
    change(run)
    for ask in (lambda: run.advance(1), run.fork):
        with pytest.raises(UserError, match=message):
            ask()
    assert run.step == 2


def test_a_snapshot_from_before_a_group_was_added_is_refused() -> None:
    run = group_later()
    run.advance(2)
    before = run.snapshot()
    add_group(run)
    run.advance(1)
    with pytest.raises(UserError, match=r"expected parameter groups of \[2, 1\], found \[2\]"):
        run.restore(before)


def test_gradients_from_before_joining_are_dropped() -> None:
    run = group_later()
    run.advance(3)  # in which the embedding had gradients, and no optimizer to clear them
    add_group(run)
    fork = run.fork()
    assert go(run, 2) == go(fork, 2)
