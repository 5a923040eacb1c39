"""The loss of a step is the mean over its labelled tokens, however they are spread over micro-batches."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BatchEncoding, GPT2Config, GPT2LMHeadModel

from tests.support.padding import (
    LENGTH,
    OBJECTIVES,
    VOCABULARY,
    mean,
    model_of,
    padded,
    pair,
    run_of,
    step,
    weights,
)
from trainenv.types import CLIP_POLICIES, UserError

# ── accumulation is one big batch ───────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, LENGTH), min_size=4, max_size=4).filter(any),
    accumulation=st.sampled_from([2, 4]),
    name=st.sampled_from(sorted(OBJECTIVES)),
    clip=st.sampled_from(
        [{"policy": "none"}, {"policy": "arc", "options": {"arc": {"suspected": 0.0}}}]
    ),
    single=st.booleans(),
)
def test_accumulated_steps_are_those_of_one_big_batch(
    lengths: list[int], accumulation: int, name: str, clip: dict[str, Any], single: bool
) -> None:
    dtype, close = (torch.float32, 1e-5) if single else (torch.float64, 1e-12)
    data = padded(lengths)
    whole = run_of(data, dtype=dtype, validation=[data])
    rows = [tuple(t[k : k + 1] for t in data) for k in range(4)]
    parts = run_of(
        data, OBJECTIVES[name], dtype, validation=rows, accumulation=accumulation, clip=clip
    )
    assert parts.evaluate() == pytest.approx(whole.evaluate(), rel=close)
    one, many = step(whole), step(parts)
    assert many.loss == pytest.approx(one.loss, rel=1e-6)
    assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    assert many.tokens == one.tokens == sum(lengths)
    assert torch.allclose(weights(parts), weights(whole), rtol=close, atol=close)


@pytest.mark.parametrize("accumulation", [2, 4])
@pytest.mark.parametrize("form", ["mapping", "encoding", "list of mappings"])
def test_labels_that_a_causal_model_shifts(form: str, accumulation: int) -> None:
    shape = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=8,
        n_embd=8,
        n_layer=1,
        n_head=1,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    shape.resid_pdrop = shape.embd_pdrop = shape.attn_pdrop = 0.0  # a run trains in training mode
    model = GPT2LMHeadModel(shape).double()
    ids, labels = padded([8, 3, 1, 2])
    labels = torch.where(labels == -100, labels, ids)  # the third row has nothing to predict
    batch: Any = {
        "input_ids": ids,
        "attention_mask": (labels != -100).long(),
        "labels": labels,
        "use_cache": False,
    }
    rows = [
        {k: v[n : n + 1] if isinstance(v, Tensor) else v for k, v in batch.items()}
        for n in range(4)
    ]
    size = 4 // accumulation
    micro = [
        {k: v[n : n + size] if isinstance(v, Tensor) else v for k, v in batch.items()}
        for n in range(0, 4, size)
    ]
    forms = {"mapping": batch, "encoding": BatchEncoding(batch), "list of mappings": micro}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model(**batch).loss

    whole = run_of(batch, loss, model=copy.deepcopy(model), validation=[batch])
    parts = run_of(
        forms[form], loss, model=copy.deepcopy(model), validation=rows, accumulation=accumulation
    )
    assert parts.evaluate() == pytest.approx(whole.evaluate(), rel=1e-6)
    one, many = step(whole), step(parts)
    assert many.tokens == one.tokens == 7 + 2 + 0 + 1
    assert many.loss == pytest.approx(one.loss, rel=1e-6)
    assert torch.allclose(
        weights(parts), weights(whole), rtol=0, atol=1e-7
    )  # transformers' loss is in float32


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def test_named_tuples_and_single_numbers() -> None:
    data = Pair(*padded([8, 4, 1, 2]))

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        assert isinstance(batch, Pair)
        return F.cross_entropy(model(batch.x).flatten(0, 1), batch.y.flatten()).reshape(1)

    whole, parts = run_of(data, loss), run_of(data, loss, accumulation=4)
    assert step(parts).loss == pytest.approx(step(whole).loss, rel=1e-6)
    assert torch.allclose(weights(parts), weights(whole), rtol=0, atol=1e-12)


@pytest.mark.parametrize("accumulation", [1, 2, 3, 4])
@pytest.mark.parametrize("policy", ["none", "zclip", "arc"])
def test_equal_counts_have_the_bits_of_a_mean_over_micro_batches(
    accumulation: int, policy: str
) -> None:
    data = padded([LENGTH] * 12)
    run = run_of(data, dtype=torch.float32, accumulation=accumulation, clip={"policy": policy})
    model = model_of(torch.float32)
    losses = []
    for x, y in zip(*(t.chunk(accumulation) for t in data)):
        loss = mean(model, (x, y))
        (loss / accumulation).backward()
        losses.append(loss.detach())
    telemetry = step(run)
    assert telemetry.loss == torch.stack(losses).mean().item()
    if policy == "none":
        torch.optim.SGD(model.parameters(), 1.0).step()
        assert torch.equal(
            torch.cat([p.detach().flatten() for p in model.parameters()]), weights(run)
        )


def test_rows_of_numbers_weigh_alike() -> None:
    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(3))
    parts = [(x[:4], x[:4].sum(1)), (x[4:], x[4:].sum(1))]
    model = nn.Linear(3, 1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(model(batch[0])[:, 0], batch[1])

    whole = run_of((x, x.sum(1)), loss, model=copy.deepcopy(model), validation=[(x, x.sum(1))])
    split = run_of(list(parts), loss, model=copy.deepcopy(model), validation=parts, accumulation=2)
    assert split.evaluate() == pytest.approx(whole.evaluate(), rel=1e-6)
    one, two = step(whole), step(split)
    assert (one.tokens, two.tokens) == (6, 6)
    assert two.loss == pytest.approx(one.loss, rel=1e-6)
    assert torch.allclose(weights(split), weights(whole), atol=1e-6)
    for run in (whole, split):
        assert 0 < run.flops_ahead == run.flops_per_step == run.ledger["main"] < math.inf
        assert (
            run.flops_per_evaluation
            == run.ledger["evaluate"]
            == pytest.approx(run.flops_per_step / 3)
        )


# ── nothing labelled ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("policy", CLIP_POLICIES)
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_step_without_labels_has_the_gradient_0(
    name: str, accumulation: int, policy: str, precision: str
) -> None:
    def data(index: int) -> tuple[Tensor, Tensor]:
        return padded([0, 0] if index == 3 else [8, 5], seed=index)

    run = run_of(
        data,
        OBJECTIVES[name],
        torch.float32,
        accumulation=accumulation,
        clip={"policy": policy},
        precision=precision,
        model=(model := model_of(torch.float32)),
        optimizer=torch.optim.AdamW(model.parameters(), 1e-2),
    )
    run.advance(3)
    before = {name: tensor.clone() for name, tensor in run._clipper.state_dict().items()}
    scale = run._scaler.state_dict().get("scale")
    twin = copy.deepcopy((run.model, run.optimizer))
    nothing = step(run)
    assert math.isnan(nothing.loss)
    assert (nothing.tokens, nothing.grad_norm, nothing.grad_norm_clipped) == (0, 0.0, 0.0)
    for parameter in twin[0].parameters():
        parameter.grad = torch.zeros_like(parameter)
    twin[1].step()
    assert torch.equal(
        torch.cat([p.detach().flatten() for p in twin[0].parameters()]), weights(run)
    )
    after = run._clipper.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert run._scaler.state_dict().get("scale") == scale
    assert all(math.isfinite(t.loss) for t in run.advance(4))
    assert run.flops_per_step == run.ledger["main"] / run.step


def test_a_first_step_without_labels() -> None:
    def data(index: int) -> Any:
        return padded([8 * (index > 0)] * 2, seed=index)

    for name, objective in OBJECTIVES.items():
        telemetry = run_of(
            data, objective, accumulation=2, precision="fp32", clip={"policy": "arc"}
        ).advance(4)
        assert [math.isnan(t.loss) for t in telemetry] == [True, False, False, False], name
        assert [t.tokens for t in telemetry] == [0, 16, 16, 16]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("lengths", [[0, 8], [8, 0]])
def test_one_micro_batch_without_labels_leaves_the_others_as_they_are(
    name: str, lengths: list[int]
) -> None:
    # Robust clipping over workers too: one labelled micro-batch among empty ones is not cut down to their norm, 0.
    data = padded(lengths)
    labelled = tuple(t[lengths.index(8)][None] for t in data)
    for clip in ({"policy": "none"}, {"policy": "arc"}):
        whole, parts = (
            run_of(labelled, OBJECTIVES[name], clip=clip),
            run_of(data, OBJECTIVES[name], accumulation=2, clip=clip),
        )
        one, two = step(whole), step(parts)
        assert two.loss == pytest.approx(one.loss, rel=1e-6)
        assert two.grad_norm_clipped == pytest.approx(one.grad_norm_clipped, rel=1e-5)
        assert torch.allclose(weights(parts), weights(whole), rtol=0, atol=1e-12)


def test_labels_that_the_loss_does_not_read_do_not_silence_it() -> None:
    x, _ = padded([8, 8])
    data = {"input_ids": x, "labels": torch.full_like(x, -100)}

    def own(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(
            model(batch["input_ids"]).flatten(0, 1), batch["input_ids"].flatten()
        )

    for accumulation in (1, 2):
        run = run_of(data, own, accumulation=accumulation, validation=[data, data])
        first = run.evaluate()
        assert step(run).loss == pytest.approx(first, rel=1e-6)
        assert run.evaluate() < first


def test_validation_is_over_labelled_tokens() -> None:
    full, none, short = padded([8, 8]), padded([0, 0]), padded([1, 0])
    run = run_of(full, validation=[full, none, short])
    found = [mean(run.model, data).item() for data in (full, short)]
    assert run.evaluate() == pytest.approx((16 * found[0] + found[1]) / 17, rel=1e-12)
    for objective in OBJECTIVES.values():
        assert run_of(full, objective, validation=[full, none, short]).evaluate() == pytest.approx(
            run.evaluate(), rel=1e-12
        )
        with pytest.raises(UserError, match="validation must have labelled tokens"):
            run_of(full, objective, validation=[none])


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_probe_reads_either_form(name: str) -> None:
    data = padded([8, 3])
    run = run_of(data, OBJECTIVES[name], probe=padded([5, 2]), monitor={"probe_every": 1})
    telemetry = step(run)
    expected = mean(run.model, padded([5, 2]))
    assert telemetry.probe_loss == pytest.approx(expected.item(), rel=1e-5)


# ── what an objective may return ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "count", [12, 12.0, np.int64(12), np.float32(12), torch.tensor(12), torch.tensor([12.0])]
)
def test_counts_of_any_kind(count: Any) -> None:
    data = padded([8, 4])
    run = run_of(data, lambda model, batch: (pair(model, batch)[0], count))
    expected = step(run_of(data))
    assert step(run).loss == pytest.approx(expected.loss, rel=1e-6)


def fails(model: nn.Module, batch: Any) -> Any:
    """Logits."""
    return model(batch[0])


@pytest.mark.parametrize(
    ("objective", "found"),
    [
        (
            fails,
            r"one number, the mean loss, found a tensor of float64 \[2, 8, 32\]; reduce it with",
        ),
        (
            lambda m, b: (mean(m, b), fails(m, b)),
            r"labelled tokens\), found a tensor of float64 \[2, 8, 32\] as the second",
        ),
        (
            lambda m, b: (mean(m, b), mean(m, b)),
            r"found a tensor of float64 \[\] with gradients as the second",
        ),
        (
            lambda m, b: (mean(m, b), {"accuracy": 1}),
            "found dict as the second; return the loss alone",
        ),
        (lambda m, b: (mean(m, b), 1, 2), "found tuple of length 3"),
        (
            lambda m, b: {"loss": mean(m, b)},
            "found dict; of a model's output return the loss alone",
        ),
        (lambda m, b: mean(m, b).item(), "found float"),
        (lambda m, b: None, "found NoneType"),
        (
            lambda m, b: mean(m, b).detach(),
            r"the loss carries no gradients: .*leave out detach\(\)",
        ),
        (lambda m, b: (mean(m, b), -1), "must be 0 or more, found -1.0"),
        (lambda m, b: (mean(m, b), math.nan), "must be 0 or more, found nan"),
    ],
)
def test_what_is_no_loss_is_refused_in_a_sentence(objective: Any, found: str) -> None:
    with pytest.raises(UserError, match=found):
        run_of(padded([8, 4]), objective)


def test_an_objective_keeps_to_one_form() -> None:
    def either(model: nn.Module, batch: Any) -> Any:
        return mean(model, batch) if batch[1][0, -1] == -100 else pair(model, batch)

    with pytest.raises(UserError, match="of each micro-batch, or the pair of each; found both"):
        run_of(padded([8, 4]), either, accumulation=2).advance(1)
