"""Checks of the parts that a user gives to a run, made before it starts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trainenv.config.schema import TrainingConfig, validate
from trainenv.distributed.shards import parameters_of
from trainenv.objectives import NextToken
from trainenv.training.chained_optimizer import ChainedOptimizer
from trainenv.training.optimizers import Rates, base_rates
from trainenv.types import Batch, Batches, Objective, Schedule, UserError, as_number

_SPARSE = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Parts of a run, each of the right kind."""

    model: nn.Module
    optimizer: Optimizer
    batches: Batches
    config: TrainingConfig
    objective: Objective
    schedule: Schedule | None
    validation: tuple[Any, ...]
    full_validation: tuple[Any, ...]
    test: tuple[Any, ...]
    probe: Any
    stress: Callable[[int], float] | None
    moments_lost: Callable[[int], bool] | None


def check(
    model: object,
    optimizer: object,
    batches: object,
    config: object,
    objective: object,
    schedule: object,
    validation: object,
    full_validation: object,
    test: object,
    probe: object,
    stress: object,
    moments_lost: object,
) -> Parts:
    """Return the parts of a run, checked; the arguments are those of `trainenv.TrainingRun`.

    A mapping is validated as a `TrainingConfig`, a validation set becomes a tuple of micro-batches.

    Raises:
        UserError: Names the first part of a wrong kind, and says what to give.
    """
    model = check_model(model)
    config = as_config(config)
    objective = NextToken() if objective is None else objective
    _check_function("objective", objective, "(model, micro_batch) → loss", (model, None))
    optimizer = check_optimizer(optimizer)
    trained(model, optimizer, objective)
    _check_batches(batches)
    if schedule is not None:
        _check_schedule(schedule, config)
    if stress is not None:
        factor = _check_function("stress", stress, "step → factor on the learning rate", (0,))
        as_number(factor(0), "what stress(step) returns")
    if moments_lost is not None:
        _check_function("moments_lost", moments_lost, "step → bool", (0,))
    return Parts(
        model=model,
        optimizer=optimizer,
        batches=batches,  # type: ignore[arg-type]
        config=config,
        objective=objective,  # type: ignore[arg-type]
        schedule=schedule,  # type: ignore[arg-type]
        validation=tuple(_micro_batches("validation", validation)),
        full_validation=tuple(_micro_batches("full_validation", full_validation)),
        test=_test_set(test, config),
        probe=_one_micro_batch(probe),
        stress=stress,  # type: ignore[arg-type]
        moments_lost=moments_lost,  # type: ignore[arg-type]
    )


# ── the model and the configuration ───────────────────────────────────────────────────────────────


