"""Runs of a user's own parts: any module, optimizer, data, schedule and loss, as exact as ours."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv.config.schema import TrainingConfig
from trainenv.run import TrainingRun
from trainenv.types import Batch, Batches, Intervention, Objective, Schedule, UserError

VOCABULARY, LENGTH, ROWS = 300, 9, 4
TINY: dict[str, Any] = {
    "steps": 30,
    "batch_size": ROWS,
    "model.context": 8,
    "schedule.warmup": 3,
    "validation.sequences": 4,
    "reset_warmup": 4,
    "monitor": {"probe_every": 2, "block": 4},
}


class Words(nn.Module):
    """A small recurrent model with dropout and a buffer that changes, nothing like a transformer."""

    seen: Tensor

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words = nn.Embedding(vocabulary, 12)
        self.cell = nn.GRU(12, 12, batch_first=True)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(12, vocabulary)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return self.out(self.drop(self.cell(self.words(tokens))[0]))


class Scaled(nn.Module):
    """A loss with a parameter of its own, and a count of its calls."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, model: nn.Module, tokens: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.calls += 1
        logits = model(tokens[:, :-1]) * self.temperature
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def draw(index: int, rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(index)
    return torch.randint(0, VOCABULARY, (rows, LENGTH), generator=generator)


def as_dict(index: int) -> dict[str, Tensor]:
    tokens = draw(index)
    return {"inputs": tokens[:, :-1], "weights": torch.ones(ROWS), "targets": tokens[:, 1:]}


def dict_loss(model: nn.Module, micro: dict[str, Tensor]) -> Tensor:
    losses = F.cross_entropy(
        model(micro["inputs"]).transpose(1, 2), micro["targets"], reduction="none"
    ).mean(1)
    return (losses * micro["weights"]).mean()


def noisy_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Draws from every global generator."""
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    return loss * (0.5 + random.random()) * (0.5 + float(np.random.rand())) * (0.5 + torch.rand(()))  # noqa: NPY002


def sgd(*modules: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    parameters = [p for module in modules for p in module.parameters()]
    return torch.optim.SGD(
        parameters, **{"lr": 0.5, "momentum": 0.9, "weight_decay": 1e-3} | settings
    )


def halving(step: int, progress: float) -> float:
    return 0.5 ** (step // 4) * (1 - 0.5 * progress)


def config(**settings: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {"steps": 30, "threads": 1, "schedule": {"warmup": 3}, "reset_warmup": 4} | settings
    )


def go(run: TrainingRun, steps: int) -> tuple[list[str], str]:
    return [repr(t) for t in run.advance(steps)], run.fingerprint()


def assert_exact(run: TrainingRun, before: int = 5, steps: int = 6) -> None:
    run.advance(before)
    snapshot, first, second = run.snapshot(), run.fork(), run.fork()
    expected = go(run, steps)
    assert go(first, steps) == expected
    second.apply(Intervention(lr_scale=0.8, momentum_reset=True, clip="arc", data_reorder=True))
    assert go(second, steps) != expected
    second.restore(snapshot)
    assert go(second, steps) == expected
    run.restore(snapshot)
    assert go(run, steps) == expected


# ── by hand ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def bare(**settings: Any) -> TrainingRun:
    model = Words()
    return TrainingRun(
        model, sgd(model), draw, config(**settings), validation=[draw(10**6)], schedule=halving
    )


DATA: dict[str, tuple[Callable[[int], Any], dict[str, Any]]] = {
    "tensor": (draw, {}),
    "tensor, cut up": (draw, {"accumulation": 2}),
    "list of micro-batches": (
        lambda index: [draw(index, 2), draw(index + 10**6, 2)],
        {"accumulation": 2},
    ),
    "tuple of micro-batches": (
        lambda index: tuple(draw(index + place, 1) for place in range(4)),
        {"accumulation": 4},
    ),
    "batch": (
        lambda index: Batch(
            micro=(draw(index, 1), draw(index, 3)), index=index, stressors=("odd",)
        ),
        {"accumulation": 2},
    ),
}
CLIPS: list[dict[str, Any]] = [
    {"policy": "none"},
    {"policy": "zclip"},
    {"policy": "arc"},
    {"policy": "spam", "options": {"spam": {"interval": 4, "warmup": 1}}},
]


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip["policy"])
@pytest.mark.parametrize("name", DATA)
def test_every_shape_of_data(name: str, clip: dict[str, Any]) -> None:
    batches, settings = DATA[name]
    model = Words()
    run = TrainingRun(model, sgd(model), batches, config(clip=clip, **settings))
    assert_exact(run)
    (telemetry,) = run.advance(1)
    assert telemetry.tokens == ROWS * (LENGTH - 1)
    assert telemetry.stressors == (("odd",) if name == "batch" else ())


def test_dicts_with_a_loss_of_one_s_own() -> None:
    model = Words()
    run = TrainingRun(
        model,
        sgd(model),
        as_dict,
        config(),
        objective=dict_loss,
        validation=[as_dict(77)],
        probe=as_dict(78),
    )
    assert_exact(run)
    assert run.evaluate() == pytest.approx(
        dict_loss(run.model.eval(), as_dict(77)).item(), rel=1e-6
    )
    model = Words()
    pairs = TrainingRun(
        model,
        sgd(model),
        lambda index: [as_dict(index), as_dict(index + 50)],
        config(accumulation=2),
        objective=dict_loss,
    )
    assert_exact(pairs)


def test_one_step_is_what_torch_does() -> None:
    run, model = bare(clip={"policy": "none"}), Words()
    run.model.drop.p = model.drop.p = 0.0  # type: ignore[union-attr, assignment]
    optimizer = sgd(model)
    for step, telemetry in enumerate(run.advance(6)):
        loss = F.cross_entropy(model(draw(step)[:, :-1]).flatten(0, 1), draw(step)[:, 1:].flatten())
        optimizer.param_groups[0]["lr"] = 0.5 * halving(step, min(1, max(0, step - 3) / 27))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert telemetry.loss == loss.item()
        assert telemetry.lr == optimizer.param_groups[0]["lr"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), run.model.parameters()))


def test_interventions_reach_any_optimizer() -> None:
    run = bare()
    run.advance(4)
    run.apply(Intervention(lr_scale=0.5, weight_decay_scale=4.0, momentum_reset=True))
    assert all(
        float(state["momentum_buffer"].abs().sum()) == 0 for state in run.optimizer.state.values()
    )
    (telemetry,) = run.advance(1)
    group = run.optimizer.param_groups[0]
    assert group["lr"] == telemetry.lr == pytest.approx(0.5 * halving(4, 1 / 27) * 0.5 * 0.01)
    assert group["weight_decay"] == pytest.approx(4e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
        lambda p: torch.optim.AdamW(p, torch.tensor(1e-2), foreach=False),
        lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.5),
        lambda p: torch.optim.Adagrad(p, 1e-2),
        lambda p: torch.optim.NAdam(p, 1e-3),
        lambda p: torch.optim.SGD(
            [{"params": p[:2], "lr": 0.1}, {"params": p[2:], "lr": 0.3, "momentum": 0.5}], lr=0.2
        ),
    ],
    ids=["Adam", "tensor rate", "RMSprop", "Adagrad", "NAdam", "groups"],
)
def test_other_optimizers(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> None:
    model = Words()
    run = TrainingRun(model, make(list(model.parameters())), draw, config())
    assert_exact(run)
    rates = [float(group["lr"]) for group in run.optimizer.param_groups]
    base = [rate for rate, _ in run._base]
    assert [rate / rates[0] for rate in rates] == pytest.approx([rate / base[0] for rate in base])


def test_frozen_and_shared_parameters() -> None:
    model = Words()
    model.cell.requires_grad_(False)
    model.out.weight = model.words.weight
    run = TrainingRun(
        model,
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2),
        draw,
        config(),
    )
    frozen = [p.clone() for p in model.cell.parameters()]
    assert_exact(run)
    fork = run.fork()
    assert fork.model.out.weight is fork.model.words.weight  # type: ignore[union-attr]
    fork.advance(2)
    assert fork.model.out.weight is fork.model.words.weight  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(frozen, fork.model.cell.parameters()))  # type: ignore[union-attr]


def test_a_buffer_that_changes_is_part_of_the_value() -> None:
    run = bare()
    run.advance(5)
    fork = run.fork()
    run.evaluate()
    assert fork.fingerprint() == run.fingerprint()
    assert int(run.model.seen) == 5  # type: ignore[arg-type]
    fork.advance(2)
    assert int(run.model.seen) == 5  # type: ignore[arg-type]
    assert int(fork.model.seen) == 7  # type: ignore[arg-type]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_learns(accumulation: int) -> None:
    model, objective = Words(), Scaled()
    run = TrainingRun(
        model,
        sgd(model, objective),
        draw,
        config(accumulation=accumulation),
        objective=objective,
        validation=[draw(5)],
    )
    assert_exact(run)
    assert run.objective is objective
    assert objective.temperature.item() != 1
    assert int(objective.calls) == 11 * accumulation
    fork, before = run.fork(), run.fingerprint()
    assert fork.objective is not objective
    optimized = {id(p) for group in fork.optimizer.param_groups for p in group["params"]}
    assert id(fork.objective.temperature) in optimized  # type: ignore[attr-defined]
    fork.advance(3)
    assert run.fingerprint() == before
    with torch.no_grad():
        objective.temperature.add_(0.1)
    assert run.fingerprint() != before


def test_a_loss_that_draws_from_every_generator() -> None:
    model = Words()
    run = TrainingRun(model, sgd(model), draw, config(), objective=noisy_loss, validation=[draw(3)])
    assert_exact(run)
    before = (random.getstate(), torch.get_rng_state().tolist())
    assert run.evaluate() == run.evaluate()
    run.advance(2)
    assert (random.getstate(), torch.get_rng_state().tolist()) == before


def test_numbers_instead_of_words() -> None:
    """A regression: no tokens, no vocabulary."""

    def pairs(index: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(8, 3, generator=torch.Generator().manual_seed(index))
        return x, x.sum(1, keepdim=True)

    def squared(model: nn.Module, micro: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(model(micro[0]), micro[1])

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    run = TrainingRun(
        model,
        sgd(model, lr=0.05),
        pairs,
        config(steps=60),
        objective=squared,
        validation=[pairs(999)],
    )
    first = run.evaluate()
    assert_exact(run)
    run.advance(40)
    assert run.evaluate() < first / 2
    assert run.flops_per_step == 6 * 8 * sum(
        p.numel() for p in model.parameters()
    )  # a row counts as a token


def test_the_protocols() -> None:
    assert isinstance(draw, Batches)
    assert isinstance(Scaled(), Objective)
    assert isinstance(halving, Schedule)


# ── within a configuration ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_of_one_s_own_on_our_data() -> None:
    model = Words()
    run = TrainingRun.from_config("tiny", TINY, model=model)
    assert run.model is model
    assert isinstance(run.optimizer, torch.optim.AdamW)
    assert run.uniform_loss == pytest.approx(math.log(VOCABULARY))
    assert_exact(run)
    assert run.evaluate() < math.log(VOCABULARY) + 0.1
    (telemetry,) = run.advance(1)
    assert telemetry.tokens == ROWS * 8


def test_everything_of_one_s_own_in_a_preset() -> None:
    model, objective = Words(), Scaled()
    run = TrainingRun.from_config(
        "tiny",
        {**TINY, "accumulation": 2},
        model=model,
        optimizer=sgd(model, objective),
        batches=draw,
        schedule=halving,
        objective=objective,
        validation=[draw(10**6)],
        probe=draw(10**6 + 1),
    )
    assert_exact(run)
    window = run.fork().advance(2)
    assert any(not math.isnan(t.probe_loss) for t in window)
    assert all(math.isnan(t.attention_entropy) for t in window)
    assert window[0].lr == pytest.approx(0.5 * halving(11, (11 - 3) / 27))
    by_hand = TrainingRun.from_config("tiny", TINY, model=Words(), batches=draw)
    with pytest.raises(UserError, match="validation"):
        by_hand.evaluate()


def test_our_model_with_an_objective_and_a_schedule_of_one_s_own() -> None:
    settings = {**TINY, "model": {"width": 16, "heads": 2, "layers": 1, "context": 8}}

    def gentle(model: nn.Module, tokens: Tensor) -> Tensor:
        logits = model(tokens[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), label_smoothing=0.1)

    run = TrainingRun.from_config("tiny", settings, objective=gentle, schedule=halving)
    assert_exact(run)
    assert run.fork().advance(1)[0].lr == pytest.approx(3e-3 * halving(11, 8 / 27))


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Narrow(Words):
    """Tells its embeddings the way transformers models do."""

    def get_input_embeddings(self) -> nn.Module:
        return self.words


def test_a_vocabulary_too_small_is_refused() -> None:
    with pytest.raises(UserError, match=r"vocabulary must be at least 25\d, found 100"):
        TrainingRun.from_config("tiny", TINY, model=Narrow(100))
    TrainingRun.from_config("tiny", TINY, model=Narrow(VOCABULARY))


def parts() -> Iterator[tuple[dict[str, Any], str]]:
    model = Words()
    yield {"modle": model}, r"parts of a run are model, optimizer, .*; found modle"
    yield {"model": model, "loss": dict_loss, "data": draw}, "found data, loss"
    yield {"optimizer": sgd(model)}, "pass that model too"
    yield {"batches": draw}, "pass the model too"


@pytest.mark.parametrize(
    ("own", "message"),
    list(parts()),
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_parts_that_do_not_fit_are_refused(own: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingRun.from_config("tiny", TINY, **own)


@pytest.mark.parametrize(
    ("batches", "found"),
    [
        (lambda index: "text", "str of length 4"),
        (lambda index: draw(index, 3), "Tensor of length 3"),
        (lambda index: [draw(index)], "list of"),
    ],
    ids=["text", "odd rows", "one micro-batch"],
)
def test_data_that_does_not_fit_the_accumulation_is_refused(
    batches: Callable[[int], Any], found: str
) -> None:
    model = Words()
    with pytest.raises(UserError, match=f"with accumulation 2, .*found {found}"):
        TrainingRun(model, sgd(model), batches, config(accumulation=2))
