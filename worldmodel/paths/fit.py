"""Fit an ensemble to examples: quantiles by the pinball loss, the mean by a Huber loss."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from trainenv.worldmodel.paths.inputs import PATH, STATE_INPUTS
from trainenv.worldmodel.paths.network import LEVELS, Ensemble, Shape
from trainenv.worldmodel.paths.table import PathTable

_USUAL = [STATE_INPUTS + PATH.index(name) for name in ("now_over_usual", "peak_over_usual")]
_KNOWN = STATE_INPUTS + PATH.index("usual_known")
_MEAN = 5.0  # weight of the mean's loss: squared nats are small next to nats


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """Hyperparameters of the fit.

    Args:
        shape: Sizes of the ensemble.
        epochs: Passes over the examples.
        batch_size: Examples of a batch.
        lr: Greatest learning rate of a one-cycle schedule.
        weight_decay: Decoupled weight decay.
        smooth: Error below which the loss of a quantile is a parabola, nats.
        huber: Error above which the loss of the mean is linear, nats: far above the usual error, so
            that rare disasters count.
        blind: Share of the examples, drawn anew in each epoch, that are shown nothing of the run;
            1 for an ablation. Some make the ensemble its own blind control.
        vague: Share of the examples without the usual rate of their size.
        spread: Standard deviation of the noise on the usual rate, nats: it is a rule of thumb.
        hidden: Numbers of inputs that are hidden, for ablations.
        seed: Random seed.
    """

    shape: Shape = field(default_factory=Shape)
    epochs: int = 30
    batch_size: int = 512
    lr: float = 5e-3
    weight_decay: float = 1e-2
    smooth: float = 0.02
    huber: float = 0.3
    blind: float = 0.1
    vague: float = 0.15
    spread: float = 0.3
    hidden: Collection[int] = ()
    seed: int = 0


def fit(table: PathTable, how: Fitting) -> Ensemble:
    """Return an ensemble fitted to all examples of a table."""
    with torch.random.fork_rng():
        torch.manual_seed(how.seed)
        return _fit(table, how)


def _fit(table: PathTable, how: Fitting) -> Ensemble:
    inputs = torch.from_numpy(table.inputs.astype(np.float32))
    target = torch.from_numpy(table.change.astype(np.float32))
    ensemble = Ensemble(how.shape)
    ensemble.center.copy_(inputs.mean(0))
    ensemble.scale.copy_(inputs.std(0).clamp_min(1e-4))
    ensemble.offset.copy_(target.median())
    shown = torch.ones(STATE_INPUTS + len(PATH))
    shown[list(how.hidden)] = 0
    # A hidden input is its mean, so that its weights never matter.
    inputs = torch.where(shown.bool(), inputs, ensemble.center)
    steps = how.epochs * math.ceil(len(inputs) / how.batch_size)
    optimizer = torch.optim.AdamW(ensemble.parameters(), weight_decay=how.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.lr, total_steps=steps)
    levels = torch.tensor(LEVELS)
    ensemble.train()
    for _ in range(how.epochs):
        for places in torch.randperm(len(inputs)).split(how.batch_size):
            some = _vague(inputs[places], how)
            blind = torch.rand(len(some)) < how.blind
            error = target[places, None] - ensemble(some, blind)  # [M, b, 1 + Q]
            mean = torch.nn.functional.huber_loss(
                error[..., 0], torch.zeros(()).expand_as(error[..., 0]), delta=how.huber
            )
            loss = _MEAN * mean + _pinball(error[..., 1:], levels, how.smooth).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    if how.hidden:
        ensemble.scale[~shown.bool()] = 1e9
    return ensemble.eval().requires_grad_(False)


def _vague(inputs: Tensor, how: Fitting) -> Tensor:
    """Return inputs with noise on the usual rate, and without it in some rows."""
    inputs = inputs.clone()
    known = (torch.rand(len(inputs), 1) >= how.vague).float()
    noise = how.spread * torch.randn(len(inputs), 1)
    inputs[:, _USUAL] = (inputs[:, _USUAL] + noise) * known
    inputs[:, _KNOWN] *= known[:, 0]
    return inputs


def _pinball(error: Tensor, levels: Tensor, smooth: float) -> Tensor:
    """Return the loss of quantiles; a Huber loss takes the place of the absolute value."""
    weight = torch.where(error > 0, levels, 1 - levels)
    size = error.abs()
    return weight * torch.where(size < smooth, size * size / (2 * smooth), size - smooth / 2)
