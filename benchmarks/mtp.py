"""Time and memory of a step of multi-token prediction, against a step of next-token prediction.

The model has the size of a preset; by default `small`, GPT-2 with 124 M parameters and its own or a
byte vocabulary. Two methods take turns, one step each round; figures are medians over rounds, of
ratios within a round. The time is CPU time of one thread, so that other processes disturb it
little. With three layers fewer, four heads have as many parameters as next-token prediction, as
Gloeckle (2024) compares them.

    time     Time of forward and backward pass and AdamW's update, ÷ next-token prediction. `flops`
             is the ratio of FLOPs that the run's ledger counts.
    memory   Most memory in a step, by torch's own count of allocations: weights, moments,
             gradients and everything between, ÷ next-token prediction.
    by batch The same ratio for larger micro-batches of rows of the preset's context: heads cost
             weights, moments and gradients, whatever the batch, while activations grow with it.
    growth   Most memory of forward and backward pass alone, above weights, of models with linear
             heads: each further head adds about `lean` or `joint` bytes a token, where one set of
             logits takes `logits` (4·V) bytes a token and one set of states `states` (4·d).

    python benchmarks/mtp.py --json

It takes about ten minutes on one core and 6 GB of memory. The goals are 1.35 × the time and 1.1 ×
the memory at `small`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainenv.config.schema import RunConfig
from trainenv.models import add_heads, spec_of
from trainenv.models.build import build
from trainenv.objectives import MTP, NextToken
from trainenv.tools.memory import most_memory
from trainenv.training.optimizers import adamw

GOAL_TIME = 1.35
GOAL_MEMORY = 1.1
CPU = torch.device("cpu")


class Method:
    """A model, its optimizer and an objective, trained on random tokens.

    Args:
        objective: Objective of the model.
        heads: Number of heads; 0 for a model without future heads.
        kind: Kind of the heads.
        size: Configuration of the model.
        vocabulary: Number of tokens.
    """

    def __init__(
        self, objective: Any, heads: int, kind: Any, size: RunConfig, vocabulary: int
    ) -> None:
        self.model: nn.Module = build(size, vocabulary, CPU)
        if heads:
            add_heads(self.model, heads=heads, kind=kind)
        self.objective = objective
        self.optimizer = adamw(self.model, size.optimizer)
        self.bf16 = size.precision == "bf16"

    def passes(self, tokens: Tensor) -> None:
        """Run forward and backward pass."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.objective(self.model, tokens)
        loss.backward()

    def step(self, tokens: Tensor) -> None:
        """Run a whole step."""
        self.passes(tokens)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def held(self) -> int:
        """Bytes of weights and moments."""
        moments = [v for s in self.optimizer.state.values() for v in s.values()]
        return sum(t.nbytes for t in (*self.model.parameters(), *moments))

    def flops(self, context: int) -> float:
        """FLOPs of a step for one token."""

        def of(model: nn.Module) -> float:
            return spec_of(model).flops_per_token(model, context)

        if isinstance(self.objective, MTP):
            return self.objective.flops_per_token(self.model, context, of)
        return of(self.model)


def compared(size: RunConfig, vocabulary: int, tokens: Tensor, rounds: int) -> dict[str, Any]:
    """Measure steps of four heads, each method in turn with next-token prediction."""
    fewer = size.model.model_copy(update={"layers": max(1, size.model.layers - 3)})
    matched = size.model_copy(update={"model": fewer})
    made = {
        "4 blocks": (MTP(), 4, "block", size),
        "4 blocks, 3 fewer layers": (MTP(), 4, "block", matched),
        "4 linear heads": (MTP(), 4, "linear", size),
    }
    found: dict[str, Any] = {}
    for name, (objective, heads, kind, shape) in made.items():
        pair = [
            Method(NextToken(), 0, "block", size, vocabulary),
            Method(objective, heads, kind, shape, vocabulary),
        ]
        for method in pair:
            method.step(tokens)
        seconds: list[list[float]] = [[], []]
        for _ in range(rounds):
            for method, taken in zip(pair, seconds):
                start = time.process_time()
                method.step(tokens)
                taken.append(time.process_time() - start)
        memory = [one.held + most_memory(lambda one=one: one.step(tokens)) for one in pair]
        flops = [method.flops(tokens.shape[1] - 1) for method in pair]
        found[name] = {
            "seconds": [round(statistics.median(taken), 3) for taken in seconds],
            "time": round(statistics.median(b / a for a, b in zip(*seconds)), 3),
            "flops": round(flops[1] / flops[0], 3),
            "bytes": memory,
            "memory": round(memory[1] / memory[0], 3),
        }
        row = found[name]
        print(
            f"  {name:25} {row['seconds'][1]:7.2f} s  time × {row['time']:.2f} "
            f"(FLOPs × {row['flops']:.2f})  memory × {row['memory']:.2f}",
            flush=True,
        )
    return found


