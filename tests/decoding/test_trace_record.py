"""Recording of traces: the tree of tokens, repeatability, and agreement with the decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from trainenv.decoding import Decoder, rules
from trainenv.decoding.contract import Sampling, Settings
from trainenv.decoding.drafters.causal import CausalDrafter
from trainenv.decoding.traces import Trace, blocks_of
from trainenv.decoding.traces.record import Recorder, origin_of, repeats, weights_digest
from trainenv.decoding.traces.tree import TokenTree
from trainenv.types import UserError

VOCABULARY = 24
SHAPE: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 96}


def gpt2(width: int, layers: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=96,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(12)  # tied to the embedding: sharper distributions
    return model


def llama() -> nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **shape, **SHAPE)).eval()


def opt() -> nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "word_embed_proj_dim": 16}
    return OPTForCausalLM(OPTConfig(num_attention_heads=2, **shape, **SHAPE)).eval()


@pytest.fixture(scope="module")
def target() -> nn.Module:
    return gpt2(16, 2, 1)


@pytest.fixture(scope="module")
def draft(target: nn.Module) -> nn.Module:
    """A draft that is near the target: its weights with noise."""
    model = gpt2(16, 2, 1)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.15 * weight.std())
    return model


def prompts(rows: int, length: int = 6) -> list[list[int]]:
    return np.random.default_rng(0).integers(VOCABULARY, size=(rows, length)).tolist()


def recorded(
    target: nn.Module, draft: nn.Module, rows: int, recorder: Recorder, sampling: Sampling
) -> Trace:
    given = prompts(rows)
    origin = origin_of(
        target,
        draft,
        given,
        names=("target", "draft"),
        tokenizer_digest="0" * 16,
        corpus="random",
        sampling=sampling,
    )
    return recorder.record(target, draft, given, origin=origin)


@pytest.mark.parametrize("make", [lambda: gpt2(16, 2, 0), llama, opt], ids=["gpt2", "llama", "opt"])
@torch.inference_mode()
def test_a_tree_gives_the_logits_of_each_branch_read_alone(make: Any) -> None:
    model = make()
    tokens = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    tree = TokenTree(model, 2)
    chain = tree.append(tokens[:, :5])
    first = tree.extend(torch.tensor([1, 4, 2]), tokens[:, 5:8])
    second = tree.extend(torch.tensor([6, 5]), tokens[:, :2])
    assert torch.allclose(chain, model(tokens[:, :5]).logits, atol=1e-5)
    for place, length in enumerate((2, 5, 3)):
        alone = model(torch.cat([tokens[:, :length], tokens[:, 5 + place, None]], 1)).logits
        assert torch.allclose(first[:, place], alone[:, -1], atol=1e-5)
    alone = model(torch.cat([tokens[:, :5], tokens[:, 6, None], tokens[:, 0, None]], 1)).logits
    assert torch.allclose(second[:, 0], alone[:, -1], atol=1e-5)
    tree.crop(5)
    again = tree.extend(torch.tensor([1, 4]), tokens[:, 5:7])
    assert torch.allclose(again, first[:, :2], atol=1e-5)


@torch.inference_mode()
def test_a_trace_holds_what_the_models_think_of_its_text(
    target: nn.Module, draft: nn.Module
) -> None:
    recorder = Recorder(positions=12, depth=3, stride=4, top_k=8, rows_at_once=2)
    sampling = Sampling(temperature=0.8, top_p=0.9)
    trace = recorded(target, draft, 3, recorder, sampling)
    whole = torch.cat([torch.tensor(prompts(3)), torch.tensor(trace.tokens).long()], 1)
    before = slice(5, -1)
    q = draft(whole).logits[:, before]
    top = q.softmax(-1).amax(-1).numpy()
    assert np.allclose(trace.block_top[..., 0], top, atol=2e-3)
    p = target(whole).logits[:, before].softmax(-1)
    drawn = p.gather(-1, whole[:, 6:, None])[..., 0]
    assert bool((drawn > 0.001).all())  # top-p leaves out what is unlikely
    assert trace.arrays().keys() == trace.layout().keys()
    assert np.isfinite(trace.second_nats).all()
    assert trace.second_top.shape == (3, 3, 4, 3)


def test_recording_repeats_bit_for_bit_for_any_number_of_rows_before(
    target: nn.Module, draft: nn.Module
) -> None:
    recorder = Recorder(positions=8, depth=3, stride=4, rows_at_once=2)
    first = recorded(target, draft, 4, recorder, Sampling())
    again = recorded(target, draft, 4, recorder, Sampling())
    for name, array in first.arrays().items():
        assert np.array_equal(array, getattr(again, name)), name
    assert first.origin == again.origin
    part = first.select([2, 0])
    assert np.array_equal(part.tokens, first.tokens[[2, 0]])
    other = recorded(target, draft, 4, Recorder(positions=8, depth=3, stride=4, seed=1), Sampling())
    assert not np.array_equal(other.tokens, first.tokens)


@pytest.mark.parametrize(
    ("rule", "settings", "sampling", "slack"),
    [
        ("exact", Settings(fallback_threshold=0.0, k=4), Sampling(), 0.0),
        ("exact", Settings(fallback_threshold=0.3, k=6), Sampling(temperature=0.8), 0.0),
        ("pipelined", Settings(fallback_threshold=0.2, k=3), Sampling(), 0.0),
        ("pipelined", Settings(fallback_threshold=0.0, k=1), Sampling(), 0.0),
        (
            "lossy",
            Settings(fallback_threshold=0.2, rollback_threshold=2.0, k=6),
            Sampling(top_p=0.95),
            0.02,
        ),
        ("exact", Settings(fallback_threshold=0.0, k=4), Sampling(temperature=0), 0.0),
    ],
)
def test_counts_agree_with_the_decoder_within_sampling_error(
    target: nn.Module,
    draft: nn.Module,
    rule: str,
    settings: Settings,
    sampling: Sampling,
    slack: float,
) -> None:
    rows = 48
    length = 24
    recorder = Recorder(positions=length, depth=6, stride=6, rows_at_once=rows)
    trace = recorded(target, draft, rows, recorder, sampling)
    decoder = Decoder(
        target=target,
        drafter=CausalDrafter(model=draft),
        rule=rules.make(rule),
        settings=settings,
        sampling=sampling,
    )
    found = decoder.generate(prompts(rows), max_new_tokens=length, end_tokens=[], seed=3)
    counts = np.zeros((rows, 3))  # calls, drafted and accepted tokens of each row
    for call in found.calls:
        index = list(call.row_ids)
        counts[index] += np.stack([np.ones(len(index)), call.drafted, call.accepted], 1)
    blocks = blocks_of(trace, settings, rule)
    texts = blocks.starts.shape[-2]
    drafted = blocks.drafted
    if drafted is None:
        drafted = float((blocks.starts * blocks.lengths).sum())
    replayed = np.array([blocks.starts.sum(), drafted, blocks.accepted]) / texts
    real = counts.mean(0)
    error = counts.std(0) * np.sqrt(2 / rows)
    assert np.all(np.abs(replayed - real) <= 4 * error + slack * real + 1e-6), (replayed, real)


def test_prompts_that_do_not_fit_are_refused(target: nn.Module, draft: nn.Module) -> None:
    recorder = Recorder(positions=60, depth=16)
    with pytest.raises(UserError, match="fit into the 96 positions of the target, found 99"):
        recorded(target, draft, 1, recorder, Sampling())
    origin = recorded(target, draft, 1, Recorder(positions=2, depth=1), Sampling()).origin
    with pytest.raises(UserError, match="must have one length"):
        recorder.record(target, draft, [[1], [1, 2]], origin=origin)


def test_digests_tell_weights_apart_and_repeats_are_counted(
    target: nn.Module, draft: nn.Module
) -> None:
    assert weights_digest(target) == weights_digest(gpt2(16, 2, 1))
    assert weights_digest(target) != weights_digest(draft)
    found = repeats(np.array([[1, 2, 1, 2, 1], [1, 2, 3, 4, 5]]))
    assert found == pytest.approx([0.5, 0.0])
