"""Time of a fully monitored step in `TrainingRun.advance`, relative to bare loops.

All loops compute the same arithmetic. Two opponents run interleaved with ours in one process, block
by block: a *bare* loop over the same transformers model, optimizer and batches with PyTorch's own
gradient clipping; and a *minimal* GPT of the same shape, written by hand. The figure is the median
over blocks of the ratio to the opponent's neighbouring block.

    python benchmarks/overhead.py --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv import TrainingRun
from trainenv.config.schema import RunConfig
from trainenv.training.optimizers import adamw

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "width 128": {"model": {"width": 128, "layers": 4, "heads": 4, "context": 128}},
    "width 256": {"model": {"width": 256, "layers": 4, "heads": 4, "context": 128}},
}


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.mix, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            p.view(batch, length, self.heads, -1).transpose(1, 2)
            for p in self.mix(x).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = (
            nn.LayerNorm(width),
            Attention(width, heads),
            nn.LayerNorm(width),
        )
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class MinimalGPT(nn.Module):
    """GPT-2's arithmetic and nothing else."""

    def __init__(self, config: RunConfig, vocabulary: int) -> None:
        super().__init__()
        shape = config.model
        self.wte, self.wpe = (
            nn.Embedding(vocabulary, shape.width),
            nn.Embedding(shape.context, shape.width),
        )
        self.blocks = nn.ModuleList([Block(shape.width, shape.heads) for _ in range(shape.layers)])
        self.norm, self.head = (
            nn.LayerNorm(shape.width),
            nn.Linear(shape.width, vocabulary, bias=False),
        )
        self.head.weight = self.wte.weight
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def bare_loop(
    model: nn.Module,
    config: RunConfig,
    batches: Callable[[int], Any],
    logits: Callable[[Any], Tensor],
) -> Callable[[int], None]:
    """Build a carefully written plain loop: forward, backward, clip, step, without reading back."""
    optimizer = adamw(model, config.optimizer)
    parameters = list(model.parameters())
    position = 0

    def train(steps: int) -> None:
        nonlocal position
        for _ in range(steps):
            tokens = batches(position).micro[0]
            predicted = logits(model(tokens[:, :-1]))
            F.cross_entropy(predicted.flatten(0, 1), tokens[:, 1:].flatten()).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            position += 1

    return train


def measure(overrides: dict[str, Any], blocks: int, steps: int) -> dict[str, float]:
    """Milliseconds a step of each loop, and the ratios."""
    config = RunConfig.load("tiny", {**overrides, "threads": torch.get_num_threads()})
    ours, same = TrainingRun.from_config(config), TrainingRun.from_config(config)
    batches = ours._batches
    minimal = MinimalGPT(config, ours.model.config.vocab_size)
    runners: dict[str, Callable[[int], Any]] = {
        "ours": ours.advance,
        "bare": bare_loop(same.model, config, batches, lambda output: output.logits),
        "minimal": bare_loop(minimal, config, batches, lambda output: output),
    }
    times: dict[str, list[float]] = {name: [] for name in runners}
    for block in range(blocks + 1):
        order = list(runners) if block % 2 else list(reversed(runners))
        for name in order:
            started = time.perf_counter()
            runners[name](steps)
            if block:  # the first block warms up
                times[name].append(1000 * (time.perf_counter() - started) / steps)
    return {
        **{f"{name}_ms": round(statistics.median(values), 3) for name, values in times.items()},
        "over_bare": round(
            statistics.median(a / b for a, b in zip(times["ours"], times["bare"])), 4
        ),
        "over_minimal": round(
            statistics.median(a / b for a, b in zip(times["ours"], times["minimal"])), 4
        ),
        "bare_over_minimal": round(
            statistics.median(a / b for a, b in zip(times["bare"], times["minimal"])), 4
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=15, help="blocks of steps of each opponent")
    parser.add_argument(
        "--steps",
        type=int,
        default=48,
        help="steps in each block; a multiple of 16, the monitor's block",
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads of torch"
    )
    parser.add_argument(
        "--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="model shapes"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {}
    for name in args.shapes:
        steps = args.steps if name == "tiny" else max(16, args.steps // 3)
        results[name] = measure(SHAPES[name], args.blocks, steps)
        if not args.json:
            print(
                f"{name:10}",
                "  ".join(f"{key} {value}" for key, value in results[name].items()),
                flush=True,
            )
    if args.json:
        print(json.dumps({"benchmark": "overhead", "threads": args.threads, "shapes": results}))


if __name__ == "__main__":
    main()
