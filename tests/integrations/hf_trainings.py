"""Small Trainers of transformers and TRL, with and without us."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from tests.integrations.trainings import Sequences

TIMES = ("runtime", "per_second")  # parts of the names of what depends on the clock


class Examples(Dataset[dict[str, Tensor]]):
    """Sequences that count, as examples of a causal language model.

    Args:
        count: Number of examples.
        first: Number of the first.
        bad: Places of examples that are random.
    """

    def __init__(self, count: int, *, first: int = 0, bad: range = range(0)) -> None:
        self._sequences = Sequences(count, first=first, length=13)
        self._bad = bad

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        tokens = self._sequences[place]
        if place in self._bad:
            generator = torch.Generator().manual_seed(place)
            tokens = torch.randint(32, tokens.shape, generator=generator)
        return {"input_ids": tokens, "labels": tokens}


def model(**changed: Any) -> GPT2LMHeadModel:
    """Return a tiny GPT-2, with dropout."""
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 32}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM")
    return GPT2LMHeadModel(config)


def arguments(folder: Path, **changed: Any) -> dict[str, Any]:
    """Return arguments of a training of 2 × 19 steps, the last of each with fewer batches."""
    return {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 3,
        "learning_rate": 5e-3,
        "disable_tqdm": True,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "epoch",
        "per_device_eval_batch_size": 8,
        "dataloader_pin_memory": False,
        **changed,
    }


def trainer(
    folder: Path, *, lora: bool = False, data: Any = None, kind: Any = Trainer, **changed: Any
) -> Trainer:
    """Return a Trainer that has not trained yet."""
    made: Any = model()
    if lora:
        from peft import LoraConfig, get_peft_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GPT-2's layers are transposed, which LoRA notes
            made = get_peft_model(made, LoraConfig(target_modules=["c_attn"], lora_dropout=0.1))
    return kind(  # type: ignore[no-any-return]
        model=made,
        args=TrainingArguments(**arguments(folder, **changed)),
        train_dataset=Examples(75) if data is None else data,
        eval_dataset=Examples(16, first=1000),
    )


def log_of(trained: Trainer) -> list[dict[str, float]]:
    """Return the Trainer's own log without what depends on the clock."""
    return [
        {name: value for name, value in row.items() if not any(part in name for part in TIMES)}
        for row in trained.state.log_history
    ]


def state_of(trained: Trainer) -> dict[str, Any]:
    """Return everything that training has changed, and the Trainer's own log."""
    return {
        "model": trained.model.state_dict(),
        "optimizer": trained.optimizer.state_dict(),
        "scheduler": trained.lr_scheduler.state_dict(),
        "log": log_of(trained),
        "epoch": trained.state.epoch,
        "steps": [trained.state.global_step, trained.state.max_steps],
        "epochs": trained.state.num_train_epochs,
        "generator": torch.get_rng_state(),
    }
