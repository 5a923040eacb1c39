"""Search for the settings of the calm scenarios: learning rate, warm-up and end of the schedule.

    python benchmarks/tune_calm.py --out benchmarks/results/calm.json

A scenario in which nothing is wrong must have settings that no method can improve on cheaply. For
each size and corpus of the suite `full`, runs of its budget are trained over a grid:

    rate      0.192 ÷ width, times 2^(k/4) from ÷ 2 to × 8
    warm-up   15 to 480 of the 600 steps
    final     share of the rate at the end of the cosine: 0, 0.1 or 0.3

ZClip is in force. Each cell has the same weights, batches and validation tokens, so that their
differences are those of the settings. The search has three stages: a coarse sub-grid; then all
cells next to the best one, until the best has no neighbour left; then the best cells once more with
other weights and batches. The best of these has the lowest mean ln loss of both, and its neighbours
are measured too. No suite uses these two seeds. Runs are trained folded. Cells that the file holds
are not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from trainenv.compare import load_suite
from trainenv.compare.scenarios import SUITED
from trainenv.config.schema import RunConfig
from trainenv.rollouts.folded import Folded
from trainenv.run import TrainingRun

SCENARIOS = ("calm", "calm-subwords", "calm-wide", "calm-wide-subwords")
RATES = tuple(2 ** (quarter / 4) for quarter in range(-4, 13))
WARMUPS = (15, 30, 60, 120, 240, 360, 480)
FINALS = (0.0, 0.1, 0.3)
SEEDS = (2_000_000_011, 2_000_000_033)
TOKENS = 32_768  # validation tokens that a cell is judged on
AGAIN = 12  # best cells that are trained with the second seed
# Runs folded into one, and the coarse sub-grid, by width.
FOLDED = {32: 16, 64: 4}
COARSE = {
    32: (range(0, 17, 2), range(5), range(3)),
    64: (range(4, 13, 4), (2, 4, 5), (1,)),
}

Cell = tuple[int, int, int]
"""Places of a cell in `RATES`, `WARMUPS` and `FINALS`."""


@dataclass(kw_only=True)
class Grid:
    """Ln validation losses of the cells of one scenario.

    Args:
        scenario: Name of the scenario in the suite `full`.
        losses: Ln losses by seed and cell; infinite for a run that diverged.
        save: Function called after each group of runs.
    """

    scenario: str
    losses: dict[int, dict[Cell, float]] = field(
        default_factory=lambda: {seed: {} for seed in SEEDS}
    )
    save: Callable[[Grid], None] = lambda grid: None

    def read(self, found: Mapping[str, Any]) -> None:
        """Take in the cells that an earlier search has measured."""
        width = self.config.model.width
        axes = product(range(len(RATES)), range(len(WARMUPS)), range(len(FINALS)))
        places = {values(cell, width): cell for cell in axes}
        for lr, warmup, final, *losses in found["cells"]:
            for seed, loss in zip(SEEDS, losses):
                if loss is not None:
                    self.losses[seed][places[lr, warmup, final]] = loss

    @cached_property
    def config(self) -> RunConfig:
        """Configuration of the scenario, with more validation tokens and without the monitor."""
        suite = load_suite("full")
        scenario = next(one for one in suite.scenarios if one.name == self.scenario)
        config = scenario.config(0)
        sequences = TOKENS // config.model.context
        changes = {
            "clip.policy": "zclip",
            "monitor.enabled": False,
            "validation.sequences": sequences,
        }
        return RunConfig.load(config, changes)

    def search(self) -> None:
        """Measure the coarse grid, the neighbours of its best cell, and the best cells again."""
        first, second = SEEDS
        self.measure(first, product(*COARSE[self.config.model.width]))
        left = near(self.ranked()[0])
        while left:
            self.measure(first, left)
            if not self._unknown(self.ranked()[0]):
                self.measure(second, self.ranked()[:AGAIN])
            left = self._unknown(self.ranked()[0]) or self._unknown(self.best())

    def _unknown(self, cell: Cell) -> list[Cell]:
        """Return the cells around a cell that were not measured."""
        return [one for one in near(cell) if one not in self.losses[SEEDS[0]]]

    def ranked(self) -> list[Cell]:
        """Return the cells that were measured with the first seed, best first."""
        found = self.losses[SEEDS[0]]
        return sorted(found, key=lambda cell: found[cell])

    def best(self) -> Cell:
        """Return the cell of lowest mean over both seeds; over the first while it is alone."""
        first, second = (self.losses[seed] for seed in SEEDS)
        if not second:
            return self.ranked()[0]
        return min(second, key=lambda cell: first[cell] + second[cell])

    def measure(self, seed: int, cells: Iterable[Cell]) -> None:
        """Train cells to the end of their budget, and take in their losses."""
        config = self.config
        size = FOLDED[config.model.width]
        cells = [cell for cell in cells if cell not in self.losses[seed]]
        for start in range(0, len(cells), size):
            chosen = cells[start : start + size]
            losses = ends([settings(config, seed, cell) for cell in chosen])
            self.losses[seed] |= dict(zip(chosen, losses))
            self.save(self)

    def to_json(self) -> dict[str, Any]:
        """Return the best settings, and a row for each cell: its settings and its ln losses."""
        width = self.config.model.width
        rows = []
        for cell in sorted(self.losses[SEEDS[0]]):
            found = [self.losses[seed].get(cell) for seed in SEEDS]
            rows.append([*values(cell, width), *map(rounded, found)])
        lr, warmup, final = values(self.best(), width)
        return {
            "best": {"lr": lr, "warmup": warmup, "final": final},
            "columns": ["lr", "warmup", "final", *(f"ln_loss_{seed}" for seed in SEEDS)],
            "cells": rows,
        }


def near(cell: Cell) -> list[Cell]:
    """Return the cells of the grid around a cell, itself included."""
    sizes = (len(RATES), len(WARMUPS), len(FINALS))
    ranges = [range(max(0, at - 1), min(size, at + 2)) for at, size in zip(cell, sizes)]
    return [(rate, warmup, final) for rate, warmup, final in product(*ranges)]


def values(cell: Cell, width: int) -> tuple[float, int, float]:
    """Return the learning rate, the warm-up in steps and the final share of a cell."""
    rate, warmup, final = cell
    return float(f"{SUITED / width * RATES[rate]:.4g}"), WARMUPS[warmup], FINALS[final]


def settings(config: RunConfig, seed: int, cell: Cell) -> RunConfig:
    """Return the configuration of a cell."""
    lr, warmup, final = values(cell, config.model.width)
    changes = {
        "seed": seed,
        "optimizer.lr": lr,
        "schedule.warmup": warmup,
        "schedule.final": final,
    }
    return RunConfig.load(config, changes)


def ends(configs: Sequence[RunConfig]) -> list[float]:
    """Train runs folded into one, and return their ln validation losses at the end."""
    folded = Folded([TrainingRun.from_config(config) for config in configs])
    folded.advance(configs[0].steps)
    losses = []
    for run, loss in zip(folded.runs, folded.evaluate()):
        finite = math.isfinite(loss) and not run.diverged
        losses.append(math.log(loss) if finite else math.inf)
    return losses


def rounded(loss: float | None) -> float | None:
    """Return a loss at five decimals; None if there is none or it is infinite."""
    if loss is None or not math.isfinite(loss):
        return None
    return round(loss, 5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file of all cells")
    parser.add_argument("scenarios", nargs="*", default=SCENARIOS, help="scenarios to tune")
    args = parser.parse_args()
    result: dict[str, Any] = {}
    if args.out is not None and args.out.exists():
        result = json.loads(args.out.read_text())

    def save(grid: Grid) -> None:
        result[grid.scenario] = grid.to_json()
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(written(result))

    for name in args.scenarios:
        started = time.perf_counter()
        grid = Grid(scenario=name, save=save)
        if name in result:
            grid.read(result[name])
        grid.search()
        save(grid)
        seconds = time.perf_counter() - started
        print(f"{name}: {result[name]['best']}, {seconds:.0f} s", flush=True)


def written(result: dict[str, Any]) -> str:
    """Return the result as JSON with one line for each cell."""
    parts = []
    for name, found in result.items():
        rows = ",\n  ".join(json.dumps(row) for row in found["cells"])
        head = f'"best": {json.dumps(found["best"])},\n "columns": {json.dumps(found["columns"])}'
        parts.append(f'"{name}": {{\n {head},\n "cells": [\n  {rows}\n ]\n}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
