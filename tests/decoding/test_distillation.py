"""Distillation of a draft: blocks of the target, a loss that falls, and a resumed training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from trainenv.decoding import CausalDrafter, Decoder, Exact, Settings
from trainenv.decoding.distillation import Distillation, Distilled, distill, student_of
from trainenv.decoding.distillation.distill import loss_of
from trainenv.decoding.distillation.shards import Shard, sample_texts
from trainenv.decoding.distillation.student import chosen
from trainenv.decoding.reader import Reader
from trainenv.types import UserError

VOCABULARY = 40
PLAN = Distillation(
    layers=2, shards=4, rows=8, length=24, prompt=4, steps=60, batch=8, lr=5e-3, save_every=7
)
TEXT = [bytes((7 * place + place * place) % VOCABULARY for place in range(1600))]


class Bytes:
    """A tokenizer that gives each byte its value."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(text.encode())

    def save_pretrained(self, folder: str) -> None:
        Path(folder, "tokenizer.txt").write_text("bytes")


@pytest.fixture(scope="module")
def target() -> LlamaForCausalLM:
    """A model of random weights that are large enough for laws that differ between texts."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=5,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def distilled(target: LlamaForCausalLM, folder: Path, **options: Any) -> Distilled:
    return distill(target, Bytes(), TEXT, PLAN, folder, **options)


def weights(model: Any) -> dict[str, Tensor]:
    return dict(model.state_dict())


def test_a_student_has_blocks_of_the_target_and_memory_of_its_own(target: Any) -> None:
    student: Any = student_of(target, 3)
    assert chosen(5, 3) == [0, 2, 4]
    assert student.config.num_hidden_layers == 3
    for mine, place in zip(student.model.layers, (0, 2, 4)):
        theirs = target.model.layers[place].self_attn.q_proj.weight
        assert torch.equal(mine.self_attn.q_proj.weight, theirs)
        assert mine.self_attn.q_proj.weight.data_ptr() != theirs.data_ptr()
    token = torch.tensor([[1, 2, 3]])
    reader = Reader(student, cached=True, role="draft").fresh()
    with torch.inference_mode():
        reader.read([[1, 2]], (0,), [0], keep=1)
        last = reader.read([[1, 2, 3]], (0,), [2], keep=1)[:, -1]
        assert torch.allclose(student(token).logits[:, -1], last, atol=1e-5)


@pytest.mark.parametrize("layers", [0, 5, 9])
def test_a_student_has_fewer_blocks_than_the_target(target: Any, layers: int) -> None:
    with pytest.raises(UserError, match="layers must be"):
        student_of(target, layers)


def test_the_loss_is_least_at_the_law_of_the_target() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 12, generator=generator)
    values, likely = logits.log_softmax(-1).topk(5, -1)
    least = loss_of(logits, likely, values)
    for _ in range(20):
        other = logits + 0.1 * torch.randn(2, 3, 12, generator=generator)
        assert loss_of(other, likely, values) > least


def test_sampled_texts_have_the_laws_that_the_target_gives_them_in_one_call(target: Any) -> None:
    shard = sample_texts(target, [[1, 2, 3], [4, 5, 6]], 10, 8, seed=3)
    with torch.inference_mode():
        logs = target(shard.tokens).logits.log_softmax(-1)
    assert shard.tokens.shape == (2, 10)
    assert torch.allclose(shard.log_probabilities, logs.gather(-1, shard.likely), atol=1e-4)


def test_a_damaged_shard_is_made_again(target: Any, tmp_path: Path) -> None:
    path = tmp_path / "one.tensors"
    shard = sample_texts(target, [[1, 2]], 5, 4, seed=0)
    shard.save(path, "made")
    known = Shard.load(path, "made")
    assert known is not None
    assert torch.equal(known.tokens, shard.tokens)
    assert Shard.load(path, "of another target") is None
    path.write_bytes(path.read_bytes()[:-3])
    assert Shard.load(path, "made") is None


def test_a_draft_learns_the_target_and_decodes_with_it(target: Any, tmp_path: Path) -> None:
    found = distilled(target, tmp_path)
    assert found.overlap > found.overlap_before + 0.1
    draft = AutoModelForCausalLM.from_pretrained(tmp_path / "draft").eval()
    decoder = Decoder(
        target=target,
        drafter=CausalDrafter(model=draft),
        rule=Exact(),
        settings=Settings(k=2, fallback_threshold=0.0),
    )
    assert decoder.generate([[1, 2]], max_new_tokens=12).drafted > 0
    kept = "model.embed_tokens.weight"
    assert torch.equal(weights(draft)[kept], weights(target)[kept])


def test_an_interrupted_distillation_ends_with_the_same_draft(target: Any, tmp_path: Path) -> None:
    whole = distilled(target, tmp_path / "whole")
    for asked in (2, 20):  # among the shards, then among the steps
        left = iter(range(asked))
        with pytest.raises(UserError, match="call the same again to resume"):
            distilled(target, tmp_path / "parts", stop=lambda left=left: next(left, None) is None)
    resumed = distilled(target, tmp_path / "parts")
    assert resumed.overlap == whole.overlap
    for name, tensor in weights(whole.draft).items():
        assert torch.equal(tensor, weights(resumed.draft)[name]), name


def test_a_target_with_dropout_gives_the_same_draft_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=3, n_head=2)
    target = GPT2LMHeadModel(config).eval()
    plan = replace(PLAN, layers=1, shards=1, steps=4, save_every=2)
    assert config.resid_pdrop > 0
    first = distill(target, Bytes(), TEXT, plan, tmp_path / "first")
    again = distill(target, Bytes(), TEXT, plan, tmp_path / "again")
    for name, tensor in weights(first.draft).items():
        assert torch.equal(tensor, weights(again.draft)[name]), name


def test_too_short_a_text_is_one_sentence(target: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a longer text or ask for fewer shards"):
        distill(target, Bytes(), [b"short"], PLAN, tmp_path)
