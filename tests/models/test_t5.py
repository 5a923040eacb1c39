"""T5: the function of transformers by a shorter way, and facts that fit its two stacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from trainenv.config.schema import RunConfig
from trainenv.models import build, spec_of
from trainenv.models.t5 import T5, T5Spec, t5_flops, t5_parameters
from trainenv.types import UserError

CPU = torch.device("cpu")


def config(**overrides: Any) -> RunConfig:
    more = {key.replace("__", "."): value for key, value in overrides.items()}
    return RunConfig.load("t5-tiny", {"model.width": 32, "model.context": 24, **more})


def made(**overrides: Any) -> T5:
    model = build.build(config(**overrides), 100, CPU)
    assert isinstance(model, T5)
    return model


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 100, (3, 24), generator=draw), torch.randint(
        0, 100, (3, 7), generator=draw
    )


def test_the_short_way_is_the_usual_one() -> None:
    inputs, targets = batch()
    model = made()
    with torch.no_grad():  # biases by distance that matter
        for stack in (model.encoder, model.decoder):
            stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.normal_()
    results = []
    for short in (True, False):
        model.zero_grad()
        call = model if short else T5ForConditionalGeneration.forward.__get__(model)
        logits = call(input_ids=inputs, decoder_input_ids=targets).logits
        logits.square().mean().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_no_target_sees_those_after_it_and_all_see_all_inputs() -> None:
    inputs, targets = batch()
    model = made().eval()
    later = targets.clone()
    later[:, 4:] = 3
    logits = model(inputs, targets).logits
    torch.testing.assert_close(model(inputs, later).logits[:, :4], logits[:, :4])
    assert not torch.allclose(model(inputs, later).logits[:, 4:], logits[:, 4:])
    other = inputs.clone()
    other[:, -1] = 3
    assert (model(other, targets).logits != logits).any(-1).all()


def test_it_generates_as_transformers_does() -> None:
    inputs, _ = batch()
    model = made().eval()
    found = model.generate(inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    expected = torch.full((3, 1), 100)  # the start token
    for _ in range(4):
        best = model(inputs, expected).logits[:, -1:].argmax(-1)
        expected = torch.cat([expected, best], dim=1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("overrides", [{}, {"model__layers": 3, "model__heads": 4}])
def test_parameters_are_counted(overrides: dict[str, Any]) -> None:
    model = made(**overrides)
    count = sum(p.numel() for p in model.parameters())
    assert build.parameter_count(config(**overrides), 100) == count


def test_initial_weights_are_those_of_t5() -> None:
    weights = dict(made().named_parameters())
    expected = {
        "shared.weight": 1.0,
        "encoder.block.0.layer.0.SelfAttention.q.weight": (32 * 16) ** -0.5,
        "decoder.block.1.layer.1.EncDecAttention.k.weight": 32**-0.5,
        "decoder.block.1.layer.2.DenseReluDense.wo.weight": 128**-0.5,
    }
    for name, deviation in expected.items():
        assert weights[name].std().item() == pytest.approx(deviation, rel=0.1), name


def test_t5_base_is_as_large_as_published() -> None:
    """Raffel 2020: about 220 million parameters, with 32 128 tokens."""
    found = t5_parameters(layers=12, width=768, heads=12, vocabulary=32128)
    assert found == 222_903_552
    base = RunConfig.load("t5-base")
    assert build.span_corruption(base, 50257).sentinels == 28
    assert build.parameter_count(base, 50257) == pytest.approx(237e6, rel=0.01)


def test_flops_are_those_of_a_count_of_products() -> None:
    layers, width, vocabulary, inputs, targets = 2, 8, 30, 10, 4
    projection = 2 * width**2  # FLOPs for one token
    mlp = 2 * 2 * 4 * width**2
    encoder = inputs * (4 * projection + mlp) + inputs**2 * 4 * width
    cross = targets * 2 * projection + inputs * 2 * projection + targets * inputs * 4 * width
    decoder = targets * (4 * projection + mlp) + targets**2 * 4 * width + cross
    output = targets * 2 * width * vocabulary
    norms = 2 * (inputs * (2 * layers + 1) + targets * (3 * layers + 1)) * width
    expected = 3 * (layers * (encoder + decoder) + output + norms)
    found = t5_flops(
        layers=layers, width=width, vocabulary=vocabulary, inputs=inputs, targets=targets
    )
    assert found == expected


def test_facts() -> None:
    model = made()
    spec = spec_of(model)
    assert isinstance(spec, T5Spec)
    assert (spec.inputs, spec.targets) == (24, 6)
    assert len(spec.blocks(model)) == 4
    assert spec.shape(model).vocabulary == 100 + 2 + 1  # text, start and end, one sentinel
    assert spec.embedding(model) is model.shared
    assert all(spec.attention(block) is None for block in spec.blocks(model))
    kept = {name for name, p in model.named_parameters() if not spec.decays(name, p)}
    assert all("norm" in name or "relative_attention_bias" in name for name in kept)
    assert sum("relative_attention_bias" in name for name in kept) == 2


@pytest.mark.parametrize(
    ("key", "value"), [("positions", 100), ("init", "stable"), ("blocks", "reversible")]
)
def test_keys_of_a_gpt2_are_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{key} is for a GPT-2, found {value} for a T5; leave"):
        config(**{f"model__{key}": value})


def test_too_short_a_context_is_refused() -> None:
    with pytest.raises(UserError, match="at least 3 tokens for span corruption, found 2; take"):
        build.build(config(model__context=2), 100, CPU)
