"""Quality and speed of the model of whole paths.

    trainenv worldmodel build --out runs/worldmodel        # the data, first
    python benchmarks/paths.py runs/worldmodel/paths       # tables, minutes on one core
    python benchmarks/paths.py --speed                     # of the shipped model alone

Tables: error and regret of the model, told nothing of the run, without each group of features, and
with a half, a quarter and an eighth of the data. Groups of runs are held out whole.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from trainenv import planners, worldmodel
from trainenv.composition.default_loop import branching
from trainenv.config.schema import RunConfig
from trainenv.run import TrainingRun
from trainenv.training.history import history_of
from trainenv.types import RunHistory
from trainenv.worldmodel.features import GROUPS, STATE
from trainenv.worldmodel.paths.build import folds
from trainenv.worldmodel.paths.collect import DECISIONS
from trainenv.worldmodel.paths.evaluate import evaluate, predict
from trainenv.worldmodel.paths.fit import Fitting, fit
from trainenv.worldmodel.paths.inputs import PATH, STATE_INPUTS
from trainenv.worldmodel.paths.model import path_state
from trainenv.worldmodel.paths.table import PathTable

_USUAL = [STATE_INPUTS + PATH.index(name) for name in PATH if "usual" in name]


def main() -> None:
    """Print the tables as text, then as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, help="folder with round-0, round-1, …")
    parser.add_argument("--speed", action="store_true", help="measure the speed alone")
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"speed": speed()}
    print(json.dumps(report["speed"], indent=1))
    if args.data is not None and not args.speed:
        report["quality"] = quality(args.data, Fitting(epochs=args.epochs))
    print(json.dumps(report))


def quality(folder: Path, how: Fitting) -> dict[str, Mapping[str, Any]]:
    """Return the measures of the model and its ablations on held-out groups."""
    table = PathTable.of(sorted(folder.glob("round-*")))
    held = folds(table.group, how.seed) == 0
    train = table.where(~held)
    test = table.where(held)
    found: dict[str, Mapping[str, Any]] = {}

    def show(name: str, fitted_on: PathTable, fitting: Fitting) -> None:
        ensemble = fit(fitted_on, fitting)
        blind = predict(ensemble, test, blind=True)
        measures = evaluate(predict(ensemble, test), blind, test, DECISIONS, 1.0)
        found[name] = measures
        picks = [f"{row['pick']:.4f}" for row in measures["regret"] if row["pick"] is not None]
        print(f"{name:28} error {measures['error']:.4f}  regret {'  '.join(picks)}", flush=True)

    show("all", train, how)
    first = found["all"]
    for name, key in (("doing nothing", "nothing"), ("told nothing", "blind")):
        picks = [f"{row[key]:.4f}" for row in first["regret"] if row[key] is not None]
        print(f"{name:28} {'':12}  regret {'  '.join(picks)}")
    for group, names in GROUPS.items():
        places = [STATE.index(name) for name in names]
        hidden = [*places, *(place + len(STATE) for place in places)]
        show(f"without {group}", train, replace(how, hidden=hidden))
    show("without the usual rate", train, replace(how, hidden=_USUAL))
    rng = np.random.default_rng(0)
    order = rng.permutation(np.unique(train.group))
    for share in (2, 4, 8):
        some = train.where(np.isin(train.group, order[: len(order) // share]))
        show(f"1/{share} of the data", some, how)
    return found


def speed() -> dict[str, float]:
    """Return median milliseconds: of reading a state, of valuing 128 paths, and of a decision."""
    config = RunConfig.load("tiny", {"steps": 600, "validation.sequences": 8})
    run = TrainingRun.from_config(config)
    telemetry = run.advance(300)
    model = worldmodel.load_pretrained()
    paths = np.cumsum(np.random.default_rng(0).normal(size=(128, 17)) * 0.1, axis=1)

    def history() -> RunHistory:
        return history_of(run, telemetry, horizon=72)

    known = history()
    found = {
        "read_ms": median(_milliseconds(lambda: path_state(known, 17)) for _ in range(60)),
        "forecast_128_ms": median(
            _milliseconds(lambda: model.path_values(known, paths)) for _ in range(60)
        ),
    }
    for name in ("shapes", "cem"):
        options = branching(planner=name).planning
        planner = planners.make(name)

        def decide(options: Any = options, planner: Any = planner) -> None:
            from trainenv.interventions import ActionCodec

            codec = ActionCodec(run.config.interventions)
            rng = np.random.default_rng(0)
            planner.plan(options.problem(run, history(), codec, model, rng))

        found[f"decision_{name}_ms"] = median(_milliseconds(decide) for _ in range(30))
    return found


def _milliseconds(call: Any) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
