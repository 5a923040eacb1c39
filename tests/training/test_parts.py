"""Parts of a user's own: wrong ones are refused where the run is made, in a sentence, and nothing is changed by looking."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.support.bigram import Bigram, tokens
from tests.support.own_runs import adamw, net, run_of
from trainenv.run import TrainingRun
from trainenv.types import Batch, UserError

Optimize = Callable[[nn.Module], Any]


def loss_of(model: nn.Module, seen: Tensor, **settings: Any) -> Tensor:
    return F.cross_entropy(model(seen[:, :-1]).flatten(0, 1), seen[:, 1:].flatten(), **settings)


def refused(message: str, **parts: Any) -> None:
    with pytest.raises(UserError, match=message):
        run_of(**parts)


# ── data ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def drawn() -> Iterator[Tensor]:
    yield from (tokens(index) for index in range(99))


def yields(index: int) -> Iterator[Tensor]:
    yield tokens(index)


STREAM = drawn()
LOADER = DataLoader(TensorDataset(torch.zeros(8, 9, dtype=torch.long)), batch_size=2)
DATA: dict[str, tuple[Any, str]] = {
    "a list": (
        [tokens(0)],
        r"function of the data index, found a list; .*data\[index % len\(data\)\]",
    ),
    "a loader": (LOADER, "found a DataLoader; read its batches into a list"),
    "a data set": (LOADER.dataset, "found a TensorDataset; for a list or a data set"),
    "a generator": (drawn(), "found a generator; read its batches"),
    "a class": (DataLoader, "found the class DataLoader"),
    "a text": ("wikitext", "found the text 'wikitext'"),
    "a mapping": ({0: tokens(0)}, "found a dict"),
    "nothing": (None, "found None"),
    "no arguments": (lambda: tokens(0), r"function index → data, found one of \(\)"),
    "two arguments": (lambda epoch, index: tokens(index), r"found one of \(epoch, index\)"),
    "next of a generator": (
        lambda index: next(STREAM),
        "pure function of the data index, found other data",
    ),
    "torch's generator": (
        lambda index: torch.randint(0, 8, (2, 9)),
        "pure function of the data index",
    ),
    "NumPy's": (lambda index: torch.from_numpy(np.random.randint(0, 8, (2, 9))), "pure function"),  # noqa: NPY002
    "Python's": (lambda index: tokens(random.randrange(10**6)), "pure function"),
    "a function that yields": (yields, "must return the data of that index, found a generator"),
    "a function without return": (
        lambda index: None,
        "must return the data of that index, found None",
    ),
    "tokens that the model lacks": (
        lambda index: tokens(index) + 8,
        "compute the loss of batches.0., found IndexError",
    ),
    "arrays": (
        lambda index: tokens(index).numpy(),
        "compute the loss of batches.0., found TypeError",
    ),
    "a batch of rows": (
        lambda index: Batch(tokens(index), index),
        "tuple of micro-batches, found Tensor",
    ),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_a_run_cannot_draw(name: str) -> None:
    batches, message = DATA[name]
    refused(message, batches=batches)


def test_data_that_seed_themselves_are_pure() -> None:
    def seeded(index: int) -> Tensor:
        torch.manual_seed(index)
        return torch.randint(0, 8, (2, 9))

    run_of(batches=seeded).advance(2)


def test_data_that_are_no_numbers_are_pure_too() -> None:
    def mixed(index: int) -> dict[str, Any]:
        seen = tokens(index)
        return {
            "seen": seen,
            "weights": torch.full((2,), torch.nan),
            "names": ["a", "b"],
            "rows": np.zeros(2),
        }

    run = run_of(
        batches=mixed, objective=lambda model, micro: loss_of(model, micro["seen"]), validation=()
    )
    assert len(run.advance(2)) == 2


# ── the model, the optimizer, the configuration ─────────────────────────────────────────────────────────────────────


def other_rate(rate: Any) -> Optimize:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = adamw(model)
        optimizer.param_groups[0]["lr"] = rate
        return optimizer

    return make


class Closing(torch.optim.SGD):
    def step(self, closure: Any) -> None:  # type: ignore[override]
        closure()


class Around(torch.optim.Optimizer):
    """Keeps a state of its own, and saves nothing of the optimizer inside."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()


