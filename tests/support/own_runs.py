"""Runs of small parts of one's own, and the proof that such a run is a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.support.bigram import tokens
from trainenv.config.schema import TrainingConfig
from trainenv.run import TrainingRun

Trace = tuple[list[str], str]


def net() -> nn.Sequential:
    """An embedding and a linear layer over the eight tokens of `bigram`."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(8, 6), nn.Linear(6, 8))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over all parameters."""
    return torch.optim.AdamW(model.parameters(), 1e-2)


def config(**settings: Any) -> TrainingConfig:
    """A short run on one thread."""
    values = {"steps": 60, "threads": 1, "schedule": {"warmup": 2}, "monitor": {"probe_every": 2}}
    return TrainingConfig.model_validate(values | settings)


def run_of(model: nn.Module | None = None, optimizer: Any = None, **parts: Any) -> TrainingRun:
    """A run of a model and an optimizer, with a validation set."""
    model = net() if model is None else model
    given = {"batches": tokens, "config": config(), "validation": [tokens(99)]} | parts
    return TrainingRun(model, adamw(model) if optimizer is None else optimizer, **given)


def go(run: TrainingRun, steps: int) -> Trace:
    """What steps measured, exactly, and the fingerprint after them."""
    return [repr(t) for t in run.advance(steps)], run.fingerprint()


def assert_value(make: Callable[[], TrainingRun]) -> TrainingRun:
    """The run, its fork, the run restored and another one restored go on to the same bits; returns the run."""
    run = make()
    run.advance(3)
    snapshot, fork, here = run.snapshot(), run.fork(), run.fingerprint()
    assert fork.fingerprint() == here
    run.evaluate()
    assert run.fingerprint() == here
    expected = go(run, 4)
    assert go(fork, 4) == expected
    for restored in (run, make()):
        restored.restore(snapshot)
        assert restored.fingerprint() == here
        assert go(restored, 4) == expected
    return run
