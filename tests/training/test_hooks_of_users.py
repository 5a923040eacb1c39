"""Hooks whose closures hold state: a fork's hooks work on copies, never on what the run's own hooks hold."""

from __future__ import annotations

import logging
import threading
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.support.own_runs import adamw, go, net, run_of


def test_a_fork_leaves_an_average_of_the_weights_alone() -> None:
    model = net()
    average = AveragedModel(model)
    optimizer = adamw(model)
    optimizer.register_step_post_hook(lambda *_: average.update_parameters(model))
    run = run_of(model, optimizer)
    run.advance(2)
    before = int(average.n_averaged)
    run.fork().advance(3)
    assert int(average.n_averaged) == before == 2


def test_a_hook_that_counts_goes_on_alike_in_a_fork() -> None:
    model, count = net(), {"calls": 0}

    def louder(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        count["calls"] += module.training
        return output * (1 + count["calls"] / 50)

    model[1].register_forward_hook(louder)
    run = run_of(model)
    run.advance(3)
    fork = run.fork()
    assert go(run, 4) == go(fork, 4)


def test_what_a_hook_holds_and_cannot_be_copied_is_shared() -> None:
    model, lock, log = net(), threading.Lock(), logging.getLogger("hook")
    calls: list[int] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        with lock:
            calls.append(1)
            log.debug("called")

    model[0].register_forward_hook(hook)
    run = run_of(model)
    run.advance(1)
    before = len(calls)
    fork = run.fork()
    fork.advance(1)
    assert len(calls) == before
    assert go(run, 2)[1]
