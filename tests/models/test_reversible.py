"""Reversible blocks: the gradients of kept activations, in memory that does not grow with depth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.saved_bytes import saved_bytes
from trainenv.config.schema import RunConfig
from trainenv.models import build, spec_of
from trainenv.models.reversible import ReversibleGPT2
from trainenv.types import UserError

CPU = torch.device("cpu")


def made(layers: int = 3, **overrides: Any) -> ReversibleGPT2:
    settings = {"model.width": 32, "model.context": 16, "model.blocks": "reversible"}
    more = {key.replace("__", "."): value for key, value in overrides.items()}
    config = RunConfig.load("tiny", {**settings, "model.layers": layers, **more})
    model = build.build(config, 64, CPU)
    assert isinstance(model, ReversibleGPT2)
    with torch.no_grad():  # sub-layers as large as those of a trained model
        for parameter in model.blocks.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model


def tokens(rows: int = 2) -> Tensor:
    return torch.randint(0, 64, (rows, 17), generator=torch.Generator().manual_seed(0))


def gradients(model: ReversibleGPT2, *, recompute: bool, bf16: bool = False) -> list[Tensor]:
    """Loss and gradients, with the random state after the backward pass."""
    model.recompute = recompute
    model.zero_grad()
    torch.manual_seed(3)
    batch = tokens()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = model(batch[:, :-1]).logits
    loss = F.cross_entropy(logits.flatten(0, 1).to(model.wte.weight.dtype), batch[:, 1:].flatten())
    loss.backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [loss.detach(), *found, torch.get_rng_state()]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_in_float64(dropout: float) -> None:
    model = made(layers=6, model__dropout=dropout).double()
    kept = gradients(model, recompute=False)
    for one, other in zip(kept, gradients(model, recompute=True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    model = made(layers=2).double()
    weight = model.blocks[0].mlp.c_fc.weight  # type: ignore[union-attr]
    place = (3, 5)
    _, *found = gradients(model, recompute=True)
    names = [name for name, _ in model.named_parameters()]
    gradient = found[names.index("blocks.0.mlp.c_fc.weight")][place]
    losses = []
    for change in (1e-5, -2e-5):
        with torch.no_grad():
            weight[place] += change
        losses.append(gradients(model, recompute=True)[0])
    torch.testing.assert_close((losses[0] - losses[1]) / 2e-5, gradient, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_same_bits_in_float32_and_under_autocast(dropout: float, bf16: bool) -> None:
    model = made(layers=12, model__dropout=dropout)
    kept = gradients(model, recompute=False, bf16=bf16)
    again = gradients(model, recompute=True, bf16=bf16)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


def test_other_masks_of_dropout_would_be_seen() -> None:
    model = made(model__dropout=0.3)
    with not_replayed():
        again = gradients(model, recompute=True)
    kept = gradients(model, recompute=False)
    assert not all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


@contextmanager
def not_replayed() -> Iterator[None]:
    from trainenv.models import reversible

    known = reversible._set_random_states
    reversible._set_random_states = lambda *_: None
    try:
        yield
    finally:
        reversible._set_random_states = known


def test_frozen_parameters_get_no_gradient() -> None:
    model = made()
    model.blocks[1].requires_grad_(False)
    model.blocks[2].ln_1.weight.requires_grad_(False)  # type: ignore[union-attr]
    kept = gradients(model, recompute=False)
    again = gradients(model, recompute=True)
    assert len(kept) == len(again)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    model.requires_grad_(False)
    assert not model(tokens()[:, :-1]).logits.requires_grad


def test_saved_bytes_do_not_grow_with_depth() -> None:
    batch = tokens(8)[:, :-1]
    reversible = {n: saved_bytes(made(layers=n), batch) for n in (1, 4, 24)}
    assert reversible[1] == reversible[4] == reversible[24]
    config = {"model.width": 32, "model.context": 16, "model.layers": 4}
    standard = build.build(RunConfig.load("tiny", config), 64, CPU)
    assert reversible[24] < saved_bytes(standard, batch)
    dropout = {n: saved_bytes(made(layers=n, model__dropout=0.1), batch) for n in (1, 24)}
    states = 2 * torch.get_rng_state().nbytes
    assert dropout[24] - dropout[1] == 23 * states


def test_the_facts_are_those_of_a_gpt2() -> None:
    config = {"model.width": 32, "model.layers": 3}
    plain = build.build(RunConfig.load("tiny", config), 64, CPU)
    model = build.build(RunConfig.load("tiny", {**config, "model.blocks": "reversible"}), 64, CPU)
    spec = spec_of(model)
    assert spec.shape(model) == spec_of(plain).shape(plain)
    assert spec.flops_per_token(model, 64) == spec_of(plain).flops_per_token(plain, 64)
    blocks = spec.blocks(model)
    assert len(blocks) == 3
    assert all(spec.attention(block) for block in blocks)
    assert spec.embedding(model) is model.wte
    decayed = {name for name, p in model.named_parameters() if spec.decays(name, p)}
    assert "wpe.weight" not in decayed
    assert "blocks.0.attn.c_attn.weight" in decayed


def test_no_token_sees_those_after_it() -> None:
    model = made().eval()
    batch = tokens()[:, :-1]
    other = batch.clone()
    other[:, 9:] = 0
    one, two = model(batch).logits, model(other).logits
    torch.testing.assert_close(one[:, :9], two[:, :9])
    assert not torch.allclose(one[:, 9:], two[:, 9:])


def test_attention_without_a_causal_mask_is_refused() -> None:
    config = made().config
    config._attn_implementation = "eager"
    with pytest.raises(UserError, match="need the attention sdpa, found eager; leave"):
        ReversibleGPT2(config)


def test_initial_weights_are_those_of_a_gpt2() -> None:
    settings = {"model.width": 64, "model.layers": 8, "model.blocks": "reversible"}
    model = build.build(RunConfig.load("tiny", settings), 64, CPU)
    weights = {name: p.std().item() for name, p in model.named_parameters() if p.dim() == 2}
    for name, deviation in weights.items():
        expected = 0.02 / 4 if "c_proj" in name else 0.02  # √(2 · 8) = 4
        assert deviation == pytest.approx(expected, rel=0.05), name


def test_stable_initialisation_scales_the_embedding() -> None:
    model = made(model__init="stable")
    torch.testing.assert_close(model.wte(torch.tensor(5)), model.wte.weight[5] * 32**0.5)


def test_reversible_blocks_are_not_checkpointed_too() -> None:
    with pytest.raises(UserError, match=r"reversible blocks keep no activations, found .* sqrt"):
        made(model__activation_checkpointing="sqrt")
