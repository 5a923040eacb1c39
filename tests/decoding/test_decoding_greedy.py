"""Greedy decoding against the target's own `generate`."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import pytest
import torch

from trainenv.decoding.contract import GREEDY, Sampling, Settings
from trainenv.decoding.decoder import Decoder
from trainenv.decoding.drafters import CausalDrafter, PromptLookup, first_layers
from trainenv.decoding.rules import Exact, Lossy, Pipelined
from trainenv.decoding.schedules import Adaptive, Confidence, Heuristic
from trainenv.types import UserError

PROMPTS = [[1, 2, 3, 4, 5], [7], [9, 8, 7], [4, 4, 4, 4, 4, 4, 4]]
NEW = 10


@functools.cache
def gpt2(layers: int, seed: int):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=24,
        n_positions=64,
        n_embd=16,
        n_layer=layers,
        n_head=2,
        bos_token_id=0,
        eos_token_id=None,
        initializer_range=0.3,
    )
    return GPT2LMHeadModel(config).double().eval()


@functools.cache
def llama(layers: int, seed: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=None,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).double().eval()


@functools.cache
def generated(make, layers: int, end: int | None = None):
    """Return what the model's own `generate` adds to each prompt."""
    model = make(layers, 0)
    rows = []
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        made = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=end,
        )
        rows.append(tuple(made[0, len(prompt) :].tolist()))
    return tuple(rows)


def decoder(make, k, *, rule=None, fallback=0.0, rollback=3.0, cached=True, drafter=None):
    return Decoder(
        target=make(2, 0),
        drafter=drafter or CausalDrafter(model=make(1, 1), cached=cached),
        rule=rule or Exact(),
        settings=Settings(k=k, fallback_threshold=fallback, rollback_threshold=rollback),
        sampling=GREEDY,
        cached=cached,
        dtype=torch.float64,
    )


