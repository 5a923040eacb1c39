"""Gain of attaching under attack, and its cost when calm, for two scripts of other people.

A GPT trained by a loop of one's own, and a GPT-2 fine-tuned by the Trainer of transformers. Under
attack a shard of the data is random and the learning rate is three times what suits. Each script
runs as it is, watched and steered, on the same seeds:

- *held-out loss* at the end, under attack: the difference to the script as it is, by seed;
- *overhead* of the wall clock on a calm run: the ratio to the script as it is, run next to it;
- *memory*: the highest resident size of a process that runs one training.

    python benchmarks/attach.py --json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import trainenv

VOCABULARY = 64
LENGTH = 64
ROWS = 8
STEPS = 400
BAD = range(220, 240)  # steps whose data are random
FACTOR = 3.0  # on the learning rate, under attack
LR = 4e-3
MODES = ("plain", "watch", "branching")


class Shard(Dataset[dict[str, Tensor]]):
    """Second-order walks over the vocabulary; random tokens where the shard is bad.

    Args:
        count: Number of sequences.
        first: Number of the first.
        attacked: True if the shard is bad.
    """

    def __init__(self, count: int, first: int, *, attacked: bool) -> None:
        generator = torch.Generator().manual_seed(first)
        strides = torch.randint(1, 5, (count, LENGTH), generator=generator)
        self._tokens = (strides.cumsum(1) + strides.cumsum(1).cumsum(1)) % VOCABULARY
        if attacked:
            rows = slice(BAD.start * ROWS, BAD.stop * ROWS)
            shape = self._tokens[rows].shape
            self._tokens[rows] = torch.randint(VOCABULARY, shape, generator=generator)

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

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, VOCABULARY))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places[: tokens.shape[1]]
        logits: Tensor = self.head(self.blocks(x))
        return logits


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy in nats per token."""
    tokens = batch["input_ids"]
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def data(seed: int, *, attacked: bool) -> tuple[Shard, Shard]:
    """Return training data and held-out data."""
    train = Shard(STEPS * ROWS, 2 * seed, attacked=attacked)
    return train, Shard(64, 2 * seed + 1, attacked=False)


def own_loop(seed: int, mode: str, out: Path, *, attacked: bool) -> float:
    """Train a GPT by a loop of one's own; return the held-out loss."""
    torch.manual_seed(seed)
    train, rest = data(seed, attacked=attacked)
    loader = DataLoader(train, batch_size=ROWS)
    held_out = list(DataLoader(rest, batch_size=32))
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR * (FACTOR if attacked else 1.0))

    def scheduled(step: int) -> float:
        return min((step + 1) / 20, 0.5 * (1 + math.cos(math.pi * step / STEPS)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, scheduled)
    if mode == "plain":
        for batch in loader:
            loss_of(model, batch).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    else:
        steer = trainenv.steer(
            model, optimizer, loader, scheduler, out=out, validation=held_out, loss=loss_of,
            mode=mode,
        )  # fmt: skip
        for batch in steer:
            loss = loss_of(model, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            steer.step(loss)
    model.eval()
    with torch.no_grad():
        return statistics.mean(loss_of(model, batch).item() for batch in held_out)


def huggingface(seed: int, mode: str, out: Path, *, attacked: bool) -> float:
    """Fine-tune a GPT-2 by the Trainer of transformers; return the held-out loss."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch.manual_seed(seed)
    train, rest = data(seed, attacked=attacked)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}
    config = GPT2Config(
        **sizes, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM"
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=TrainingArguments(
            output_dir=str(out.with_name("theirs")),
            num_train_epochs=1,
            per_device_train_batch_size=ROWS,
            per_device_eval_batch_size=32,
            learning_rate=LR * (FACTOR if attacked else 1.0),
            lr_scheduler_type="cosine",
            warmup_steps=20,
            train_sampling_strategy="sequential",
            seed=seed,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=train,
        eval_dataset=rest,
    )
    if mode != "plain":
        trainenv.attach(trainer, out=out, mode=mode)
    with contextlib.redirect_stdout(io.StringIO()):  # its log
        trainer.train()
        found: float = trainer.evaluate()["eval_loss"]
    return found


FRAMEWORKS = {"own loop": own_loop, "huggingface": huggingface}


def run(framework: str, seed: int, mode: str, *, attacked: bool) -> tuple[float, float]:
    """Train once; return the held-out loss and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):  # the statement of the cost
            loss = FRAMEWORKS[framework](seed, mode, Path(folder) / "run", attacked=attacked)
        return loss, time.perf_counter() - begun


def peak(framework: str, mode: str) -> float:
    """Return the highest resident size, in MB, of a process that runs one calm training."""
    command = [sys.executable, __file__, "--peak", framework, mode]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return float(found.stdout.split()[-1])


def interval(values: list[float]) -> list[float]:
    """Return mean and half-width of its 95 % interval (Student), NaN for a single value."""
    if len(values) < 2:
        return [values[0], float("nan")]
    from scipy.stats import t

    wide = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return [statistics.mean(values), float(wide)]


def measure(framework: str, seeds: int, *, memory: bool) -> dict[str, Any]:
    """Return the figures of a framework."""
    run(framework, 0, "watch", attacked=False)  # what is imported late
    finals: dict[str, list[float]] = {mode: [] for mode in MODES}
    ratios: dict[str, list[float]] = {mode: [] for mode in MODES[1:]}
    same = []
    for seed in range(seeds):
        for mode in MODES:
            finals[mode].append(run(framework, seed, mode, attacked=True)[0])
        before, seconds = run(framework, seed, "plain", attacked=False)
        for mode in MODES[1:]:
            loss, took = run(framework, seed, mode, attacked=False)
            after = run(framework, seed, "plain", attacked=False)[1]
            ratios[mode].append(took / (0.5 * (seconds + after)))
            seconds = after
            if mode == "watch":
                same.append(loss == before)
    gains = [steered - plain for steered, plain in zip(finals["branching"], finals["plain"])]
    found: dict[str, Any] = {
        "seeds": seeds,
        "held-out loss under attack": finals,
        "branching less plain, nats": interval(gains),
        "watched runs equal plain ones": all(same),
        "time on a calm run, median ratio": {
            mode: statistics.median(values) for mode, values in ratios.items()
        },
    }
    if memory:
        found["peak memory, MB"] = {mode: peak(framework, mode) for mode in MODES}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--framework", choices=list(FRAMEWORKS), help="one of them alone")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        run(options.peak[0], 0, options.peak[1], attacked=False)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    names = [options.framework] if options.framework else list(FRAMEWORKS)
    found = {name: measure(name, options.seeds, memory=not options.no_memory) for name in names}
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        print(name)
        for what, value in figures.items():
            print(f"  {what}: {value}")


if __name__ == "__main__":
    main()