class Unsaved(torch.optim.SGD):
    def state_dict(self) -> dict[str, Any]:
        return {"fast": {}, "slow": {}}


OPTIMIZERS: dict[str, tuple[Optimize, str]] = {
    "two": (lambda model: [adamw(model), adamw(model)], "must hold each parameter once"),
    "a class": (lambda model: torch.optim.AdamW, "found the class AdamW"),
    "none": (lambda model: (), "found a list with none"),
    "a function": (lambda model: adamw, "found the function adamw"),
    "LBFGS": (
        lambda model: torch.optim.LBFGS(model.parameters()),
        "step without a closure, found LBFGS",
    ),
    "with a closure": (
        lambda model: Closing(model.parameters(), 0.1),
        "step without a closure, found Closing",
    ),
    "sparse": (
        lambda model: torch.optim.SparseAdam(list(model.parameters())),
        "dense gradients, found SparseAdam",
    ),
    "its scheduler": (
        lambda model: torch.optim.lr_scheduler.ConstantLR(adamw(model)),
        "found its scheduler",
    ),
    "no rate": (
        other_rate(None),
        "must have a learning rate, which the run then steers, found none in group 0",
    ),
    "rate 0": (other_rate(0.0), "learning rate above 0, found 0 in all groups"),
    "rate NaN": (
        other_rate(float("nan")),
        "lr of the optimizer's group 0 must be 0 or more and finite, found nan",
    ),
    "rate below 0": (other_rate(-0.1), "found -0.1"),
    "rate in words": (other_rate("0.1"), "found '0.1'"),
    "of another model": (
        lambda model: adamw(net()),
        "parameters of the model .*found 3 of 3 that are not",
    ),
    "of a head outside": (
        lambda model: adamw(nn.Sequential(model, nn.Linear(2, 2))),
        "found 2 of 5 that are not",
    ),
    "around another": (
        lambda model: Around(adamw(model)),
        "must hold the state of the optimizer inside",
    ),
    "saved otherwise": (
        lambda model: Unsaved(model.parameters(), 0.1),
        "must hold 'state' and 'param_groups'",
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_that_a_run_cannot_step(name: str) -> None:
    make, message = OPTIMIZERS[name]
    model = net()
    refused(message, model=model, optimizer=make(model))


def test_a_parameter_twice_is_refused() -> None:
    model = net()
    optimizer = adamw(model)
    optimizer.param_groups[0]["params"].append(model[1].weight)
    refused("each parameter once, found one twice", model=model, optimizer=optimizer)


def test_a_group_may_have_rate_0() -> None:
    model = net()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[1].parameters()}], 0.1
    )
    run, before = run_of(model, optimizer), model[0].weight.detach().clone()
    run.advance(2)
    assert torch.equal(model[0].weight, before)


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return net()


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "a class": (
        lambda: Bigram,
        "model must be a torch.nn.Module, found the class Bigram; give an instance",
    ),
    "a name": (lambda: "gpt2", "found the text 'gpt2'"),
    "on the meta device": (lambda: net().to("meta"), "found 0.weight on the meta device"),
    "a lazy one": (
        lambda: nn.Sequential(nn.Embedding(8, 6), nn.LazyLinear(8)),
        "run one forward pass before",
    ),
    "of inference mode": (in_inference_mode, "built outside torch.inference_mode"),
    "sparse": (
        lambda: nn.Sequential(nn.Embedding(8, 6, sparse=True), nn.Linear(6, 8)),
        "sparse embedding 0; take sparse=False",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_cannot_be_trained(name: str) -> None:
    make, message = MODELS[name]
    refused(message, model=make(), optimizer=adamw(net()))


def test_a_class_for_a_model_is_refused_within_a_configuration_too() -> None:
    with pytest.raises(UserError, match="found the class Bigram"):
        TrainingRun.from_config("tiny", model=Bigram)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "tiny",
            "found the text 'tiny'; for a preset's name or a file, call TrainingRun.from_config",
        ),
        (None, "mapping of its keys, found None"),
        (100, "found an int"),
        ({"stepz": 9}, "unknown key 'stepz'; did you mean 'steps'"),
        ({}, "steps is missing"),
    ],
)
def test_configurations_of_another_kind(given: Any, message: str) -> None:
    refused(message, config=given)


