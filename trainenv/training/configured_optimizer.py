"""Optimizers by the name in a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from trainenv.config.schema import OptimizerConfig
from trainenv.models.spec import spec_of
from trainenv.tools.optional import require
from trainenv.training.chained_optimizer import ChainedOptimizer
from trainenv.training.optimizers import adamw, decay_groups
from trainenv.types import UserError


def make(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Return the configured optimizer over the trained parameters of a model.

    Matrices decay; biases, norms and position embeddings do not. `muon` is a `ChainedOptimizer`:
    Muon for the matrices inside the model, AdamW for embeddings, the output layer and the rest. Its
    updates have the size of AdamW's (`match_rms_adamw`), so that one learning rate serves both.

    Raises:
        UserError: A package is missing, or this version of torch has no such optimizer.
    """
    if config.name == "adamw":
        return adamw(model, config)
    if config.name == "muon":
        return _muon(model, config)
    groups = decay_groups(model, config.weight_decay)
    if config.name == "adam":
        return Adam(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    if config.name == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    if config.name == "adafactor":
        return _of_torch("Adafactor", "2.5")(groups, lr=config.lr)
    if config.name == "adamw_8bit":
        require("bitsandbytes", "optimizer.name adamw_8bit")
        from bitsandbytes.optim import AdamW8bit  # type: ignore[attr-defined]

        made: Any = AdamW8bit(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    else:
        require("schedulefree", "optimizer.name schedule_free")
        from schedulefree import AdamWScheduleFree

        made = AdamWScheduleFree(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    assert isinstance(made, Optimizer)
    return made


def _muon(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    make_muon = _of_torch("Muon", "2.9")
    chosen = {id(p) for p in _inner_matrices(model)}
    groups = decay_groups(model, config.weight_decay)
    matrices = [p for group in groups for p in group["params"] if id(p) in chosen]
    if not matrices:
        raise UserError(
            "optimizer.name muon needs matrices inside the model, found none in "
            f"{type(model).__name__}; take adamw"
        )
    muon = make_muon(
        matrices,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    rest = [
        group | {"params": [p for p in group["params"] if id(p) not in chosen]} for group in groups
    ]
    rest = [group for group in rest if group["params"]]
    if not rest:
        return muon
    adam = torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    return ChainedOptimizer([muon, adam])


def _of_torch(name: str, version: str) -> Callable[..., Optimizer]:
    """Return an optimizer of torch that exists from a version on."""
    made: Callable[..., Optimizer] | None = getattr(torch.optim, name, None)
    if made is None:
        raise UserError(
            f"optimizer.name {name.lower()} needs torch {version} or newer, found "
            f"{torch.__version__}; pip install -U torch, or take adamw"
        )
    return made


def _inner_matrices(model: nn.Module) -> Sequence[nn.Parameter]:
    """Return the trained matrices that decay, without embeddings and the output layer."""
    spec = spec_of(model)
    outside = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    find = getattr(model, "get_output_embeddings", None)
    last = find() if callable(find) else None
    outside.add(id(getattr(last, "weight", None)))
    return [
        p
        for name, p in model.named_parameters()
        if p.requires_grad and p.ndim == 2 and spec.decays(name, p) and id(p) not in outside
    ]
