"""Future heads as the draft: the text is the target's, for blocks and linear heads."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.decoding_paths import law_of
from tests.support.mtp_models import gpt2, llama
from trainenv.decoding import Decoder, Settings
from trainenv.decoding.contract import GREEDY, Sampling
from trainenv.decoding.distances import total_variation
from trainenv.decoding.drafters import HeadsDrafter
from trainenv.types import UserError

PROMPTS = [[1, 2, 3, 4], [7], [9, 8, 7], [4, 4, 4, 4, 4]]
NEW = 10


def ready(make: Any, kind: str) -> nn.Module:
    model: nn.Module = make(kind=kind)
    for parameter in model.parameters():  # logits that differ from token to token
        with torch.no_grad():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.double().eval()


def decoder(model: nn.Module, **settings: Any) -> Decoder:
    given = {"settings": Settings(k=3, fallback_threshold=0.0), "dtype": torch.float64, **settings}
    return Decoder(target=model, drafter=HeadsDrafter(model=model), **given)


def greedy(model: nn.Module) -> list[tuple[int, ...]]:
    """Continue each prompt by the model's own most likely tokens, read afresh each time."""
    rows = []
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(NEW):
                best = model(tokens).logits[:, -1:].argmax(dim=-1)
                tokens = torch.cat([tokens, best], dim=1)
        rows.append(tuple(tokens[0, len(prompt) :].tolist()))
    return rows


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("kind", ["block", "linear"])
@pytest.mark.parametrize("cached", [True, False])
def test_greedy_text_is_that_of_the_target(make: Any, kind: str, cached: bool) -> None:
    model = ready(make, kind)
    made = decoder(model, sampling=GREEDY, cached=cached).generate(
        PROMPTS, max_new_tokens=NEW, end_tokens=()
    )
    assert list(made.new_tokens) == greedy(model)
    assert made.draft_calls == 0
    assert made.drafted > 0


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("cached", [True, False])
def test_drafts_are_the_most_likely_tokens_of_each_head(make: Any, cached: bool) -> None:
    """Rows of different lengths, rejections and rows that end leave each head its own states."""
    model = ready(make, "block")
    heads: Any = model.future_heads
    seen: dict[int, list[list[int]]] = {row: [] for row in range(len(PROMPTS))}

    def note(block: Any) -> None:
        for place, row in enumerate(block.row_ids):
            seen[row].append(block.tokens[place, : block.counts[place]].tolist())

    made = decoder(model, sampling=GREEDY, cached=cached).generate(
        PROMPTS, max_new_tokens=NEW, end_tokens=(), observer=note
    )
    lengths = {row: len(prompt) for row, prompt in enumerate(PROMPTS)}
    drafts: dict[int, list[list[int]]] = {row: [] for row in lengths}
    for call in made.calls:
        for place, row in enumerate(call.row_ids):
            known = lengths[row] - 1  # the newest token is not read yet
            if call.drafted[place]:
                tokens = torch.tensor([made.sequences[row][:known]])
                with torch.no_grad():
                    trunk = heads.trunk(model, tokens)
                    wanted = [
                        int(
                            heads.read(
                                model,
                                head,
                                heads.through_block(
                                    head, trunk.before, trunk.arguments, trunk.keywords
                                )[:, -1],
                            ).argmax()
                        )
                        for head in range(1, call.drafted[place] + 1)
                    ]
                drafts[row].append(wanted)
            lengths[row] += call.emitted[place]
    assert {row: [d for d in found if d] for row, found in seen.items()} == drafts
    assert sum(map(len, drafts.values())) > 8


@pytest.mark.parametrize("kind", ["block", "linear"])
def test_sampled_text_has_the_law_of_the_target(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from trainenv.models import add_heads

    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=2,
        n_embd=8,
        n_layer=2,
        n_head=2,
        n_positions=16,
        initializer_range=0.6,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    for parameter in add_heads(
        model, heads=4, kind=kind
    ).parameters():  # heads that differ from the target
        with torch.no_grad():
            parameter.add_(0.5 * torch.randn_like(parameter))
    model.double().eval()
    length = 5
    how = Sampling(temperature=0.8)
    made = decoder(model, sampling=how, cached=False)

    def run() -> tuple[int, ...]:
        return made.generate([[1, 0]], max_new_tokens=length, end_tokens=()).new_tokens[0]

    law = law_of(run, vocabulary=2, length=length, monkeypatch=monkeypatch)
    expected = torch.zeros_like(law)
    for index in torch.cartesian_prod(*[torch.arange(2)] * length):
        tokens = torch.cat([torch.tensor([1, 0]), index])[None]
        with torch.no_grad():
            chances = (model(tokens).logits[0] / how.temperature).log_softmax(dim=-1)
        total = sum(chances[1 + place, token] for place, token in enumerate(index.tolist()))
        expected[tuple(index.tolist())] = float(torch.as_tensor(total).exp())
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    assert float(total_variation(law.flatten(), expected.flatten())) < 1e-12


def test_a_generation_leaves_nothing_on_the_model() -> None:
    model = ready(gpt2, "block")
    heads: Any = model.future_heads
    numbers = [part.layer_idx for part in model.modules() if hasattr(part, "layer_idx")]
    decoder(model).generate(PROMPTS, max_new_tokens=4, end_tokens=())
    gc.collect()
    assert not heads.last_block(model)._forward_hooks
    assert [part.layer_idx for part in model.modules() if hasattr(part, "layer_idx")] == numbers


def test_a_model_without_heads_and_another_target_are_refused() -> None:
    model = ready(gpt2, "block")
    with pytest.raises(UserError, match="at least 2 heads, found 1"):
        HeadsDrafter(model=gpt2(heads=1))
    other = Decoder(target=gpt2(seed=9).double().eval(), drafter=HeadsDrafter(model=model))
    with pytest.raises(UserError, match="give the same model as both"):
        other.generate(PROMPTS, max_new_tokens=4, end_tokens=())