def check_model(model: object) -> nn.Module:
    """Check that a model is a module that can be trained as it is."""
    if not isinstance(model, nn.Module):
        made = "; load or build it first"
        if isinstance(model, type):
            made = "; give an instance, model=Model(…)"
        raise UserError(f"model must be a torch.nn.Module, found {_kind(model)}{made}")
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(
            f"model must be a module of Python, found {_kind(model)} of torch.jit; give the one it "
            "was made from"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise UserError(
                f"model must have all its weights, found {name} of a lazy module without any; "
                "run one forward pass before you make the optimizer"
            )
        if tensor.is_meta:
            raise UserError(
                f"model must hold numbers, found {name} on the meta device; load its weights first"
            )
        if isinstance(tensor, nn.Parameter) and tensor.is_inference():
            raise UserError(
                f"model must be built outside torch.inference_mode(), found {name} that was made "
                "in it"
            )
    for name, module in model.named_modules():
        if isinstance(module, _SPARSE) and module.sparse and module.weight.requires_grad:
            raise UserError(
                "gradients must be dense to be clipped, found a sparse embedding "
                f"{name or 'model'}; take sparse=False"
            )
    return model


def train(model: nn.Module) -> None:
    """Put a model that is in evaluation mode as a whole into training mode.

    A single part in evaluation mode is there on purpose and stays in it.
    """
    if not any(module.training for module in model.modules()):
        model.train()


def as_config(config: object) -> TrainingConfig:
    """Return a configuration, which may be given as a mapping of its keys."""
    if isinstance(config, TrainingConfig):
        return config
    if isinstance(config, Mapping):
        return validate(TrainingConfig, config, "config")
    hint = "give {'steps': 1000}"
    if isinstance(config, str):
        hint = "for a preset's name or a file, call TrainingRun.from_config"
    raise UserError(
        f"config must be a TrainingConfig, or a mapping of its keys, found {_kind(config)}; {hint}"
    )


# ── the optimizer ─────────────────────────────────────────────────────────────────────────────────


def check_optimizer(optimizer: Any) -> Optimizer:
    """Check that a run can step, save and load an optimizer, and set its rates."""
    if isinstance(optimizer, list | tuple):
        return check_optimizer(ChainedOptimizer(optimizer))
    if isinstance(optimizer, ChainedOptimizer):
        for one in optimizer.optimizers:
            check_optimizer(one)
    if isinstance(optimizer, LRScheduler):
        raise UserError(
            "optimizer must be a torch.optim.Optimizer, found its scheduler; give the optimizer "
            "that it is made for"
        )
    needed = ("param_groups", "state", "step", "zero_grad", "state_dict", "load_state_dict")
    if isinstance(optimizer, type) or not all(hasattr(optimizer, name) for name in needed):
        raise UserError(
            f"optimizer must be a torch.optim.Optimizer, found {_kind(optimizer)}; "
            "make one, torch.optim.AdamW(model.parameters()) for instance"
        )
    name = type(optimizer).__name__
    closure = _parameters_of(optimizer.step).get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"optimizer must step without a closure, found {name}, which computes the loss again; "
            "take AdamW or SGD"
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise UserError(
            "optimizer must take dense gradients, found SparseAdam; take Adam, and embeddings with "
            "sparse=False"
        )
    saved = optimizer.state_dict()
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        raise UserError(
            f"{name}.state_dict() must hold 'state' and 'param_groups', so that a run can be "
            "saved; add them to it"
        )
    sizes, kept = (
        [len(group.get("params", ())) for group in groups]
        for groups in (optimizer.param_groups, saved["param_groups"])
    )
    if sizes != kept:
        raise UserError(
            f"{name}.state_dict() must hold its parameter groups, so that a run can be saved, "
            f"expected groups of {sizes} "
            f"parameters, found {kept}; put all of them under 'param_groups'"
        )
    _check_updates(optimizer)
    for inner in getattr(optimizer, "__dict__", {}).values():
        apart = isinstance(inner, Optimizer) and inner.state is not optimizer.state
        if apart and getattr(type(optimizer), "state_dict", None) is Optimizer.state_dict:
            raise UserError(
                f"{name}.state_dict() must hold the state of the optimizer inside; share its "
                "state, or add it"
            )
    _check_rates(optimizer)
    return optimizer  # type: ignore[no-any-return]


def _check_updates(optimizer: Optimizer) -> None:
    """Refuse what torch, or a clip policy, would refuse at the first step."""
    for place, group in enumerate(optimizer.param_groups):
        trained = [p for p in group["params"] if p.requires_grad]
        if group.get("differentiable"):
            raise UserError(
                f"optimizer must not be differentiable, found group {place} that is; leave out "
                "differentiable=True"
            )
        if group.get("capturable") and any(p.is_cpu for p in trained):
            raise UserError(
                f"capturable=True needs a GPU, found group {place} of parameters on the CPU; leave "
                "it out"
            )
        if any(p.is_complex() for p in trained):
            raise UserError(
                f"trained parameters must be real, found complex ones in group {place}; hold them "
                "as pairs (torch.view_as_real)"
            )


def _check_rates(optimizer: Optimizer) -> None:
    for place, group in enumerate(optimizer.param_groups):
        if group.get("relative_step") or group.get("lr") is None:
            raise UserError(
                "optimizer must have a learning rate, which the run then steers, found none in "
                f"group {place} of "
                f"{type(optimizer).__name__}; give it lr=…, and relative_step=False where it has "
                "that"
            )
        as_number(
            group.get("initial_lr", group["lr"]), f"lr of the optimizer's group {place}", least=0
        )
        as_number(
            group.get("weight_decay") or 0.0, f"weight_decay of the optimizer's group {place}"
        )
    if not any(lr > 0 for lr, _ in base_rates(optimizer)):
        raise UserError(
            "optimizer must have a learning rate above 0, found 0 in all groups; nothing would be "
            "trained, set lr"
        )


def trained(
    model: nn.Module, optimizer: Optimizer, objective: object, base: Rates = ()
) -> tuple[list[nn.Parameter], Rates]:
    """Return the parameters that the optimizer updates now, and the base rates of its groups.

    Args:
        model: Owner of the parameters.
        optimizer: Optimizer in its present state; parameters may have been unfrozen, and groups
            added.
        objective: Loss, with or without parameters of its own.
        base: Known rates of the first groups; those of the other groups are read from the
            optimizer.

    Raises:
        UserError: The optimizer's parameters are not, or no longer, those of the model and the
            objective.
    """
    every = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [p for p in every if p.requires_grad]
    if not parameters or not any(p.requires_grad for p in model.parameters()):
        raise UserError(
            "model and optimizer must hold parameters that require gradients, found none; unfreeze "
            "some"
        )
    if len({id(p) for p in every}) < len(every):
        raise UserError(
            "optimizer must hold each parameter once, found one twice; give tied weights to it once"
        )
    owned = {id(p) for p in (*parameters_of(model), *_parameters_within(objective))}
    foreign = sum(id(p) not in owned for p in every)
    if foreign:
        raise UserError(
            f"optimizer must hold parameters of the model (or of the objective), found {foreign} "
            f"of {len(every)} that are not, "
            "so that no snapshot would hold them; make the optimizer after the last change of the "
            "model, and a new run with it"
        )
    if len(places := {str(p.device) for p in parameters}) > 1:
        raise UserError(
            f"trained parameters must be on one device, found {', '.join(sorted(places))}; move "
            "the model to one"
        )
    if len(optimizer.param_groups) < len(base):
        raise UserError(
            f"optimizer must keep its {len(base)} groups, found {len(optimizer.param_groups)}; "
            "make a new run"
        )
    if len(optimizer.param_groups) > len(base):
        _check_rates(optimizer)
        base = (*base, *base_rates(optimizer)[len(base) :])
    return parameters, base


def _parameters_within(objective: object) -> Iterator[nn.Parameter]:
    """Return the parameters of a loss that learns: a module, or an object that holds some."""
    if isinstance(objective, nn.Module):
        yield from objective.parameters()
    elif hasattr(objective, "state_dict"):
        for value in getattr(objective, "__dict__", {}).values():
            if isinstance(value, nn.Module):
                yield from value.parameters()
            elif isinstance(value, nn.Parameter):
                yield value


# ── functions ─────────────────────────────────────────────────────────────────────────────────────


def _check_batches(batches: object) -> None:
    if isinstance(batches, type) or not callable(batches):
        remedy = "write lambda index: … that makes the batch of a data index"
        if hasattr(batches, "__getitem__") and not isinstance(
            batches, str | bytes | Mapping | type
        ):
            remedy = "for a list or a data set, lambda index: data[index % len(data)]"
        elif isinstance(batches, Iterable) and not isinstance(
            batches, str | bytes | Mapping | type
        ):
            remedy = "read its batches into a list, then lambda index: data[index % len(data)]"
        raise UserError(
            f"batches must be a function of the data index, found {_kind(batches)}; {remedy}"
        )
    _check_function("batches", batches, "index → data", (0,))


def _check_schedule(schedule: object, config: TrainingConfig) -> None:
    if isinstance(schedule, LRScheduler):
        raise UserError(
            "schedule must be a function (step, progress) → factor on the learning rate, found "
            f"{type(schedule).__name__}; write "
            "that function, and leave the scheduler out: the run sets the rates"
        )
    call = _check_function(
        "schedule", schedule, "(step, progress) → factor on the learning rate", (0, 0.0)
    )
    first, again = (
        as_number(call(0, 0.0), "what schedule(step, progress) returns") for _ in range(2)
    )
    if first != again:
        raise UserError(
            f"schedule must be a pure function of step and progress, found {first:g} and then "
            f"{again:g} for the same; "
            "compute the factor from its arguments alone"
        )
    if first == 0:
        steps = range(0, config.steps, max(1, config.steps // 64))
        if not any(
            as_number(call(step, step / config.steps), "what schedule returns")
            for step in (*steps, 1)
        ):
            raise UserError(
                "schedule must return factors above 0, found 0 at every step; nothing would be "
                "trained"
            )


def _check_function(
    name: str, function: object, form: str, arguments: tuple[Any, ...]
) -> Callable[..., Any]:
    """Check that a function can be called with such arguments."""
    if isinstance(function, type):
        raise UserError(
            f"{name} must be a function {form}, found the class {function.__name__}; give an "
            "instance of it"
        )
    if not callable(function):
        raise UserError(f"{name} must be a function {form}, found {_kind(function)}; write one")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some that are built in have none
        return function
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise UserError(
            f"{name} must be a function {form}, found one of {signature}: {error}; give it these "
            "arguments"
        ) from None
    return function


def _parameters_of(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


# ── data to look at ───────────────────────────────────────────────────────────────────────────────


def _test_set(test: object, config: TrainingConfig) -> tuple[Any, ...]:
    """Return the micro-batches of a test set, which must be there if the configuration asks."""
    found = tuple(_micro_batches("test", test))
    asked = config.validation.test_sequences
    if asked and not found:
        raise UserError(
            f"expected a test set, as validation.test_sequences is {asked}, found none; pass "
            "test=[micro_batch, …], or leave validation.test_sequences at 0"
        )
    return found


def _micro_batches(name: str, sequence: object) -> Iterator[Any]:
    """Return the micro-batches of a validation or test set.

    A tensor or a mapping is left to `trainenv.training.trial`, which knows the training data.
    """
    if sequence is None:
        return
    if isinstance(sequence, Batch | Tensor | Mapping):
        sequence = [sequence]
    if isinstance(sequence, str | bytes) or not isinstance(sequence, Iterable):
        raise UserError(
            f"{name} must be a list of micro-batches, found {_kind(sequence)}; give "
            "[micro_batch, …]"
        )
    empty = isinstance(sequence, Sequence)
    for micro in sequence:
        empty = True
        yield from micro.micro if isinstance(micro, Batch) else [micro]
    if not empty:
        raise UserError(
            f"{name} must be a list of micro-batches, found {_kind(sequence)} without any; "
            "it may be used up"
        )


def _one_micro_batch(probe: object) -> Any:
    if isinstance(probe, Batch):
        return probe.micro[0]
    if isinstance(probe, bool | int | float | str | bytes) or callable(probe):
        raise UserError(
            f"probe must be a micro-batch like those of batches(index), found {_kind(probe)}; give "
            "the data itself"
        )
    return probe


def _kind(value: object) -> str:
    """Describe a value in few words."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', 'of no name')}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"
