"""One model that several processes train has the losses of one process."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.distributed.worlds import Ended, world
from trainenv import TrainingRun

SMALL: dict[str, Any] = {
    "steps": 400,
    "model.width": 24,
    "model.layers": 2,
    "model.context": 16,
    "batch_size": 8,
    "validation.sequences": 10,
    "optimizer.lr": 1e-3,
}


def train(kind: str, steps: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Train, and return what each step measured."""
    run = TrainingRun.from_config("tiny", {**SMALL, "distributed": kind, **overrides})
    steps_taken = run.advance(steps)
    return {
        "loss": [one.loss for one in steps_taken],
        "norm": [one.grad_norm for one in steps_taken],
        "clipped": [one.grad_norm_clipped for one in steps_taken],
        "cosine": [one.hypergradient_cosine for one in steps_taken],
        "probe": [one.probe_loss for one in steps_taken],
        "index": [one.reading.index for one in steps_taken],
        "tokens": [one.tokens for one in steps_taken],
        "validation": run.evaluate(),
        "flops": run.ledger.total,
        "fingerprint": run.fingerprint(),
    }


CASES = [
    ("ddp", 2, 200, {}),
    ("fsdp2", 2, 200, {}),
    ("ddp", 2, 60, {"accumulation": 2, "clip.policy": "arc"}),
    ("fsdp2", 4, 30, {"accumulation": 2, "model.width": 30, "clip.policy": "adagc"}),
]


@pytest.mark.parametrize(("kind", "size", "steps", "overrides"), CASES)
def test_losses_are_those_of_one_process(
    kind: str, size: int, steps: int, overrides: dict[str, Any]
) -> None:
    """Steps differ by rounding, and every process measures the same."""
    torch.set_num_threads(1)
    alone = train("none", steps, overrides)
    together = world(size, train, kind, steps, overrides)
    assert not any(isinstance(one, Ended) for one in together), together
    assert all(repr(one) == repr(together[0]) for one in together)
    for name in ("loss", "norm", "clipped", "cosine", "probe"):
        pairs = list(zip(alone[name], together[0][name], strict=True))
        assert all(math.isnan(one) == math.isnan(two) for one, two in pairs), name
        off = [abs(one - two) for one, two in pairs if not math.isnan(one)]
        assert max(off) < 1e-5, name
    assert together[0]["validation"] == pytest.approx(alone["validation"], abs=1e-5)
    for name in ("flops", "tokens"):
        assert together[0][name] == alone[name], name
