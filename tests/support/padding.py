"""Sequences that are padded, and every form of a loss over their labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv.config.schema import TrainingConfig
from trainenv.run import TrainingRun
from trainenv.types import LossSum, Telemetry

VOCABULARY, LENGTH = 32, 8


def padded(lengths: list[int], seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs and labels [rows, 8], of which the first of each row are labelled."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(0, VOCABULARY, (2, len(lengths), LENGTH), generator=generator)
    for row, length in enumerate(lengths):
        y[row, length:] = -100
    return x, y


def model_of(dtype: torch.dtype = torch.float64) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


def mean(model: nn.Module, batch: Any) -> Tensor:
    x, y = (batch["input_ids"], batch["labels"]) if isinstance(batch, Mapping) else batch[:2]
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100)


def pair(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    x, y = batch[:2]
    return F.cross_entropy(
        model(x).flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum"
    ), (y != -100).sum()


def noun(model: nn.Module, batch: Any) -> LossSum:
    total, count = pair(model, batch)
    return LossSum(total, int(count))


def divided(model: nn.Module, batch: Any) -> Tensor:
    """Zero divided by zero where nothing is labelled: unlike torch's loss it has a gradient of NaN there."""
    x, y = batch[:2]
    each = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100, reduction="none")
    return each.sum() / (y != -100).sum()


OBJECTIVES: dict[str, Callable[..., Any]] = {
    "mean": mean,
    "pair": pair,
    "noun": noun,
    "divided": divided,
}


def run_of(
    data: Any, objective: Any = mean, dtype: torch.dtype = torch.float64, **more: Any
) -> TrainingRun:
    model = more.pop("model", None) or model_of(dtype)
    clip = more.pop("clip", {"policy": "none"})
    validation, probe = more.pop("validation", ()), more.pop("probe", None)
    optimizer = more.pop("optimizer", None) or torch.optim.SGD(model.parameters(), 1.0)
    values = {
        "steps": 9,
        "threads": 1,
        "schedule": {"kind": "constant", "warmup": 0},
        "clip": clip,
    } | more
    config = TrainingConfig.model_validate(values)
    batches = data if callable(data) else lambda index: data
    return TrainingRun(
        model, optimizer, batches, config, objective=objective, validation=validation, probe=probe
    )


def weights(run: TrainingRun) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def step(run: TrainingRun) -> Telemetry:
    (telemetry,) = run.advance(1)
    return telemetry
