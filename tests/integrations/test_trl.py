"""Trainers of TRL, watched and steered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

import trainenv
from tests.integrations.hf_trainings import arguments, model, state_of
from tests.integrations.trainings import OFTEN, all_equal, trying
from trainenv.records.run_folder import read_events

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 29 words."""
    words = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(29))]
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def text(seed: int, words: int = 9) -> str:
    """Return words in a random stride."""
    generator = torch.Generator().manual_seed(seed)
    start, stride = torch.randint(1, 7, (2,), generator=generator).tolist()
    return " ".join(f"w{(start + stride * place) % 29}" for place in range(words))


def sft(folder: Path, **changed: Any) -> Trainer:
    """Return a Trainer of texts."""

    def data(count: int, first: int) -> Dataset:
        return Dataset.from_dict({"text": [text(first + place) for place in range(count)]})

    return SFTTrainer(  # type: ignore[no-any-return]
        model=model(),
        args=SFTConfig(**arguments(folder), max_length=12, **changed),
        train_dataset=data(75, 0),
        eval_dataset=data(16, 1000),
        processing_class=tokenizer(),
    )


def dpo(folder: Path) -> Trainer:
    """Return a Trainer of preferences."""

    def data(count: int, first: int) -> Dataset:
        places = range(first, first + count)
        return Dataset.from_dict(
            {
                "prompt": [text(place, 4) + " " for place in places],
                "chosen": [text(place, 5) for place in places],
                "rejected": [text(place + 77, 5) for place in places],
            }
        )

    return DPOTrainer(  # type: ignore[no-any-return]
        model=model(),
        ref_model=model(),
        args=DPOConfig(**arguments(folder), max_length=14),
        train_dataset=data(75, 0),
        eval_dataset=data(16, 1000),
        processing_class=tokenizer(),
    )


def packed(folder: Path) -> Trainer:
    """Return a Trainer whose sequences are put together to rows of one length."""
    return sft(folder, packing=True, packing_strategy="wrapped")


def reward(folder: Path) -> Trainer:
    """Return a Trainer of a model that scores texts."""

    def data(count: int, first: int) -> Dataset:
        places = range(first, first + count)
        return Dataset.from_dict(
            {
                "chosen": [text(place, 8) for place in places],
                "rejected": [text(place + 77, 8) for place in places],
            }
        )

    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 32}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0, num_labels=1)
    return RewardTrainer(  # type: ignore[no-any-return]
        model=GPT2ForSequenceClassification(config),
        args=RewardConfig(**arguments(folder), max_length=14),
        train_dataset=data(75, 0),
        eval_dataset=data(16, 1000),
        processing_class=tokenizer(),
    )


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        (sft, "watch"),
        (sft, "branching"),
        (packed, "branching"),
        (dpo, "branching"),
        (reward, "branching"),
    ],
)
def test_a_trainer_of_trl_keeps_its_bits(
    kind: Callable[[Path], Trainer], mode: str, tmp_path: Path
) -> None:
    plain = kind(tmp_path / "plain")
    plain.train()
    attached = kind(tmp_path / "attached")
    settings: dict[str, Any] = {"mode": mode}
    if mode == "branching":
        settings |= {"callback": trying(accepts=False), "config": {"branching": OFTEN}}
    trainenv.attach(attached, out=tmp_path / "run", **settings)
    attached.train()
    assert all_equal(state_of(plain), state_of(attached))
    if mode == "branching":
        kinds = [event["kind"] for event in read_events(tmp_path / "run")]
        assert "decision" in kinds