def test_a_mapping_is_a_configuration() -> None:
    run = run_of(
        config={
            "steps": np.int64(7),
            "schedule": {"final": np.float32(0.5)},
            "interventions": {"lr_bounds": [0.5, 2]},
        }
    )
    assert (run.config.steps, type(run.config.steps), run.config.schedule.final) == (7, int, 0.5)


# ── functions ───────────────────────────────────────────────────────────────────────────────────────────────────────

LOSSES: dict[str, tuple[Any, str]] = {
    "with logits": (
        lambda model, seen: (loss_of(model, seen), model(seen)),
        "as the second; return the loss alone",
    ),
    "with 0": (
        lambda model, seen: (loss_of(model, seen), 0),
        "over 0 tokens; return the loss alone",
    ),
    "of each token": (
        lambda model, seen: loss_of(model, seen, reduction="none"),
        r"found a tensor of float32 \[16\]; reduce it",
    ),
    "in a mapping": (
        lambda model, seen: {"loss": loss_of(model, seen)},
        "found dict; of a model's output return the loss alone",
    ),
    "as a number": (lambda model, seen: loss_of(model, seen).item(), "found float"),
    "cut off": (lambda model, seen: loss_of(model, seen).detach(), "the loss carries no gradients"),
    "complex": (lambda model, seen: loss_of(model, seen) * 1j, "found a tensor of complex64"),
    "whole": (lambda model, seen: loss_of(model, seen).long(), "found a tensor of int64"),
    "missing": (lambda model, seen: None, "found NoneType"),
    "a class": (nn.CrossEntropyLoss, "found the class CrossEntropyLoss; give an instance"),
    "of logits": (nn.CrossEntropyLoss(), "compute the loss of batches.0., found TypeError"),
    "of the model alone": (
        lambda model: loss_of(model, tokens(0)),
        r"loss, found one of \(model\)",
    ),
    "of three": (
        lambda model, seen, mask: loss_of(model, seen),
        "missing a required argument: 'mask'",
    ),
    "a name": ("mse", "found the text 'mse'"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_objectives_that_give_no_loss(name: str) -> None:
    objective, message = LOSSES[name]
    refused(message, objective=objective)


SCHEDULES: dict[str, tuple[Any, str]] = {
    "a scheduler": (
        torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD([nn.Parameter(torch.ones(1))])),
        "found ConstantLR; write",
    ),
    "a number": (0.5, "function .step, progress. → factor on the learning rate, found a float"),
    "of the step": (lambda step: 1.0, r"found one of \(step\)"),
    "nothing": (lambda step, progress: None, "must be a finite number, found None"),
    "NaN": (lambda step, progress: float("nan"), "finite number, found nan"),
    "a text": (lambda step, progress: "1", "finite number, found '1'"),
    "0 throughout": (lambda step, progress: 0.0, "factors above 0, found 0 at every step"),
    "drawn": (lambda step, progress: random.random(), "pure function of step and progress"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_that_are_none(name: str) -> None:
    schedule, message = SCHEDULES[name]
    refused(message, schedule=schedule)


def test_stressors_that_are_none() -> None:
    refused("what stress.step. returns must be a finite number", stress=lambda step: "high")
    refused("stress must be a function", stress=2.0)
    refused("moments_lost must be a function step → bool", moments_lost=lambda: True)


# ── validation set and probe ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ("wikitext", "list of micro-batches, found the text"),
        (7, "found an int"),
        (tokens, "found the function tokens"),
        (iter(()), "without any; it may be used up"),
        ({"tokens": tokens(1)}, "compute the loss of the validation's micro-batch"),
        ([torch.rand(2, 9)], "compute the loss of the validation's micro-batch"),
    ],
    ids=["text", "number", "function", "used up", "mapping", "floats"],
)
def test_validation_sets_that_are_none(validation: Any, message: str) -> None:
    refused(message, validation=validation)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (3, "found an int"),
        ("x", "found the text"),
        (tokens, "found the function"),
        ([tokens(1)], "of the probe's micro-batch"),
    ],
    ids=["number", "text", "function", "list"],
)
def test_probes_that_are_none(probe: Any, message: str) -> None:
    refused(message, probe=probe)


