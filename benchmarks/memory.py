"""Memory and time of a pass by depth: activations kept, computed again, or reversible blocks.

    python benchmarks/memory.py                   # about 3 minutes on one core
    python benchmarks/memory.py --depths 4 8 --json

Each cell is a forward and backward pass of a byte-level GPT-2 in processes of its own. `kept` is
the size of the tensors that autograd keeps for the backward pass, without weights. `peak` is the
highest resident memory of a pass above that of weights and gradients, with an allocator that keeps
no freed memory. The time is that of the processor, the median of the passes. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from trainenv.config.schema import RunConfig
from trainenv.models import build
from trainenv.objectives import NextToken

ROOT = Path(__file__).parents[1]
MODES: dict[str, dict[str, Any]] = {
    "none": {},
    "sqrt": {"model.activation_checkpointing": "sqrt"},
    "every": {"model.activation_checkpointing": True},
    "reversible": {"model.blocks": "reversible"},
}
DEPTHS = (4, 12, 24)
MIB = 2**20
_VOCABULARY = 256
_ALLOCATOR = {
    # The allocator of glibc returns freed memory at once, which takes time.
    "memory": {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    "time": {},
}


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS, help="numbers of blocks")
    parser.add_argument("--width", type=int, default=256, help="width of the model")
    parser.add_argument("--context", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=8, help="sequences of a batch")
    parser.add_argument("--passes", type=int, default=3, help="timed passes of each cell")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        mode, depth, measure = args.cell
        measured = {"memory": memory, "time": seconds}[measure]
        print(json.dumps(measured(*model_and_tokens(mode, int(depth), args), args.passes)))
        return
    cells = []
    for depth in args.depths:
        for mode in args.modes:
            cell = {"mode": mode, "depth": depth}
            for measure in ("memory", "time"):
                command = [sys.executable, __file__, *sys.argv[1:]]
                command += ["--cell", mode, str(depth), measure]
                done = subprocess.run(
                    command,
                    check=True,
                    capture_output=True,
                    text=True,
                    cwd=ROOT,
                    env={**os.environ, **_ALLOCATOR[measure]},
                )
                cell |= json.loads(done.stdout)
            cells.append(cell)
            print(f"{mode} {depth}", file=sys.stderr, flush=True)
    report = {
        "width": args.width,
        "context": args.context,
        "batch": args.batch,
        "torch": torch.__version__,
        "cells": cells,
        "goal": goal(cells),
    }
    if args.json:
        print(json.dumps(report))
    else:
        print(table(cells))


def model_and_tokens(mode: str, depth: int, args: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    """Return a model and a micro-batch."""
    torch.set_num_threads(1)
    config = RunConfig.load(
        "tiny",
        {
            "model.width": args.width,
            "model.heads": max(1, args.width // 64),
            "model.layers": depth,
            "model.context": args.context,
            "batch_size": args.batch,
            **MODES[mode],
        },
    )
    model = build.build(config, _VOCABULARY, torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, _VOCABULARY, (args.batch, args.context + 1), generator=draw)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # zeros would take no memory before their use
    return model, tokens


def memory(model: nn.Module, tokens: Tensor, passes: int) -> dict[str, float]:
    """Return kept and peak memory of a pass in MiB."""
    from tests.support.saved_bytes import saved_bytes

    kept = saved_bytes(model, tokens[:, :-1])
    gc.collect()
    _forget_peak()
    before = _resident("VmRSS")
    NextToken()(model, tokens).backward()
    return {"kept_mib": kept / MIB, "peak_mib": (_resident("VmHWM") - before) / MIB}


def seconds(model: nn.Module, tokens: Tensor, passes: int) -> dict[str, float]:
    """Return the milliseconds of a pass."""
    found = []
    for _ in range(passes):
        start = time.process_time()
        NextToken()(model, tokens).backward()
        found.append(time.process_time() - start)
    return {"ms": 1000 * median(found)}


def goal(cells: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the memory of the deepest reversible model ÷ that of the shallowest plain one."""
    deepest = max((cell for cell in cells if cell["mode"] == "reversible"), key=_depth)
    shallowest = min((cell for cell in cells if cell["mode"] == "none"), key=_depth)
    return {name: deepest[f"{name}_mib"] / shallowest[f"{name}_mib"] for name in ("kept", "peak")}


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Write the cells as a Markdown table, a row for each depth and mode."""
    lines = [
        "| blocks | activations | kept, MiB | peak, MiB | ms | ÷ none |",
        "|---|---|---|---|---|---|",
    ]
    plain = {cell["depth"]: cell["ms"] for cell in cells if cell["mode"] == "none"}
    for cell in cells:
        lines.append(
            f"| {cell['depth']} | {cell['mode']} | {cell['kept_mib']:.1f} | {cell['peak_mib']:.0f}"
            f" | {cell['ms']:.0f} | {cell['ms'] / plain[cell['depth']]:.2f} |"
        )
    found = goal(cells)
    lines.append(
        f"\nDeepest reversible ÷ shallowest plain: kept {found['kept']:.2f},"
        f" peak {found['peak']:.2f}"
    )
    return "\n".join(lines)


def _depth(cell: dict[str, Any]) -> int:
    return int(cell["depth"])


def _forget_peak() -> None:
    """Set the highest resident memory to the present one."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _resident(name: str) -> int:
    """Return resident memory in bytes: `VmRSS` now, `VmHWM` at most."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"expected {name} in /proc/self/status, found none")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