# Every length with alternating choices, and all choices at one length.
CASES = [
    (k, bool(k % 2), (Exact(), Pipelined())[k // 2 % 2], (0.0, 0.3, 0.6)[k % 3])
    for k in range(1, 17)
] + list(itertools.product((3,), (True, False), (Exact(), Pipelined()), (0.0, 0.4, 1.5)))


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize(("k", "cached", "rule", "fallback"), CASES)
def test_text_is_that_of_generate(make, k, cached, rule, fallback):
    expected = generated(make, 2)
    made = decoder(make, k, cached=cached, rule=rule, fallback=fallback)
    assert made.generate(PROMPTS, max_new_tokens=NEW, end_tokens=()).new_tokens == expected
    assert made.generate(PROMPTS[2:3], max_new_tokens=NEW).new_tokens == expected[2:3]


class Seen:
    """A schedule that notes what it is asked: two tokens, then one more each time."""

    def __init__(self):
        self.tokens = 2
        self.blocks = []

    def begin(self):
        return self

    def ends(self, own, top):
        assert own == pytest.approx(top)  # greedy
        return len(own) == 3

    def update(self, own, accepted, complete):
        self.blocks.append((self.tokens, len(own), accepted, complete))
        self.tokens += 1


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_schedule_changes_the_length_and_not_the_text(make):
    seen = Seen()
    made = Decoder(
        target=make(2, 0),
        drafter=CausalDrafter(model=near(make)),
        settings=Settings(k=16, fallback_threshold=0.0),
        schedule=seen,
        sampling=GREEDY,
        dtype=torch.float64,
    )
    result = made.generate(PROMPTS[:1], max_new_tokens=NEW)
    assert result.new_tokens == generated(make, 2)[:1]
    drafted = [call.drafted[0] for call in result.calls if call.drafted[0]]
    assert drafted[0] == 2
    assert max(drafted) == 3
    assert len(seen.blocks) == len(drafted)
    assert sum(accepted for _, _, accepted, _ in seen.blocks) == result.accepted
    for _, known, accepted, complete in seen.blocks:
        assert known == accepted + (not complete)


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("schedule", [Heuristic(start=1), Confidence(), Adaptive(seconds=(1, 2))])
@pytest.mark.parametrize("drafter", [None, PromptLookup()])
def test_schedules_keep_the_text_of_every_row(make, schedule, drafter):
    made = Decoder(
        target=make(2, 0),
        drafter=drafter or CausalDrafter(model=near(make)),
        settings=Settings(k=16, fallback_threshold=0.0),
        schedule=schedule,
        sampling=GREEDY,
        dtype=torch.float64,
    )
    assert made.generate(PROMPTS, max_new_tokens=NEW).new_tokens == generated(make, 2)


def test_a_schedule_with_a_pipeline_is_refused():
    with pytest.raises(UserError, match="not draft ahead, found Pipelined"):
        Decoder(target=gpt2(2, 0), drafter=PromptLookup(), rule=Pipelined(), schedule=Heuristic())


@functools.cache
def mistral(layers: int, seed: int):
    """Return a model whose attention sees four tokens; the text is longer than that."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=4,
        bos_token_id=0,
        eos_token_id=None,
        initializer_range=0.3,
    )
    return MistralForCausalLM(config).double().eval()


@functools.cache
def bloom(layers: int, seed: int):
    """Return a model without positions in its call, with eager attention."""
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(seed)
    config = BloomConfig(
        vocab_size=24,
        hidden_size=16,
        n_layer=layers,
        n_head=4,
        bos_token_id=0,
        eos_token_id=None,
        initializer_range=0.3,
    )
    return BloomForCausalLM(config).eval()


@pytest.mark.parametrize("make", [mistral, bloom])
@pytest.mark.parametrize("cached", [True, False])
def test_other_architectures(make, cached):
    made = decoder(make, 4, cached=cached)
    assert made.generate(PROMPTS, max_new_tokens=NEW, end_tokens=()).new_tokens == generated(
        make, 2
    )


def test_float64_with_eager_attention_is_refused_where_rows_differ():
    target = copy.deepcopy(bloom(2, 0)).double()
    made = Decoder(target=target, drafter=PromptLookup(), sampling=GREEDY, dtype=torch.float64)
    assert made.generate(PROMPTS[:1], max_new_tokens=NEW).new_tokens == generated(bloom, 2)[:1]
    with pytest.raises(UserError, match=r"float64 in BloomForCausalLM; call model\.float\(\)"):
        made.generate(PROMPTS, max_new_tokens=NEW)


@pytest.mark.parametrize("place", range(NEW))
@pytest.mark.parametrize("rule", [Exact(), Pipelined()])
def test_end_token_at_every_place(place, rule):
    end = generated(gpt2, 2)[0][place]
    expected = generated(gpt2, 2, end)
    assert expected[0][-1] == end
    # A target that drafts for itself proposes the end token inside a draft.
    for drafter in (None, CausalDrafter(model=gpt2(2, 0))):
        made = decoder(gpt2, 4, rule=rule, drafter=drafter)
        result = made.generate(PROMPTS, max_new_tokens=NEW, end_tokens=[end])
        assert result.new_tokens == tuple(cut(row, end) for row in expected)


def cut(row, end):
    """Return a row up to its end token; `generate` pads after it."""
    if end in row:
        return row[: row.index(end) + 1]
    return row


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("rule", [Exact(), Pipelined()])
def test_other_drafters(make, rule):
    expected = generated(make, 2)
    for drafter in (PromptLookup(), first_layers(make(2, 0), 1), CausalDrafter(model=make(2, 0))):
        made = decoder(make, 5, rule=rule, drafter=drafter)
        result = made.generate(PROMPTS, max_new_tokens=NEW)
        assert result.new_tokens == expected
    assert result.acceptance == 1  # the target drafted for itself
    assert result.target_calls <= math.ceil(NEW / 5)


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("bonus", [True, False])
def test_lossy_limits_that_give_the_target(make, bonus):
    for limits in ({"fallback": 1.01, "rollback": math.inf}, {"rollback": 0.0}):
        made = decoder(make, 4, rule=Lossy(bonus=bonus), **limits)
        assert made.generate(PROMPTS, max_new_tokens=NEW).new_tokens == generated(make, 2)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("k", [1, 4, 16])
def test_lossy_limit_that_gives_the_draft(cached, k):
    drafter = CausalDrafter(model=gpt2(2, 0), cached=cached)
    target = gpt2(1, 1)
    made = Decoder(
        target=target,
        drafter=drafter,
        rule=Lossy(bonus=False),
        settings=Settings(k=k, fallback_threshold=0.0, rollback_threshold=math.inf),
        sampling=GREEDY,
        cached=cached,
        dtype=torch.float64,
    )
    result = made.generate(PROMPTS, max_new_tokens=NEW)
    assert result.new_tokens == generated(gpt2, 2)
    assert result.acceptance == 1


def test_lossy_bonus_is_the_target_s_token():
    settings = Settings(k=3, fallback_threshold=0.0, rollback_threshold=math.inf)
    draft = CausalDrafter(model=gpt2(1, 1))
    made = Decoder(
        target=gpt2(2, 0), drafter=draft, rule=Lossy(), settings=settings, sampling=GREEDY
    )
    row = made.generate([PROMPTS[0]], max_new_tokens=NEW).sequences[0]
    begin = len(PROMPTS[0])
    for place in range(begin, len(row)):
        author = (gpt2(1, 1), gpt2(2, 0))[(place - begin) % 4 == 3 or place == len(row) - 1]
        logits = author(torch.tensor([row[:place]])).logits[0, -1]
        assert row[place] == int(logits.argmax())


@functools.cache
def near(make):
    """Return a draft that often agrees with the target: its weights, slightly changed."""
    model = copy.deepcopy(make(2, 0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            noise = torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
            weights += NOISE * noise
    return model


NOISE = 0.06


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("rule", [Exact(), Pipelined(), Lossy(bonus=False)])
@pytest.mark.parametrize("how", [GREEDY, Sampling()])
def test_keys_and_values_of_a_draft_are_never_stale(make, rule, how):
    """A draft that read rejected tokens would still be verified, so text alone does not show it."""
    calls = []
    for cached in (True, False):
        made = Decoder(
            target=make(2, 0),
            drafter=CausalDrafter(model=near(make), cached=cached),
            rule=rule,
            settings=Settings(k=2, fallback_threshold=0.2, rollback_threshold=2.0),
            sampling=how,
            cached=cached,
            dtype=torch.float64,
        ).generate(PROMPTS, max_new_tokens=14, end_tokens=[3], seed=1)
        rounds = [
            (call.row_ids, call.drafted, call.accepted, call.fell_back) for call in made.calls
        ]
        calls.append((made.new_tokens, rounds))
        assert 0.1 < made.acceptance < 1  # drafts stay whole, and do not
    assert calls[0] == calls[1]


def test_statistics_add_up():
    made = decoder(gpt2, 4, fallback=0.2).generate(PROMPTS, max_new_tokens=NEW)
    assert made.tokens == sum(sum(call.emitted) for call in made.calls) == NEW * len(PROMPTS)
    for call in made.calls:
        for drafted, accepted, emitted in zip(call.drafted, call.accepted, call.emitted):
            assert 0 <= accepted <= drafted <= 4
            assert accepted <= emitted <= accepted + 1
    assert made.draft_calls > 0
    assert made.accepted <= made.drafted
    parts = made.seconds_by_part
    assert sum(parts.values()) == pytest.approx(made.seconds)
    assert made.seconds_on_two_devices == made.seconds  # nothing was drafted ahead
    ahead = decoder(gpt2, 4, rule=Pipelined()).generate(PROMPTS, max_new_tokens=NEW)
    assert ahead.seconds_on_two_devices < ahead.seconds