def by_batch(preset: str, vocabulary: int, batches: Sequence[int]) -> dict[str, Any]:
    """Measure the memory of a step of four heads ÷ next-token prediction, by tokens of a batch.

    It is that of one micro-batch; those of an accumulated batch come one after the other.
    """
    size = RunConfig.load(preset)
    found: dict[str, Any] = {}
    for count in batches:
        context = min(count, size.model.context)
        tokens = torch.randint(0, vocabulary, (count // context, context + 1))
        row = found[str(count)] = {}
        for name, objective, heads in (("1", NextToken(), 0), ("4", MTP(), 4)):
            method = Method(objective, heads, "block", size, vocabulary)
            method.step(tokens[:1, :9])  # makes the moments
            row[name] = method.held + most_memory(partial(method.step, tokens))
        row["memory"] = round(row["4"] / row["1"], 3)
        print(f"  {count:6} tokens a step  memory × {row['memory']:.2f}", flush=True)
    return found


def growth(tokens: int = 512, vocabulary: int = 8192, width: int = 64) -> dict[str, Any]:
    """Measure the memory of one to eight heads, in a model with many tokens and few features."""
    overrides = {
        "model": {"width": width, "layers": 1, "heads": 1, "context": tokens},
        "batch_size": 1,
    }
    size = RunConfig.load("tiny", overrides)
    drawn = torch.randint(0, vocabulary, (1, tokens + 1))
    found: dict[str, Any] = {"logits": 4 * vocabulary, "states": 4 * width}
    for name, lean in (("lean", True), ("joint", False)):
        most = {}
        for heads in (2, 4, 8):
            method = Method(MTP(lean=lean), heads, "linear", size, vocabulary)
            method.passes(drawn)
            method.model.zero_grad(set_to_none=True)
            most[heads] = most_memory(lambda method=method: method.passes(drawn))
        found[f"{name} bytes"] = most
        found[name] = round((most[8] - most[2]) / 6 / tokens)
    return found


def main() -> int:
    """Measure, print a table, and return 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="small", help="preset of the model (default: small)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a step (default: 256)")
    parser.add_argument(
        "--vocabularies",
        type=int,
        nargs="+",
        default=[50257, 257],
        help="vocabularies to measure: GPT-2's and bytes by default",
    )
    parser.add_argument(
        "--batches",
        type=int,
        nargs="*",
        default=[1024, 4096],
        help="tokens of the micro-batches whose memory is measured",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each, 0 for none")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on the last line"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    overrides = {"model.context": args.tokens, "batch_size": 1, "accumulation": 1}
    size = RunConfig.load(args.preset, overrides)
    result: dict[str, Any] = {
        "preset": args.preset,
        "tokens": args.tokens,
        "goals": {"time": GOAL_TIME, "memory": GOAL_MEMORY},
    }
    for vocabulary in args.vocabularies:
        drawn = torch.randint(0, vocabulary, (1, args.tokens + 1))
        print(f"vocabulary {vocabulary}", flush=True)
        found = compared(size, vocabulary, drawn, args.rounds) if args.rounds else {}
        found["by batch"] = by_batch(args.preset, vocabulary, args.batches)
        result[f"vocabulary {vocabulary}"] = found
    result["growth"] = growth()
    print(
        "a further head adds {lean} bytes a token (lean), {joint} (joint); logits take {logits}, "
        "states {states}".format(**result["growth"])
    )
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
