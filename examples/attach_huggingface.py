"""A Trainer of transformers that is steered: two lines more than without.

python examples/attach_huggingface.py

Trainers of TRL (SFT, DPO) are attached in the same way. Needs the extra `huggingface`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import trainenv


class Walks(Dataset[dict[str, Tensor]]):
    """Walks over 32 tokens, as examples of a causal language model."""

    def __init__(self, count: int, first: int = 0) -> None:
        self.count = count
        self.first = first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.first + place)
        tokens = torch.randint(1, 4, (32,), generator=generator).cumsum(0) % 32
        return {"input_ids": tokens, "labels": tokens}


def main() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=32,
            n_positions=32,
            n_embd=32,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            loss_type="ForCausalLM",
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=f"{folder}/checkpoints",
                num_train_epochs=1,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                learning_rate=0.1,  # ten times too high
                warmup_steps=20,
                logging_steps=25,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Walks(800),
            eval_dataset=Walks(64, first=10**6),
        )
        attachment = trainenv.attach(trainer, out=Path(folder) / "mine", max_waste=0.3)
        trainer.train()
        print(attachment.statement)
        report = attachment.report()
        print(f"kept {report.summary['step']} steps, final loss "
              f"{report.summary['final_validation_loss']:.3f} nats held out")  # fmt: skip
        print(f"the learning rate is now {attachment.session.run.lr_scale:.2f} of the schedule")


if __name__ == "__main__":
    main()
