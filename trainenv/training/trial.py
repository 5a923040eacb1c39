"""Dry run of data and loss before a run starts; it changes nothing.

The data of index 0 are drawn twice, and the loss of their first micro-batch is computed once, in
evaluation mode. Random state, buffers, modes, attributes of modules and the objective's state are
restored.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trainenv.monitor.probe import evaluating
from trainenv.objectives import NextToken
from trainenv.tools.rng import RandomState
from trainenv.tools.same_data import same_data
from trainenv.training import numerics, parameter_names
from trainenv.training.backward import as_loss, mean_of
from trainenv.training.micro_batches import as_batch, labelled, placed
from trainenv.training.parts import Parts
from trainenv.types import Batch, LossSum, UserError

_SETS = ("validation", "full_validation", "test")


def try_out(parts: Parts, rng: RandomState, device: torch.device) -> Parts:
    """Check that data, loss, the sets to evaluate on and the probe fit each other.

    Args:
        parts: Parts of the run.
        rng: Random state of the run.
        device: Device of the run.

    Returns:
        The parts, with validation and test as micro-batches like those of the training data.

    Raises:
        UserError: Says what was returned, and what should be.
    """
    probe = parts.probe
    with ExitStack() as context:
        context.enter_context(rng.active(keep=False))
        context.enter_context(numerics.settings(parts.config))
        context.enter_context(torch.enable_grad())
        context.enter_context(untouched(parts.model, parts.objective))
        if numerics.is_compiled(parts.model):  # compiling for one look takes minutes
            context.enter_context(torch.compiler.set_stance("force_eager"))
        batch = _drawn(parts)
        if not batch.micro:
            raise UserError(
                "a Batch must hold at least one micro-batch, found none at data index 0"
            )
        micro = batch.micro[0]
        _check_loss(parts, device, micro, "batches(0)")
        sets = {name: _like_training(getattr(parts, name), micro) for name in _SETS}
        for name, micros in sets.items():
            _check_labels(parts, device, name, micros)
        firsts = {name: micros[0] for name, micros in sets.items() if micros}
        if probe is not None:
            firsts["probe"] = probe
        for name, one in firsts.items():
            if not _alike(one, micro):
                _check_loss(parts, device, one, f"the {name}'s micro-batch")
    return replace(
        parts,
        validation=sets["validation"],
        full_validation=sets["full_validation"],
        test=sets["test"],
    )


@contextmanager
def untouched(*parts: Any) -> Iterator[None]:
    """Restore modules and objects after the block: buffers, modes, attributes and state dicts."""
    owners = [
        getattr(part, "__self__", part) for part in parts
    ]  # of a method, the object that it belongs to
    holders = [
        holder
        for part in owners
        for holder in (part.modules() if isinstance(part, nn.Module) else [part])
    ]
    attributes = [
        (vars(holder), dict(vars(holder))) for holder in holders if hasattr(holder, "__dict__")
    ]
    registered = [module._buffers for module in holders if isinstance(module, nn.Module)]
    buffers = [
        (holder, name, buffer)
        for holder in registered
        for name, buffer in holder.items()
        if buffer is not None
    ]
    bits = [buffer.detach().clone() for _, _, buffer in buffers]
    stateful = [
        part
        for part in owners
        if not isinstance(part, nn.Module) and hasattr(part, "load_state_dict")
    ]
    states = [copy.deepcopy(part.state_dict()) for part in stateful]
    try:
        yield
    finally:
        for held, before in attributes:
            for name in [name for name in held if name not in before]:
                del held[name]
            held.update(
                {name: value for name, value in before.items() if held.get(name) is not value}
            )
        for (holder, name, buffer), kept in zip(buffers, bits):
            holder[name] = buffer
            if not torch.equal(buffer, kept):
                with torch.no_grad():
                    buffer.copy_(kept)
        for part, state in zip(stateful, states):
            part.load_state_dict(state)


# ── the data ──────────────────────────────────────────────────────────────────────────────────────


def _drawn(parts: Parts) -> Batch:
    """Return the data of index 0, which must be the same twice."""
    first = parts.batches(0)
    again = parts.batches(0)
    if first is None or isinstance(first, Iterator):
        found = "None" if first is None else f"a {type(first).__name__}"
        raise UserError(
            f"batches(index) must return the data of that index, found {found}; return it, without "
            "yield"
        )
    if not same_data(first, again):
        raise UserError(
            "batches must be a pure function of the data index, found other data at a second call "
            "of batches(0); "
            "index a list instead of next(…), and draw from torch.Generator().manual_seed(index)"
        )
    return as_batch(
        first, 0, parts.config.accumulation, bare=isinstance(parts.objective, NextToken)
    )


def _alike(one: Any, other: Any) -> bool:
    """Compare the form of data: kinds, keys and dimensions."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dim() == other.dim() and one.is_floating_point() == other.is_floating_point()
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(
            _alike(part, other[key]) for key, part in one.items()
        )
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    return type(one) is type(other)


