"""Which cheap look at a branch ranks its end best: raw loss, averaged weights, or a cool-down?

    python benchmarks/looks.py --groups 12        # about 10 minutes on one core

In each group of runs, six branches with different factors on the learning rate start from the same
state and see the same batches. A look at a branch costs `steps` optimizer steps:

    raw         the validation loss after the steps
    averaged    that of the mean of the weights after each of the last half of the steps
                (LAWA: Kaddour 2022; WSM: Tian et al. 2025)
    cool-down   the loss after half of the steps as they are and half with the rate falling to 0

The end is the loss of the same branch trained to the end of the run, its factor held. The table has
the mean Spearman correlation of each look with the end over all points, with its standard error.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from trainenv.cli.worldmodel import make_small_run
from trainenv.rollouts.folded import Folded
from trainenv.run import TrainingRun
from trainenv.worldmodel.dataset.texts import write_texts
from trainenv.worldmodel.paths.groups import sample_groups

FACTORS = (0.3, 0.55, 1.0, 1.5, 2.2, 3.3)
SHARES = (0.25, 0.5, 0.75)  # of the run, where branches start
STEPS = (12, 24, 48)
_SEED = 900_001  # of groups that nothing was fitted on


def main() -> None:
    """Print the table, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        texts = write_texts(Path(folder))
        for group in sample_groups(args.groups, seed=_SEED):
            trunk = make_small_run(group.overrides(texts))
            for share in SHARES:
                trunk.advance(round(share * group.steps) - trunk.step)
                for key, value in looks(trunk).items():
                    found[key].append(value)
            print(f"{group.name}: {len(found['raw', STEPS[0]])} points", flush=True)
    report: dict[str, Any] = {}
    print(f"{'look':12}" + "".join(f"{steps:>6} steps      " for steps in STEPS))
    for name in ("raw", "averaged", "cool-down"):
        cells = []
        for steps in STEPS:
            values = [value for value in found[name, steps] if math.isfinite(value)]
            error = stdev(values) / math.sqrt(len(values))
            report[f"{name}-{steps}"] = [fmean(values), error, len(values)]
            cells.append(f"{fmean(values):+.3f} ± {error:.3f}  ")
        print(f"{name:12}" + "".join(cells))
    print(json.dumps(report))


def looks(trunk: TrainingRun) -> dict[tuple[str, int], float]:
    """Return the rank correlation of each look with the end, from a run's present state."""
    measured: dict[tuple[str, int], list[float]] = {}
    ends = branches(trunk, lambda folded: folded.advance(trunk.horizon.end - trunk.step))
    for steps in STEPS:
        measured["raw", steps] = branches(trunk, lambda folded, n=steps: folded.advance(n))
        measured["averaged", steps] = branches(trunk, lambda folded, n=steps: average(folded, n))
        measured["cool-down", steps] = branches(trunk, lambda folded, n=steps: cool(folded, n))
    return {key: float(spearmanr(values, ends).statistic) for key, values in measured.items()}


def branches(trunk: TrainingRun, train: Callable[[Folded], object]) -> list[float]:
    """Return the loss of six branches after some training."""
    runs = [trunk.fork() for _ in FACTORS]
    for run, factor in zip(runs, FACTORS):
        run.lr_scale *= factor
    folded = Folded(runs)
    train(folded)
    largest = 2 * trunk.uniform_loss
    return [min(loss, largest) if math.isfinite(loss) else largest for loss in folded.evaluate()]


def average(folded: Folded, steps: int) -> None:
    """Train, and put the mean of the weights of the last half of the steps in place."""
    half = steps // 2
    folded.advance(steps - half)
    rows = [[p.detach().clone().zero_() for p in run._parameters] for run in folded.runs]
    for _ in range(half):
        folded.advance(1)
        for sums, run in zip(rows, folded.runs):
            for total, parameter in zip(sums, run._parameters):
                total.add_(parameter.detach(), alpha=1 / half)
    for sums, run in zip(rows, folded.runs):
        for total, parameter in zip(sums, run._parameters):
            parameter.data.copy_(total)


def cool(folded: Folded, steps: int) -> None:
    """Train half of the steps as they are, and half with the rate falling to 0."""
    half = steps // 2
    folded.advance(steps - half)
    scales = np.array([run.lr_scale for run in folded.runs])
    for place in range(half):
        for run, scale in zip(folded.runs, scales):
            run.lr_scale = float(scale * (1 - (place + 1) / half)) or 1e-9
        folded.advance(1)


if __name__ == "__main__":
    main()
