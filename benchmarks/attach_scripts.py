"""Scripts of other people, as they are and attached: one for each framework.

A GPT as nanoGPT writes it, trained by a loop of one's own, by a loop that Accelerate has prepared
and by Lightning; and a GPT-2 fine-tuned by the Trainer of transformers. `benchmarks/attach.py`
measures them.
"""

from __future__ import annotations

import contextlib
import io
import math
import statistics
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import trainenv

VOCABULARY = 128
HELD_OUT = 256  # sequences


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Setting of a training.

    Attributes:
        seed: Random seed of data, weights and order.
        mode: `plain`, or a mode of attaching.
        out: Folder that may be written in.
        attacked: True for a bad shard and a rate that is too high.
        steps: Number of optimizer steps.
        width: Width of the model.
        layers: Number of blocks.
        length: Tokens of a sequence.
        rows: Sequences of a batch.
        lr: Highest learning rate that suits.
        between: Function that is called before each batch is put together.
    """

    seed: int
    mode: str
    out: Path
    attacked: bool
    steps: int = 400
    width: int = 64
    layers: int = 2
    length: int = 64
    rows: int = 8
    lr: float = 3e-2
    between: Callable[[], None] = lambda: None

    @property
    def peak(self) -> float:
        """Learning rate at the end of the warm-up."""
        return self.lr * (3.0 if self.attacked else 1.0)

    @property
    def bad(self) -> slice:
        """Sequences of the bad shard: the data of a twentieth of the steps, past the middle."""
        first = round(0.55 * self.steps) * self.rows
        return slice(first, first + round(0.05 * self.steps) * self.rows)

    def factor(self, step: int) -> float:
        """Return the share of the peak that the schedule has at a step."""
        warmup = max(1, self.steps // 20)
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / self.steps)))

    def collate(self, examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Put a batch together."""
        if torch.is_grad_enabled():
            self.between()
        return {name: torch.stack([one[name] for one in examples]) for name in examples[0]}

    def loaders(self) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Return loaders of the training data and of the held-out data."""
        train, rest = self.data()
        return (
            DataLoader(train, batch_size=self.rows, collate_fn=self.collate),
            DataLoader(rest, batch_size=32),
        )

    def data(self) -> tuple[Shards, Shards]:
        """Return training data and held-out data."""
        train = Shards(self.steps * self.rows, self.length, seed=2 * self.seed, half=0)
        if self.attacked:
            train.spoil(self.bad)
        return train, Shards(HELD_OUT, self.length, seed=2 * self.seed + 1, half=1)


@cache
def text() -> Tensor:
    """Return the text of Python's own modules, as bytes below 128."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    read = bytearray()
    for path in sorted(folder.glob("*.py")):
        read += path.read_bytes()
    return torch.frombuffer(read, dtype=torch.uint8) % VOCABULARY


