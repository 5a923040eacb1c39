"""Folders of runs and comparisons as trainenv leaves them, made up from a formula: fast, seeded, realistic to look at."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trainenv.compare.scenarios import Scenario
from trainenv.compare.suite import Suite
from trainenv.config.schema import RunConfig
from trainenv.records.run_folder import RunFolder
from trainenv.records.telemetry_log import arrow_schema
from trainenv.tools.atomic_files import write_json
from trainenv.types import Event

CANDIDATES: list[list[dict[str, Any]]] = [
    [{}],
    [{"lr_scale": 0.8}],
    [{"lr_scale": 0.8, "clip": "zclip"}, {}, {}],
    [{"lr_scale": 0.9, "weight_decay_scale": 2.0}],
    [{"momentum_reset": True}],
    [{"lr_scale": 0.9}, {"lr_scale": 0.9}, {}],
    [{"lr_scale": 1.1, "clip": "arc"}],
]


def base_loss(step: Any, steps: int) -> Any:
    return (
        2.05
        + 3.4 * np.exp(-np.asarray(step) / (0.05 * steps))
        + 0.45 * (1 - np.asarray(step) / steps) ** 1.5
    )


def rows_of(
    first: int,
    last: int,
    steps: int,
    rng: np.random.Generator,
    *,
    line: int = 0,
    spike_at: int = -1,
) -> pd.DataFrame:
    """Telemetry of the steps `first` + 1 to `last`; a spike of the loss starts at `spike_at`."""
    step = np.arange(first + 1, last + 1)
    loss = base_loss(step, steps) + 0.06 * rng.standard_normal(len(step))
    volatility = 0.7 * rng.standard_normal(len(step))
    if spike_at >= 0:
        since = np.maximum(step - spike_at, 0)
        loss = loss + np.where(since > 0, 1.6 * np.exp(-((since - 9) ** 2) / 60), 0)
        volatility = volatility + np.where(since > 0, 7 * np.exp(-((since - 8) ** 2) / 60), 0)
    entropy, disagreement = (0.6 * rng.standard_normal(len(step)) for _ in range(2))
    index = 0.5 * volatility + 0.3 * entropy + 0.2 * disagreement
    threshold = np.where(step < 0.05 * steps, np.inf, 2.5)
    columns: dict[str, Any] = {
        "step": step,
        "loss": loss,
        "line": line,
        "purpose": "main",
        "data_index": step,
        "tokens": 512,
    }
    columns |= {
        "grad_norm": 1 + rng.random(len(step)),
        "grad_norm_clipped": 1.0,
        "clip_threshold": 2.0,
        "clip_score": 0.0,
    }
    columns |= {
        "clip": "zclip",
        "lr": 3e-3 * (1 - 0.9 * step / steps) * 0.8**line,
        "lr_scale": 0.8**line,
        "weight_decay": 0.1,
    }
    columns |= {"weight_decay_scale": 1.0, "steps_since_reset": -1, "progress": step / steps}
    columns |= {
        "volatility": volatility,
        "entropy": entropy,
        "disagreement": disagreement,
        "index": index,
    }
    columns |= {"threshold": threshold, "fired": index > threshold}
    rows = pd.DataFrame(columns)
    for field in arrow_schema():
        if field.name not in rows:
            rows[field.name] = [[]] * len(rows) if field.name == "stressors" else None
    return rows[[field.name for field in arrow_schema()]]


def write_rows(folder: Path, rows: pd.DataFrame) -> None:
    telemetry = folder / "telemetry"
    part = len(list(telemetry.glob("part-*.parquet")))
    table = pa.Table.from_pandas(rows, schema=arrow_schema(), preserve_index=False)
    pq.write_table(table, telemetry / f"part-{part:05d}.parquet", compression="zstd")


def decision(
    number: int,
    step: int,
    at: int,
    rng: np.random.Generator,
    *,
    why: str = "fired",
    accepted: int | None = 2,
    verify: int = 25,
) -> dict[str, Any]:
    """A decision of seven branches; number 6 is a branch that became NaN."""
    harm = float(abs(rng.normal(0.2, 0.1))) if why == "fired" else None
    noise = 0.08 * rng.standard_normal(verify)
    branches = []
    for place, interventions in enumerate(CANDIDATES):
        truth = (
            0.0 if place == 0 else float(rng.normal(0.0015, 0.006)) - 0.008 * (place == accepted)
        )
        guess = truth + float(rng.normal(0, 0.003))
        half = 0.004 + 0.004 * float(rng.random())
        failed = place == 6 and number % 2 == 0
        fate = (
            "control"
            if place == 0
            else "failed"
            if failed
            else "accepted"
            if place == accepted
            else "rejected"
        )
        if fate == "rejected" and truth < 0:
            fate = "passed"
        curve = (
            2.4 * np.exp(truth * np.linspace(0, 1, verify))
            + noise
            + 0.004 * rng.standard_normal(verify)
        )
        losses = [*curve[:7].tolist(), None] if failed else curve.tolist()
        said = {
            "control": "does nothing: what the others are measured against",
            "failed": "the loss became NaN at step 8 of 25",
            "accepted": "within the draft's interval, harms nothing, and has the best long view",
            "passed": "passed, but another has the better long view",
            "rejected": "worse than doing nothing by more than its error",
        }[fate]
        branches.append(
            {
                "place": place,
                "control": place == 0,
                "interventions": interventions,
                "score": None if place == 0 else guess - 0.001,
                "forecast": None,
                "expected": None
                if place == 0
                else {"low": guess - half, "median": guess, "high": guess + half},
                "outcome": {
                    "looks": [0, verify],
                    "validation": [2.4, None if failed else 2.4 * math.exp(truth)],
                    "annealed": None,
                    "final": None,
                    "diverged": failed,
                    "volatility": 0.3,
                    "steps": len(losses),
                    "flops": 4e8 * len(losses),
                    "error": "",
                },
                "losses": losses,
                "delta": None if failed else truth,
                "annealed_delta": None,
                "paired": None
                if failed or place == 0
                else {"mean": truth * 0.9, "error": 0.0015, "steps": verify},
                "fate": fate,
                "reason": said,
            }
        )
    word = (
        "the best long view of those that held up"
        if accepted is not None
        else "no branch held up against doing nothing"
    )
    return {
        "schema": 1,
        "number": number,
        "why": why,
        "at": at,
        "step": step,
        "harm": harm,
        "planner": {
            "name": "grid",
            "settings": {},
            "candidates": 57,
            "dropped": 3,
            "faults": [],
            "complete": True,
            "futures": 57,
            "seconds": 0.0041,
        },
        "verification": {
            "rule": "agreement",
            "settings": {},
            "top_k": 6,
            "verify_steps": verify,
            "cooldown": 0,
        },
        "branches": branches,
        "accepted": accepted,
        "reason": word,
        "cost": {"steps": 7 * verify, "flops": 7e10, "seconds": 2.31, "wasted_steps": 6 * verify},
        "start": {"fingerprint": "0" * 16, "flagged": [], "checkpoint": "checkpoints"},
        "end": {"fingerprint": "1" * 16},
    }


def write_decision(folder: Path, made: dict[str, Any]) -> None:
    name = str(made["step"])
    while (folder / "branches" / name).exists():
        name = f"{made['step']}-{1 + int(name.partition('-')[2] or 1)}"
    (folder / "branches" / name).mkdir(parents=True)
    (folder / "branches" / name / "decision.json").write_text(json.dumps(made), encoding="utf-8")


def make_run(
    path: Path,
    *,
    steps: int = 1200,
    name: str = "tiny",
    seed: int = 0,
    ended: str | None = "budget spent",
) -> Path:
    """A run with a spike that is rewound and put right, and a decision at some checkpoints."""
    rng = np.random.default_rng(seed)
    folder = RunFolder.create(path, RunConfig.load("tiny", {"steps": steps, "name": name}))
    every, alarm = max(steps // 12, 1), round(0.43 * steps)
    behind, seen_at = alarm - alarm % every, alarm + 16
    write_rows(path, rows_of(0, seen_at, steps, rng, spike_at=alarm))
    folder.event(Event(alarm + 4, "fired", {"index": 4.1, "loss": 3.3}))
    number = 0
    for step in range(2 * every, steps, every):
        if step == behind + every:
            number += 1
            write_decision(path, decision(number, behind, seen_at, rng))
            folder.rewound(behind)
            folder.event(Event(seen_at, "rewind", {"to": behind, "lr_scale": 1.0}))
            _tell(folder, number, seen_at, 2)
        elif step % (2 * every) == 0 and step != behind:
            number += 1
            accepted = [None, 2, None, 5][number % 4]
            write_decision(
                path, decision(number, step, step, rng, why="checkpoint", accepted=accepted)
            )
            _tell(folder, number, step, accepted)
    folder.event(
        Event(
            round(0.9 * steps),
            "skipped",
            {"why": "checkpoint", "reason": "what is left of the budget is too little"},
        )
    )
    write_rows(path, rows_of(behind, steps, steps, rng, line=1))
    validation = [
        *((0, s) for s in range(0, seen_at, every)),
        *((1, s) for s in range(behind + every, steps + 1, every)),
    ]
    for folder.line, step in validation:
        folder.validation(step, float(base_loss(step, steps) + 0.02 * rng.standard_normal()))
    if ended is not None:
        folder.finish(summary(ended, steps))
    return path


def _tell(folder: RunFolder, number: int, step: int, accepted: int | None) -> None:
    detail = {
        "number": number,
        "why": "fired",
        "folder": "",
        "accepted": accepted is not None,
        "interventions": [],
        "reason": "",
    }
    folder.event(Event(step, "decision", detail))


def summary(ended: str, steps: int) -> dict[str, Any]:
    flops = {
        "main": 4.9e11,
        "rewound": 6.5e9,
        "verify": 3.1e10,
        "plan": 1.2e8,
        "evaluate": 3.3e10,
        "model": 0.0,
    }
    return {
        "name": "tiny",
        "seed": 0,
        "ended": ended,
        "step": steps,
        "final_validation_loss": 2.05,
        "flops": flops,
    }


METHODS = {
    "nothing": 0.0,
    "zclip": -0.004,
    "arc": -0.003,
    "spam": 0.004,
    "clip-1.0": -0.002,
    "palm": -0.006,
    "opt": -0.001,
    "pbt": -0.011,
    "pb2": -0.012,
    "autolrs": -0.008,
    "tuned": -0.02,
    "ppo-model": -0.005,
    "branching": -0.03,
    "static-0.3": -0.022,
    "static-3": 0.03,
    "branching-quarter": -0.014,
}
HINDSIGHT = ("static-0.3", "static-3")
SCENARIOS = {
    "calm": 0.02,
    "calm-bpe": 0.02,
    "lr-3x": 1.0,
    "lr-10x": 2.2,
    "rare-tokens": 0.7,
    "spike": 1.2,
    "lost-moments": 0.9,
}


def cell(
    scenario: str, seed: int, method: str, rng: np.random.Generator, level: float
) -> dict[str, Any]:
    severity = SCENARIOS[scenario]
    loss = level * math.exp(
        METHODS[method] * severity * (1 + 0.4 * rng.standard_normal())
        + 0.0012 * rng.standard_normal()
    )
    diverged = scenario == "lr-10x" and method == "nothing" and seed == 1
    loss = math.log(256) if diverged else loss
    acts = method.startswith("branching")
    flops = {
        "main": 4.6e11,
        "rewound": 6e9 * acts,
        "verify": 2.6e10 * acts,
        "plan": 1e8 * acts,
        "evaluate": 3e10,
        "model": 0.0,
    }
    total = sum(flops.values())
    events = 0 if severity < 0.1 else int(rng.poisson(6 * severity * (0.15 if acts else 1)))
    decided = {
        "invoked": 21,
        "verified": 18,
        "accepted": 7,
        "gap": 0.0021,
        "coverage": 0.87,
        "verify_steps": 900,
    }
    return {
        "scenario": scenario,
        "seed": seed,
        "method": method,
        "ended": "diverged" if diverged else "budget spent",
        "error": "",
        "steps": 1100,
        "final_loss": loss,
        "log_final_loss": math.log(loss),
        "instability": {"events": events, "steps": 1100, "per_100k": events / 1100 * 1e5},
        "recovery": {
            "mean": 40.0 if events else None,
            "median": 31.0 if events else None,
            "events": events,
            "unrecovered": 0,
        },
        "flops": flops,
        "total_flops": total,
        "wasted": (flops["rewound"] + flops["verify"]) / total,
        "drafting": flops["plan"] / total,
        "decisions": decided if acts else None,
        "budget": 4.95e11,
        "seconds": 24.0,
    }


def make_comparison(
    path: Path, *, seeds: int = 5, failed: bool = True, open_loop: tuple[str, ...] = ()
) -> Path:
    """Cells of all methods on seven scenarios; one cell failed."""
    rng = np.random.default_rng(0)
    for scenario in SCENARIOS:
        for seed in range(seeds):
            folder = path / "cells" / scenario / str(seed)
            folder.mkdir(parents=True)
            level = 2.3 + 0.1 * float(rng.random())
            for method in METHODS:
                made = cell(scenario, seed, method, rng, level)
                if failed and (scenario, seed, method) == ("spike", 2, "pb2"):
                    made |= {
                        "ended": "failed",
                        "error": "out of memory",
                        "final_loss": None,
                        "log_final_loss": None,
                    }
                (folder / f"{method}.json").write_text(json.dumps(made), encoding="utf-8")
    calm = {name: name.startswith("calm") for name in SCENARIOS}
    scenarios = tuple(
        Scenario(name=n, group="calm" if calm[n] else "stressed", fault="" if calm[n] else n)
        for n in SCENARIOS
    )
    methods = tuple(name for name in METHODS if name not in HINDSIGHT)
    suite = Suite(
        name="quick",
        seeds=seeds,
        methods=methods,
        hindsight=HINDSIGHT,
        open_loop=open_loop,
        scenarios=scenarios,
    )
    write_json(path / "suite.json", suite.to_json())
    return path
