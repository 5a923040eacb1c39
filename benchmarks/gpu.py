"""Throughput and MFU of GPT-2 small and medium in bf16 on a CUDA device, against a bare loop.

Tokens a second are measured with the monitor on and off. The script also checks that a fork is
exact under deterministic settings, and measures a snapshot and a restore. Tokens are synthetic, so
that only the GPU is measured. MFU counts 6N + 12·L·W·T FLOPs a token (PaLM, appendix B) against
`--peak`.

    python benchmarks/gpu.py --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv import TrainingRun
from trainenv.config.schema import RunConfig
from trainenv.models import build as models
from trainenv.models.spec import spec_of
from trainenv.training.optimizers import adamw

VOCABULARY = 50304  # GPT-2's, rounded up to a multiple of 64


class RandomTokens:
    """Batches of uniform tokens, a pure function of the index, already on the device."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.context = config.model.context
        shape = (8, config.batch_size // config.accumulation, self.context + 1)
        self._tokens = torch.randint(
            0, VOCABULARY, shape, generator=torch.Generator().manual_seed(0)
        ).to(device)
        self._micro = config.accumulation

    def __call__(self, index: int) -> Any:
        chosen = [
            self._tokens[(index * self._micro + i) % len(self._tokens)] for i in range(self._micro)
        ]
        return chosen if self._micro > 1 else chosen[0]


def build(preset: str, overrides: dict[str, Any], device: torch.device) -> TrainingRun:
    config = RunConfig.load(preset, {"corpus": {"name": "stdlib"}, **overrides})
    model = models.build(config, VOCABULARY, device)
    batches = RandomTokens(config, device)
    first = batches(0)
    probe = (first[0] if isinstance(first, list) else first)[: config.monitor.probe_sequences]
    return TrainingRun(
        model, adamw(model, config.optimizer), batches, config, validation=[probe], probe=probe
    )


def bare(preset: str, overrides: dict[str, Any], device: torch.device) -> Callable[[int], None]:
    """Build a carefully written plain loop on the same model, optimizer and batches."""
    run = build(preset, overrides, device)
    model, optimizer, parameters, batches = (
        run.model,
        run.optimizer,
        list(run.model.parameters()),
        RandomTokens(run.config, device),
    )
    position = 0

    def train(steps: int) -> None:
        nonlocal position
        for _ in range(steps):
            data = batches(position)
            for tokens in data if isinstance(data, list) else [data]:
                with torch.autocast(device.type, torch.bfloat16):
                    logits: Tensor = model(tokens[:, :-1]).logits
                    loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
                (loss / run.config.accumulation).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            position += 1

    return train


def throughput(
    preset: str,
    overrides: dict[str, Any],
    device: torch.device,
    blocks: int,
    steps: int,
    peak: float,
) -> dict[str, Any]:
    """Measure the three loops, interleaved block by block."""
    monitored = build(preset, overrides, device)
    plain = build(preset, {**overrides, "monitor.enabled": False}, device)
    runners: dict[str, Callable[[int], Any]] = {
        "monitored": monitored.advance,
        "unmonitored": plain.advance,
        "bare": bare(preset, overrides, device),
    }
    times: dict[str, list[float]] = {name: [] for name in runners}
    for block in range(blocks + 1):
        for name, train in runners.items():
            torch.cuda.synchronize(device)
            started = time.perf_counter()
            train(steps)
            torch.cuda.synchronize(device)
            if block:
                times[name].append((time.perf_counter() - started) / steps)
    config = monitored.config
    assert isinstance(config, RunConfig)
    tokens = config.batch_size * config.model.context
    per_token = spec_of(monitored.model).flops_per_token(monitored.model, config.model.context)
    found: dict[str, Any] = {"tokens_per_step": tokens}
    for name, values in times.items():
        seconds = statistics.median(values)
        found[name] = {
            "tokens_per_s": round(tokens / seconds),
            "mfu": round(tokens * per_token / seconds / peak, 4),
        }
    for name in ("monitored", "unmonitored"):
        found[f"{name}_over_bare"] = round(
            statistics.median(a / b for a, b in zip(times[name], times["bare"])), 4
        )
    found |= value_times(monitored, device)
    return found


def value_times(run: TrainingRun, device: torch.device) -> dict[str, float]:
    """Seconds for a snapshot and a restore, and for a plain clone of as many bytes."""
    seconds: dict[str, list[float]] = {"snapshot_s": [], "restore_s": [], "clone_s": []}
    for _ in range(5):
        torch.cuda.synchronize(device)
        marks = [time.perf_counter()]
        snapshot = run.snapshot()
        torch.cuda.synchronize(device)
        marks.append(time.perf_counter())
        run.restore(snapshot)
        torch.cuda.synchronize(device)
        marks.append(time.perf_counter())
        clones = [tensor.clone() for tensor in snapshot.tensors.values()]
        torch.cuda.synchronize(device)
        marks.append(time.perf_counter())
        del clones, snapshot
        for name, start, end in zip(seconds, marks, marks[1:]):
            seconds[name].append(end - start)
    return {name: round(statistics.median(values), 4) for name, values in seconds.items()}


def exact(preset: str, overrides: dict[str, Any], device: torch.device) -> bool:
    """Check that run, fork and restored run agree bit for bit under deterministic settings."""
    run = build(preset, {**overrides, "deterministic": True}, device)
    run.advance(3)
    snapshot, fork = run.snapshot(), run.fork()
    run.advance(5)
    fork.advance(5)
    straight, forked = run.fingerprint(), fork.fingerprint()
    run.restore(snapshot)
    run.advance(5)
    return straight == forked == run.fingerprint()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presets", nargs="+", default=["small", "medium"], help="model presets")
    parser.add_argument(
        "--set",
        nargs="*",
        default=["batch_size=32", "accumulation=1"],
        metavar="KEY=VALUE",
        help="changes of the configuration",
    )
    parser.add_argument("--blocks", type=int, default=5, help="blocks of steps of each loop")
    parser.add_argument("--steps", type=int, default=16, help="steps in each block")
    parser.add_argument(
        "--peak",
        type=float,
        default=990e12,
        help="dense bf16 FLOP/s of the device; 990e12 for an H100 or H200",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "this benchmark needs a CUDA device, torch finds none; run it on a machine with one",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cuda")
    overrides: dict[str, Any] = {
        key: int(value) for key, value in (pair.split("=") for pair in args.set)
    }
    report = {}
    for preset in args.presets:
        report[preset] = throughput(preset, overrides, device, args.blocks, args.steps, args.peak)
        torch.cuda.empty_cache()
        report[preset]["fork_exact"] = exact(preset, overrides, device)
        torch.cuda.empty_cache()
        if not args.json:
            print(preset, json.dumps(report[preset], indent=2), flush=True)
    if args.json:
        print(
            json.dumps(
                {
                    "benchmark": "gpu",
                    "device": torch.cuda.get_device_name(device),
                    "presets": report,
                }
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