def test_one_micro_batch_is_a_validation_set_too() -> None:
    expected = run_of(validation=[tokens(7)]).evaluate()
    for validation in (
        tokens(7),
        Batch((tokens(7),), 7),
        [Batch((tokens(7),), 7)],
        tokens(7)[None],
        iter([tokens(7)]),
    ):
        assert run_of(validation=validation, probe=Batch((tokens(8),), 8)).evaluate() == expected
    two = run_of(validation=[tokens(7), tokens(8)]).evaluate()
    assert run_of(validation=torch.stack([tokens(7), tokens(8)])).evaluate() == two
    assert (
        run_of(validation=DataLoader(torch.cat([tokens(7), tokens(8)]), batch_size=2)).evaluate()
        == two
    )


def test_a_pair_is_one_micro_batch_where_the_data_are_pairs() -> None:
    def pairs(index: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(4, 3, generator=torch.Generator().manual_seed(index))
        return x, x.sum(1, keepdim=True)

    def squared(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(model(pair[0]), pair[1])

    def evaluated(validation: Any) -> float:
        torch.manual_seed(0)
        return run_of(
            nn.Linear(3, 1), batches=pairs, objective=squared, validation=validation
        ).evaluate()

    assert evaluated(pairs(9)) == evaluated(list(pairs(9))) == evaluated([pairs(9)])


# ── what torch would refuse at the first step ───────────────────────────────────────────────────────────────────────


class Listless(torch.optim.SGD):
    """Saves no groups."""

    def state_dict(self) -> dict[str, Any]:
        return {"state": {}, "param_groups": []}


LATE: dict[str, tuple[Optimize, str]] = {
    "capturable": (
        lambda model: torch.optim.AdamW(model.parameters(), capturable=True),
        "capturable=True needs a GPU",
    ),
    "differentiable": (
        lambda model: torch.optim.SGD(model.parameters(), differentiable=True),
        "leave out differentiable",
    ),
    "no groups saved": (
        lambda model: Listless(model.parameters()),
        r"expected groups of \[3\] parameters, found \[\]",
    ),
}


@pytest.mark.parametrize("name", LATE)
def test_optimizers_that_would_fail_later_are_refused(name: str) -> None:
    optimize, message = LATE[name]
    model = net()
    refused(message, model=model, optimizer=optimize(model))


def test_models_that_would_fail_later_are_refused() -> None:
    with pytest.deprecated_call():
        scripted = torch.jit.script(net())
    refused("give the one it was made from", model=scripted)
    wave = net()
    wave[1].bias = nn.Parameter(torch.zeros(8, dtype=torch.complex64))
    refused("trained parameters must be real", model=wave)


def test_a_validation_set_without_any_label_is_refused() -> None:
    def loss(model: nn.Module, data: dict[str, Tensor]) -> Tensor:
        logits, labels = model(data["input_ids"]), data["labels"]
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)

    def labelled(index: int) -> dict[str, Tensor]:
        return {"input_ids": tokens(index), "labels": tokens(index + 1)}

    bare = labelled(9) | {"labels": torch.full_like(tokens(9), -100)}
    refused(
        "validation must have labelled tokens", batches=labelled, objective=loss, validation=[bare]
    )
    run_of(batches=labelled, objective=loss, validation=[bare, labelled(8)])
