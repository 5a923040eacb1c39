"""Gain of attaching under attack, and its cost when calm, for scripts in four frameworks.

Under attack a shard of the data is random, and the learning rate is three times the highest that
suits. Each script of `attach_scripts.py` runs as it is and attached, on the same seeds:

- *held-out loss* at the end, under attack: the difference to the script as it is, by seed;
- *time* on a calm run: the ratio to the script as it is, in seconds of the processor. All train in
  one process and take turns after each step, so that whatever else the machine does slows them
  alike;
- *memory*: the highest resident size of a process that trains once. On a CPU the states to roll
  back to are part of it; on a GPU they are not on the device.

    python benchmarks/attach.py --json
    python benchmarks/attach.py --profile huggingface    # where the time of a watched run goes

With `--folder` each measurement is kept in a file there, and a run that was broken off takes up
where it was.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import os
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import greenlet
import torch
from attach_scripts import SCRIPTS, Setting, silence

MODES = ("watch", "rules", "branching")
SIZES: dict[str, dict[str, Any]] = {
    "width 128": {"width": 128, "layers": 4, "length": 128, "lr": 2e-3, "steps": 150},
    "width 256": {"width": 256, "layers": 4, "length": 128, "lr": 1e-3, "steps": 150},
}


@dataclass
class Cells:
    """Measurements by name, kept in a file.

    Args:
        path: File; None to keep them in memory.
    """

    path: Path | None
    _found: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            for line in self.path.read_text().splitlines():
                cell = json.loads(line)
                self._found[cell["name"]] = cell["value"]

    def __call__(self, name: str, measure: Any, *arguments: Any) -> Any:
        """Return the measurement of a name; measure it if it is not there yet."""
        if name not in self._found:
            self._found[name] = measure(*arguments)
            if self.path is not None:
                with self.path.open("a") as file:
                    print(json.dumps({"name": name, "value": self._found[name]}), file=file)
        return self._found[name]


def final(framework: str, seed: int, mode: str, *, attacked: bool) -> float:
    """Train once; return the held-out loss at the end."""
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(seed=seed, mode=mode, out=Path(folder) / "run", attacked=attacked)
        with silence():
            return SCRIPTS[framework](setting)


def times(framework: str, size: str, modes: Sequence[str]) -> dict[str, float]:
    """Train calm runs in turn, a step of each; return the seconds of the processor by mode.

    Args:
        framework: Name of the framework.
        size: Name of the size.
        modes: Modes.
    """
    seconds = dict.fromkeys(modes, 0.0)
    turns: list[Any] = []
    began = 0.0

    def hand_over() -> None:
        """Give the turn to the next training that has not ended."""
        nonlocal began
        own = greenlet.getcurrent()
        if own not in turns:  # what steers a run reads its data too
            return
        seconds[modes[turns.index(own)]] += time.process_time() - began
        place = turns.index(own)
        following = [one for one in (*turns[place + 1 :], *turns[:place]) if not one.dead]
        if following:
            following[0].switch()
        began = time.process_time()

    def begin(mode: str, out: Path) -> None:
        setting = Setting(
            seed=0, mode=mode, out=out, attacked=False, between=hand_over, **SIZES[size]
        )
        nonlocal began
        began = time.process_time()
        SCRIPTS[framework](setting)
        seconds[mode] += time.process_time() - began

    with tempfile.TemporaryDirectory() as folder, silence():
        for mode in modes:  # what is imported late
            out = Path(folder) / f"short {mode}"
            sizes = {**SIZES[size], "steps": 4}
            SCRIPTS[framework](Setting(seed=0, mode=mode, out=out, attacked=False, **sizes))
        turns = [greenlet.greenlet(partial(begin, mode, Path(folder) / mode)) for mode in modes]
        while left := [one for one in turns if not one.dead]:
            left[0].switch()
    return seconds


def peak(framework: str, mode: str) -> float:
    """Return the highest resident size, in MB, of a process that trains once."""
    command = [sys.executable, __file__, "--peak", framework, mode]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return float(found.stdout.split()[-1])


def profile(framework: str) -> None:
    """Print where a watched run of 60 steps at width 128 spends the seconds of the processor."""
    watcher = cProfile.Profile(time.process_time)
    with tempfile.TemporaryDirectory() as folder, silence():
        for steps in (3, 60):  # what is imported late is not counted
            sizes = {**SIZES["width 128"], "steps": steps}
            out = Path(folder) / str(steps)
            setting = Setting(seed=0, mode="watch", out=out, attacked=False, **sizes)
            if steps == 60:
                watcher.enable()
            SCRIPTS[framework](setting)
        watcher.disable()
    pstats.Stats(watcher).sort_stats("cumulative").print_stats("trainenv", 60)


def interval(values: Sequence[float]) -> dict[str, float]:
    """Return mean and half-width of its 95 % interval (Student), NaN for a single value."""
    if len(values) < 2:
        return {"mean": values[0], "±": math.nan}
    from scipy.stats import t

    wide = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.mean(values), "±": float(wide)}


def under_attack(cells: Cells, framework: str, seeds: int) -> dict[str, Any]:
    """Return final losses, and their differences to the script as it is."""
    finals = {
        mode: [
            cells(f"{framework}, seed {seed}, {mode}", _attacked, framework, seed, mode)
            for seed in range(seeds)
        ]
        for mode in ("plain", "rules", "branching")
    }
    less = {
        mode: interval([one - plain for one, plain in zip(finals[mode], finals["plain"])])
        for mode in ("rules", "branching")
    }
    calm = [
        cells(f"{framework}, calm, {mode}", _calm, framework, mode) for mode in ("plain", *MODES)
    ]
    return {
        "held-out loss under attack": finals,
        "less plain, nats": less,
        "held-out loss when calm": dict(zip(("plain", *MODES), calm)),
        "watched equals plain": calm[0] == calm[1],
    }


def _attacked(framework: str, seed: int, mode: str) -> float:
    return final(framework, seed, mode, attacked=True)


def _calm(framework: str, mode: str) -> float:
    return final(framework, 0, mode, attacked=False)


def costs(cells: Cells, framework: str, repeats: int) -> dict[str, Any]:
    """Return ratios of time on a calm run, medians over repeats, and peaks of memory."""
    found: dict[str, Any] = {}
    for size in SIZES:
        train_once = (framework, size, ("plain", *MODES))
        taken = [
            cells(f"{framework}, {size}, time {n}", times, *train_once) for n in range(repeats)
        ]
        found[f"time at {size}"] = {
            mode: statistics.median(one[mode] / one["plain"] for one in taken) for mode in MODES
        }
    found["peak memory, MB"] = {
        mode: cells(f"{framework}, peak, {mode}", peak, framework, mode)
        for mode in ("plain", *MODES)
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds under attack")
    parser.add_argument("--repeats", type=int, default=3, help="number of measurements of the time")
    parser.add_argument("--framework", choices=list(SCRIPTS), help="one of them alone")
    parser.add_argument("--part", choices=("attack", "costs"), help="one part alone")
    parser.add_argument("--folder", type=Path, help="folder of the measurements")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--profile", choices=list(SCRIPTS), help="profile a watched run")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        with tempfile.TemporaryDirectory() as folder:
            framework, mode = options.peak
            out = Path(folder) / "run"
            size = {**SIZES["width 256"], "steps": 60}
            with silence():
                SCRIPTS[framework](Setting(seed=0, mode=mode, out=out, attacked=False, **size))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    if options.profile:
        profile(options.profile)
        return
    path = None
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        path = options.folder / "cells.jsonl"
    cells = Cells(path)
    names = [options.framework] if options.framework else list(SCRIPTS)
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    if options.part != "costs":
        for seeds in range(1, options.seeds + 1):  # the first seed of each framework first
            for name in names:
                found[name] |= under_attack(cells, name, seeds)
    if options.part != "attack":
        for name in names:
            found[name] |= costs(cells, name, options.repeats)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        print(name)
        for what, value in figures.items():
            print(f"  {what}: {value}")


if __name__ == "__main__":
    main()