class Shards(Dataset[dict[str, Tensor]]):
    """Sequences of a text, drawn at random from one half of it.

    Args:
        count: Number of sequences.
        length: Tokens of each.
        seed: Random seed.
        half: Number of the half.
    """

    def __init__(self, count: int, length: int, *, seed: int, half: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        most = len(text()) // 2 - length
        starts = torch.randint(most, (count, 1), generator=self._generator) + half * most
        self._tokens = text()[starts + torch.arange(length)].long()

    def spoil(self, rows: slice) -> None:
        """Replace sequences by random tokens."""
        bad = self._tokens[rows]
        bad.copy_(torch.randint(VOCABULARY, bad.shape, generator=self._generator))

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {"input_ids": self._tokens[place], "labels": self._tokens[place]}


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.wide = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        parts = self.mix(self.norms[0](x)).view(rows, length, 3, self.heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)  # each [rows, heads, length, …]
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        added: Tensor = x + self.wide(self.norms[1](x))
        return added


class GPT(nn.Module):
    """A GPT as nanoGPT writes it, in small."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        width = setting.width
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(0.02 * torch.randn(setting.length, width))
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(setting.layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, VOCABULARY))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places[: tokens.shape[1]]
        logits: Tensor = self.head(self.blocks(x))
        return logits


def loss_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy in nats per token."""
    tokens = batch["input_ids"]
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def held_out_loss(model: nn.Module, loader: DataLoader[Any]) -> float:
    """Return the mean loss over held-out data, in nats per token."""
    model.eval()
    with torch.no_grad():
        return statistics.mean(loss_of(model, batch).item() for batch in loader)


def own_loop(setting: Setting) -> float:
    """Train a GPT by a loop of one's own."""
    torch.manual_seed(setting.seed)
    loader, held_out = setting.loaders()
    model = GPT(setting)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.peak)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, setting.factor)
    if setting.mode == "plain":
        for batch in loader:
            loss = loss_of(model, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    else:
        steer = trainenv.steer(
            model, optimizer, loader, scheduler, out=setting.out, validation=held_out,
            loss=loss_of, mode=setting.mode,
        )  # fmt: skip
        for batch in steer:
            loss = loss_of(model, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            steer.step(loss)
    return held_out_loss(model, held_out)


def accelerated(setting: Setting) -> float:
    """Train a GPT by a loop that Accelerate has prepared."""
    from accelerate import Accelerator

    torch.manual_seed(setting.seed)
    accelerator = Accelerator(cpu=True)
    train, rest = setting.loaders()
    made = GPT(setting)
    adam = torch.optim.AdamW(made.parameters(), lr=setting.peak)
    model, optimizer, loader, held_out, scheduler = accelerator.prepare(
        made, adam, train, rest, torch.optim.lr_scheduler.LambdaLR(adam, setting.factor)
    )
    if setting.mode == "plain":
        for batch in loader:
            with accelerator.accumulate(model):
                loss = loss_of(model, batch)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    else:
        steer = trainenv.steer(
            model, optimizer, loader, scheduler, out=setting.out, validation=held_out,
            loss=loss_of, mode=setting.mode,
        )  # fmt: skip
        for batch in steer:
            with accelerator.accumulate(model):
                loss = loss_of(model, batch)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                steer.step(loss)
    return held_out_loss(model, held_out)


def lightning(setting: Setting) -> float:
    """Train a GPT by Lightning."""
    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = GPT(setting)

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return loss_of(self.model, batch)

        def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
            self.log("held_out", loss_of(self.model, batch))

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=setting.peak)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, setting.factor)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    torch.manual_seed(setting.seed)
    loader, held_out = setting.loaders()
    callbacks = []
    if setting.mode != "plain":
        callbacks = [trainenv.integrations.lightning.Steer(out=setting.out, mode=setting.mode)]
    trainer = Trainer(
        max_steps=setting.steps,
        callbacks=callbacks,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    module = Module()
    trainer.fit(module, loader, held_out)
    return held_out_loss(module.model, held_out)


def huggingface(setting: Setting) -> float:
    """Fine-tune a GPT-2 by the Trainer of transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch.manual_seed(setting.seed)
    train, rest = setting.data()
    config = GPT2Config(
        n_embd=setting.width,
        n_layer=setting.layers,
        n_head=4,
        n_positions=setting.length,
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=0,
        loss_type="ForCausalLM",
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=TrainingArguments(
            output_dir=str(setting.out.with_name("theirs")),
            num_train_epochs=1,
            per_device_train_batch_size=setting.rows,
            per_device_eval_batch_size=32,
            learning_rate=setting.peak,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, setting.steps // 20),
            train_sampling_strategy="sequential",
            seed=setting.seed,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=train,
        eval_dataset=rest,
        data_collator=setting.collate,
    )
    if setting.mode != "plain":
        trainenv.attach(trainer, out=setting.out, mode=setting.mode)
    trainer.train()
    found: float = trainer.evaluate()["eval_loss"]
    return found


SCRIPTS: Mapping[str, Callable[[Setting], float]] = {
    "own loop": own_loop,
    "huggingface": huggingface,
    "accelerate": accelerated,
    "lightning": lightning,
}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the frameworks' words from the terminal inside the block."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