def _like_training(validation: tuple[Any, ...], micro: Any) -> tuple[Any, ...]:
    """Return a validation or test set as a tuple of micro-batches.

    It may have been given as one micro-batch, or as one tensor of several.
    """
    if (
        isinstance(micro, list | tuple)
        and _alike(validation, micro)
        and not _alike(validation[0], micro)
    ):
        return (validation,)
    if len(validation) == 1 and isinstance(validation[0], Tensor) and isinstance(micro, Tensor):
        (only,) = validation
        if only.dim() == micro.dim() + 1:
            return tuple(only)
        return validation
    return validation


# ── the loss ──────────────────────────────────────────────────────────────────────────────────────


def _check_labels(
    parts: Parts, device: torch.device, name: str, validation: tuple[Any, ...]
) -> None:
    """Refuse a set without labels: its loss would be NaN throughout the run."""
    if not validation or any(labelled(validation)):
        return
    with torch.no_grad(), evaluating(parameter_names.unwrapped(parts.model)):
        losses = [
            mean_of(as_loss(parts.objective(parts.model, placed(micro, device))))
            for micro in validation
        ]
    if not any(bool(loss.isfinite()) for loss in losses):
        raise UserError(
            f"{name} must have labelled tokens, found none in its {len(losses)} "
            "micro-batch(es), so that its loss is NaN; "
            f"give labels other than -100, or leave the {name} set out"
        )


def _check_loss(parts: Parts, device: torch.device, micro: Any, where: str) -> None:
    # DDP waits for a backward pass after each forward
    model = parameter_names.unwrapped(parts.model)
    objective = parts.objective

    def compute() -> Any:
        with numerics.autocast(parts.config, device):
            return objective(model, placed(micro, device))

    try:
        with evaluating(model), ExitStack() as modes:
            if isinstance(objective, nn.Module):
                modes.enter_context(evaluating(objective))
            returned = compute()
    except (UserError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # some models take targets in training mode only
        try:
            returned = compute()
        except (UserError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            raise UserError(
                f"objective(model, micro_batch) must compute the loss of {where}, found "
                f"{type(error).__name__}: {error!s:.200}; "
                "make data, model and objective fit each other"
            ) from error
    loss = as_loss(returned)
    total = loss.total if isinstance(loss, LossSum) else loss
    if not total.requires_grad:
        raise UserError(
            "the loss carries no gradients: expected one computed from the model's outputs; leave "
            "out detach(), item() and torch.no_grad(), and let the model's parameters require "
            "gradients"
        )
    if isinstance(loss, LossSum) and float(loss.tokens) == 0 and float(total.detach()) != 0:
        raise UserError(
            "a pair that an objective returns must be (sum of the losses, number of labelled "
            f"tokens), found a sum of {float(total.detach()):g} over 0 tokens; "
            "return the loss alone"
        )
