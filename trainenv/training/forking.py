"""Independent copies of what a run trains: model, optimizer and objective.

`copy.deepcopy` alone is not enough. It loses all attributes of an optimizer but three, hooks on
parameters and compiled calls, and it shares what functions hold in their closures: a hook of the
copy would then change the original.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from logging import Logger
from types import CellType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from trainenv.training.optimizer_attributes import held_optimizers
from trainenv.types import UserError

Memo = dict[int, Any]  # as `copy.deepcopy` has it: the id of what was copied → its copy


def copy_trained(
    model: nn.Module, optimizer: Optimizer, objective: Any
) -> tuple[nn.Module, Optimizer, Any]:
    """Return copies of a model, its optimizer and the objective that share nothing with them.

    Tensors that are part of the graph of an earlier step (a kept activation, for example) are
    copied without it. References to the originals in the closures of hooks become references to the
    copies.

    Raises:
        UserError: Names a part that cannot be copied.
    """
    made, stepping, loss = _copied(model, optimizer, objective, {})
    return made, stepping, loss


def check_forkable(model: nn.Module, optimizer: Optimizer, objective: Any) -> None:
    """Check that `copy_trained` can copy these objects.

    Weights and moments are not copied, so it costs no memory.

    Raises:
        UserError: Names a part that cannot be copied.
    """
    kept = [*model.parameters(), *model.buffers(), *_tensors(dict(optimizer.state), set())]
    _copied(model, optimizer, objective, {id(tensor): tensor for tensor in kept}, check=True)


def _copied(
    model: nn.Module, optimizer: Optimizer, objective: Any, known: Memo, *, check: bool = False
) -> Any:
    memo = dict(known)
    try:
        try:
            copies = (
                copy.deepcopy(model, memo),
                copy.deepcopy(objective, memo),
                _copy_optimizer(optimizer, memo),
            )
        except torch.OutOfMemoryError:
            raise
        except (
            RuntimeError
        ):  # torch refuses tensors that are no leaves of a graph; to look for them takes time
            memo = dict(known) | _detached(model, objective, optimizer)
            copies = (
                copy.deepcopy(model, memo),
                copy.deepcopy(objective, memo),
                _copy_optimizer(optimizer, memo),
            )
        _follow(model, memo)
        if isinstance(objective, nn.Module):
            _follow(objective, memo)
        if not check:
            _copy_hooks(_parameters(model, optimizer, objective), memo)
    except Exception as error:
        if isinstance(error, UserError | torch.OutOfMemoryError):
            raise
        where, kind = _culprit(model, optimizer, objective)
        raise UserError(
            f"the run cannot be forked: {where} is {kind} that cannot be copied ({error!s:.120}); "
            "keep it outside, or give "
            "what holds it a __deepcopy__ or __getstate__ that leaves it out"
        ) from error
    return copies[0], copies[2], _followed(copies[1], memo)


def _copy_optimizer(optimizer: Any, memo: Memo) -> Any:
    """Return a copy of an optimizer with all of its attributes and inner optimizers.

    `Optimizer.__getstate__` keeps three attributes.
    """
    kind = type(optimizer)
    own = (
        hasattr(kind, "__deepcopy__")
        or getattr(kind, "__getstate__", None) is not Optimizer.__getstate__
    )
    if id(optimizer) in memo or (own and isinstance(optimizer, Optimizer)):
        return copy.deepcopy(optimizer, memo)
    made = memo[id(optimizer)] = object.__new__(kind)
    for inner in held_optimizers(optimizer):
        _copy_optimizer(inner, memo)
    for name, value in vars(optimizer).items():
        if not hasattr(
            value, "_wrapped_by_lr_sched"
        ):  # a scheduler's `step`, which steps the original
            vars(made)[name] = copy.deepcopy(value, memo)
            if name not in ("state", "param_groups", "defaults"):
                _rekey(
                    vars(made)[name],
                    [id(p) for group in optimizer.param_groups for p in group["params"]],
                    memo,
                )
    _follow(optimizer, memo)
    return made


def _rekey(made: Any, ids: list[int], memo: Memo) -> None:
    """Key a copied dict by the copies of parameters where it is keyed by them or by their ids."""
    renamed: dict[Any, Any] = {}
    if isinstance(made, WeakIdKeyDictionary):
        renamed = {key: memo[id(key)] for key in made if id(key) in memo}
    elif isinstance(made, dict):
        renamed = {place: id(memo[place]) for place in ids if place in made and place in memo}
    if renamed:
        items = list(made.items())
        made.clear()
        for key, value in items:
            made[renamed.get(key, key)] = value


def _follow(original: Any, memo: Memo) -> None:
    """Make functions held by the copy of a module or optimizer refer to copies."""
    holders = original.modules() if isinstance(original, nn.Module) else [original]
    for holder in holders:
        made = memo.get(id(holder), holder)
        if made is holder:
            continue
        for name, value in list(vars(made).items()):
            if isinstance(value, FunctionType):
                made.__dict__[name] = _followed(value, memo)
            elif isinstance(value, dict) and "hooks" in name:
                value.update(
                    {key: _followed(hook, memo, stateful=True) for key, hook in value.items()}
                )
        if getattr(holder, "_compiled_call_impl", None) is not None:
            made._compiled_call_impl = _compiled_alike(holder, made)


def _followed(function: Any, memo: Memo, *, stateful: bool = False) -> Any:
    """Return the function with copies in place of originals in its closure and defaults.

    Args:
        function: Any object; one that is not a function is returned unchanged.
        memo: Copies made so far, by the id of the original.
        stateful: True to copy other state in the closure too, such as that of a hook that averages
            weights.
    """
    if not isinstance(function, FunctionType):
        return function
    cells = function.__closure__ or ()
    held = [_content(cell) for cell in cells]
    defaults = function.__defaults__ or ()
    if stateful:
        for part in (*held, *defaults):
            _copy_state(part, memo)
    if not any(id(part) in memo for part in (*held, *defaults)):
        return function
    closure = tuple(
        CellType(memo[id(part)]) if id(part) in memo else cell for cell, part in zip(cells, held)
    )
    given = tuple(memo.get(id(part), part) for part in defaults)
    made = FunctionType(
        function.__code__, function.__globals__, function.__name__, given or None, closure
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return made


def _copy_state(value: Any, memo: Memo) -> None:
    """Put a copy of a module, tensor, container or plain object into the memo.

    What cannot be copied stays shared.
    """
    if id(value) in memo or not (
        isinstance(value, Tensor | dict | list | set | deque) or hasattr(value, "__dict__")
    ):
        return
    if isinstance(value, type | FunctionType | ModuleType | Logger):
        return
    tried = dict(memo)
    with suppress(Exception):
        copy.deepcopy(value, tried)
        memo.update(tried)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _compiled_alike(original: nn.Module, made: nn.Module) -> Any:
    """Compile the call of the copy if the module was compiled in place (`model.compile()`)."""
    call: Any = original._compiled_call_impl
    held = dict(zip(call.__code__.co_freevars, (_content(cell) for cell in call.__closure__ or ())))
    context = held.get("self")
    if not callable(context):
        raise UserError(
            "the run cannot be forked: a module was compiled in place; take torch.compile(module) "
            "instead"
        )
    return context(made._call_impl)


def _copy_hooks(parameters: list[Tensor], memo: Memo) -> None:
    """Copy attributes and hooks of parameters, such as a mask on a gradient."""
    for parameter in parameters:
        made = memo.get(id(parameter))
        if made is None or made is parameter:
            continue
        made.__dict__.update(
            {name: copy.deepcopy(value, memo) for name, value in vars(parameter).items()}
        )
        trained = made.requires_grad
        for hooks, register in (
            (parameter._backward_hooks, made.register_hook),
            (parameter._post_accumulate_grad_hooks, made.register_post_accumulate_grad_hook),
        ):
            for hook in (hooks or {}).values():
                made.requires_grad_()  # a frozen one takes no hook
                register(
                    _followed(hook, memo, stateful=True)
                    if isinstance(hook, FunctionType)
                    else copy.deepcopy(hook, memo)
                )
        made.requires_grad_(trained)


def _parameters(model: nn.Module, optimizer: Any, objective: Any) -> list[Tensor]:
    own: list[Tensor] = []
    if isinstance(objective, nn.Module):
        own = list(objective.parameters())
    every = [
        *model.parameters(),
        *own,
        *(p for group in optimizer.param_groups for p in group["params"]),
    ]
    return list({id(p): p for p in every}.values())


def _detached(*holders: Any) -> Memo:
    """Return copies of the non-leaf tensors, without their graph."""
    seen: set[int] = set()
    tensors = [tensor for holder in holders for tensor in _tensors(holder, seen)]
    return {id(tensor): tensor.detach().clone() for tensor in tensors if not tensor.is_leaf}


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors that an object holds, at any depth."""
    if id(value) in seen or isinstance(value, type | FunctionType | str | bytes | int | float):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    else:
        parts = []
        if isinstance(value, list | tuple | set | frozenset):
            parts = list(value)
    for part in (*parts, *vars(value).values()) if hasattr(value, "__dict__") else parts:
        yield from _tensors(part, seen)


def _culprit(model: nn.Module, optimizer: Any, objective: Any) -> tuple[str, str]:
    """Return the place and the type of the first part that cannot be copied."""
    holders = [(f"model.{name}".rstrip("."), module) for name, module in model.named_modules()]
    for where, holder in (*holders, ("optimizer", optimizer), ("objective", objective)):
        for name, value in getattr(holder, "__dict__", {}).items():
            if name in ("_modules", "_parameters", "state", "param_groups"):
                continue
            try:
                copy.deepcopy(value, _detached(value))
            except Exception:
                return f"{where}.{name}", f"a {type(value).__name__}"
    return "the model or its optimizer", "something"
