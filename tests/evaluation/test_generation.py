"""Samples from models: reproducible, independent of batches, cut at stops and at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from trainenv.data.tokenizers import Bytes
from trainenv.evaluation import Codec, Sampler
from trainenv.models.gpt2 import GPT2
from trainenv.types import UserError

PROMPTS = ["1+1=", "12+30=", "a", "7*8="]


def tiny(kind: type[GPT2LMHeadModel] = GPT2, **more: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_positions=48, n_embd=16, n_layer=1, n_head=2, bos_token_id=0,
        eos_token_id=0, use_cache=False, initializer_range=0.5, **more,
    )  # fmt: skip
    return kind(config)


class Counting(nn.Module):
    """A model that counts on: after token t, the most probable one is t + 1; it has no cache."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.rows: list[int] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.rows.append(len(tokens))
        return 20 * nn.functional.one_hot((tokens + 1) % 256, 256).float() + self.weight


def test_samples_do_not_depend_on_batches() -> None:
    model = tiny()
    state = torch.random.get_rng_state()
    first = Sampler(samples=3, max_tokens=12)(model, Bytes(), PROMPTS)
    for batch_size in (1, 2, 7):
        sampler = Sampler(samples=3, max_tokens=12, batch_size=batch_size)
        assert sampler(model, Bytes(), PROMPTS) == first
    assert Sampler(samples=3, max_tokens=12, seed=1)(model, Bytes(), PROMPTS) != first
    assert [len(texts) for texts in first] == [3] * 4
    assert len({text for texts in first for text in texts}) > 6
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_cache_changes_nothing() -> None:
    """A model without `generate` is called on the whole text at each step."""
    model = tiny(GPT2LMHeadModel)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, tokens: Tensor) -> Tensor:
            return self.inner(tokens).logits

    sampler = Sampler(samples=2, max_tokens=16)
    assert sampler(model, Bytes(), PROMPTS) == sampler(Plain(), Bytes(), PROMPTS)


def test_temperature_0_takes_the_most_probable() -> None:
    model = tiny()
    (texts,) = Sampler(samples=2, max_tokens=10, temperature=0)(model, Bytes(), ["ab"])
    model.eval()
    tokens = torch.tensor([list(b"ab")])
    for _ in range(10):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1].argmax(-1)[:, None]], 1)
    made = tokens[0, 2:].numpy()
    if 0 in made:
        made = made[: int(np.flatnonzero(made == 0)[0])]
    assert texts == [Bytes().decode(made)] * 2


def test_the_shares_are_those_of_the_model() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.5, 0.3, 0.15, 0.05]).log())

        def forward(self, tokens: Tensor) -> Tensor:
            return self.logits.expand(*tokens.shape, 4)

    codec = Codec(
        encode=lambda text: [0], decode=lambda ids: "".join(map(str, ids)), ends=frozenset()
    )

    def shares(**settings: float) -> list[float]:
        sampler = Sampler(samples=40, max_tokens=50, **settings)  # type: ignore[arg-type]
        (texts,) = sampler(Fixed(), codec, ["x"])
        drawn = "".join(texts)
        return [drawn.count(token) / len(drawn) for token in "0123"]

    assert np.allclose(shares(temperature=1, top_p=1), [0.5, 0.3, 0.15, 0.05], atol=0.04)
    assert np.allclose(shares(temperature=1, top_p=0.8), [0.625, 0.375, 0, 0], atol=0.04)
    assert np.allclose(shares(temperature=1, top_p=0.81), [0.526, 0.316, 0.158, 0], atol=0.04)
    powers = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    assert np.allclose(shares(temperature=0.5, top_p=1), powers / powers.sum(), atol=0.04)


def test_a_text_ends_at_its_stop_or_the_end_token() -> None:
    model = Counting()
    greedy = Sampler(max_tokens=300, temperature=0)
    assert greedy(model, Bytes(), ["a", "a"], [["k"], ["d", "xyz"]]) == [["bcdefghij"], ["bc"]]
    # Two rows until the first search for stops, where the second ends; the other at the next one.
    assert model.rows == [2] * 8 + [1] * 8
    (text,) = Sampler(max_tokens=5, temperature=0)(model, Bytes(), ["a"])[0]
    assert text == "bcdef"
    (text,) = greedy(model, Codec.of(Bytes()), ["\x7f"])[0]
    assert len(model.rows) < 300
    assert "\0" not in text


def test_a_prompt_that_fills_the_model_is_completed_by_nothing() -> None:
    model = tiny()
    long = "x" * 48
    (texts, others) = Sampler(samples=2, max_tokens=4)(model, Bytes(), [long, "x" * 46])
    assert texts == ["", ""]
    assert all(len(text) <= 2 for text in others)


def test_modes_are_as_they_were() -> None:
    model = tiny(resid_pdrop=0.5)
    model.train()
    model.transformer.h[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    first = Sampler(max_tokens=8)(model, Bytes(), ["ab"])
    assert Sampler(max_tokens=8)(model, Bytes(), ["ab"]) == first  # no dropout
    assert {name: module.training for name, module in model.named_modules()} == before


def test_tokenizers_of_transformers_are_taken() -> None:
    class Words:
        eos_token_id = 3

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [ord(letter) for letter in text]}

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            assert skip_special_tokens
            return "".join(map(chr, ids))

    assert Codec.of(Words()).ends == {3}
    assert Sampler(max_tokens=3, temperature=0)(Counting(), Words(), ["a"]) == [["bcd"]]
    assert Sampler(max_tokens=9, temperature=0)(Counting(), Words(), ["\0"]) == [["\1\2"]]
    with pytest.raises(UserError, match="expected a tokenizer of trainenv"):
        Codec.of(object())


@pytest.mark.parametrize(
    "settings",
    [
        {"samples": 0},
        {"max_tokens": 0},
        {"batch_size": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_a_sentence(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        Sampler(**settings)


@pytest.mark.parametrize("positions", [64, 20])
def test_prompts_of_different_lengths_share_a_batch(positions: int) -> None:
    """Shorter rows are padded, and read as if they were alone, even where positions run out."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=positions, eos_token_id=0,
        initializer_range=0.5,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    calls: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda _, arguments, keywords: calls.append(tuple(keywords["input_ids"].shape)),
        with_kwargs=True,
    )
    prompts = [*PROMPTS, "", "100+200+300="]
    found = {}
    for temperature in (0.0, 0.8):
        for batch_size in (1, 3, 16):
            sampler = Sampler(
                samples=2, max_tokens=12, batch_size=batch_size, temperature=temperature
            )
            found[batch_size] = sampler(model, Bytes(), prompts)
        assert found[1] == found[3] == found[16]
    at_once = [shape for shape in calls if shape[0] >= 8]
    assert at_once, "all prompts with room are read in one call"
