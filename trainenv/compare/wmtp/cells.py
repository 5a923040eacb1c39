"""Cells of a comparison of weightings: one method with one seed, trained, measured and kept.

| path | holds |
|---|---|
| `cells/{seed}/{method}.json` | the row of the cell |
| `runs/{seed}/{method}/` | the folder of the run |
| `reference/`, `reference.safetensors` | the run of the reference, and its weights |
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from trainenv.checkpoints import interop
from trainenv.checkpoints.store import CheckpointStore
from trainenv.compare.cells import write_json
from trainenv.compare.wmtp.evaluation import evaluate_run, read_run
from trainenv.compare.wmtp.methods import NEEDS_REFERENCE, config_of, reference_config
from trainenv.compare.wmtp.preset import EvaluationSettings, Preset
from trainenv.config.schema import RunConfig
from trainenv.loop import Watch, resume, train
from trainenv.records.run_folder import RunFolder
from trainenv.records.telemetry_log import read_telemetry, telemetry_of
from trainenv.run import TrainingRun
from trainenv.tools.error_text import describe_error
from trainenv.tools.json_lines import plain
from trainenv.tools.memory import most_memory
from trainenv.types import Telemetry, UserError

Row = dict[str, Any]
Stop = Callable[[], bool]
_LAST = 4  # the last quarter of the steps counts as the end
_KEPT = ("exact_match", "pass_at", "errors", "td_errors", "drafting")
_MEASURED = (
    "weight_entropy",
    "effective_sample_size",
    "kept_share",
    "clamp_rate",
    "value_explained_variance",
    "value_drift",
    "advantage_mean",
    "advantage_deviation",
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that a process needs to train and measure a cell.

    Attributes:
        method: Name of the method.
        seed: Random seed of the run.
        preset: Settings of the comparison.
        budget: FLOPs of the run, without evaluations.
        folder: Folder of the comparison.
        reference: Weights of the reference; None if there is none.
    """

    method: str
    seed: int
    preset: Preset
    budget: float
    folder: Path
    reference: Path | None = None


def never() -> bool:
    """Return False: nothing asks to stop."""
    return False


def silent(run: Any, window: Any) -> None:
    """Show nothing."""


def train_run(
    config: RunConfig, path: Path, *, watch: Watch = silent, stop: Stop = never
) -> dict[str, Any]:
    """Train a run in a folder, or resume the one that was interrupted there; return its summary.

    Raises:
        UserError: The folder holds another run.
    """
    if (path / "config.yaml").is_file():
        before = RunConfig.load(path / "config.yaml")
        if before != config:
            raise UserError(
                f"expected an empty folder or this very run in {path}, found a run with another "
                "configuration; give another --out"
            )
        if (path / "summary.json").is_file():
            summary: dict[str, Any] = json.loads((path / "summary.json").read_text("utf-8"))
            return summary
        if CheckpointStore(path / "checkpoints").steps():
            run = TrainingRun.from_config(config)
            folder, _ = resume(path, run)
            return train(run, folder, watch=watch, stop=stop)
        shutil.rmtree(path)  # it was killed before its first checkpoint
    return train(
        TrainingRun.from_config(config), RunFolder.create(path, config), watch=watch, stop=stop
    )


def train_reference(
    preset: Preset, folder: Path, *, watch: Watch = silent, stop: Stop = never
) -> tuple[Path, float] | None:
    """Train the reference of rho1 on the next token of right samples, and export its weights.

    Args:
        preset: Settings of the comparison.
        folder: Folder that gets `reference/` and `reference.safetensors`.
        watch: Function called with the run and its newest telemetry.
        stop: Function asked after each block; true ends the training.

    Returns:
        Path of the weights, and the FLOPs that they took; None if `stop` ended it.
    """
    path = folder / "reference"
    summary = train_run(
        reference_config(preset.run, preset.reference), path, watch=watch, stop=stop
    )
    if summary["ended"] == "interrupted":
        return None
    weights = folder / "reference.safetensors"
    if not weights.is_file():
        interop.export(CheckpointStore(path / "checkpoints").load(), weights)
    return weights, float(summary["flops"]["main"])


def play(task: Task, stop: Stop = never, watch: Watch = silent) -> Row | None:
    """Train and measure a cell, and write its row; return None if `stop` ended it.

    An interrupted cell resumes from its newest checkpoint at the next call. Whatever the training
    raises makes a failed cell.
    """
    path = task.folder / "runs" / str(task.seed) / task.method
    row: Row = {"method": task.method, "seed": task.seed, "error": ""}
    try:
        config = config_of(
            task.method,
            task.preset.run,
            seed=task.seed,
            reference=task.reference,
            budget=task.budget,
        )
        summary = train_run(config, path, stop=stop, watch=watch)
        if summary["ended"] == "interrupted":
            return None
        row |= measure(path, summary, task.preset.evaluation, task.reference)
    except Exception as error:  # whatever a method may raise: the other cells are still trained
        row |= {"ended": "failed", "error": describe_error(error)}
    found: Row = plain(row)
    write_json(cell_file(task.folder, task.method, task.seed), found)
    return found


def cell_file(folder: Path, method: str, seed: int) -> Path:
    """Return the path of a cell's row."""
    return folder / "cells" / str(seed) / f"{method}.json"


def read_cell(folder: Path, method: str, seed: int) -> Row | None:
    """Return the row of a cell; None if it was not trained, or its file is torn or foreign."""
    try:
        row = json.loads(cell_file(folder, method, seed).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if isinstance(row, dict) and row.get("method") == method and row.get("seed") == seed:
        return row
    return None


def measure(
    path: Path,
    summary: dict[str, Any],
    settings: EvaluationSettings,
    reference: Path | None,
) -> Row:
    """Measure a finished run: its evaluation, its cost, its convergence and its weights.

    Args:
        path: Folder of the run.
        summary: Summary of the run.
        settings: Settings of the evaluation.
        reference: Weights of the reference, whose losses are the difficulty of tokens; None for
            the rarity of the token.
    """
    run = read_run(path)
    started = time.perf_counter()
    found = evaluate_run(run, settings, reference=_reference_of(run, reference))
    telemetry = telemetry_of(read_telemetry(path, kept_only=True))
    return {
        "ended": summary["ended"],
        "steps": summary["step"],
        "flops": summary["flops"]["main"],
        "training_seconds": summary["ms_per_step"] * summary["step"] / 1000,
        "evaluation_seconds": time.perf_counter() - started,
        "memory": held(run) + step_memory(run),
        "validation_loss": summary["final_validation_loss"],
        **convergence(telemetry),
        **weights(telemetry),
        **{key: found[key] for key in _KEPT},
    }


def held(run: TrainingRun) -> int:
    """Return the bytes of weights and moments."""
    optimizers = getattr(run.optimizer, "optimizers", [run.optimizer])
    moments = [
        value
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    return sum(tensor.nbytes for tensor in (*run.model.parameters(), *moments))


def step_memory(run: TrainingRun) -> int:
    """Return the most bytes that one more training step takes; the run is unchanged."""
    fork = run.fork()
    return most_memory(lambda: fork.advance(1), run.device)


def convergence(telemetry: list[Telemetry]) -> Row:
    """Return gradient norm and variance of the loss over the last quarter of the steps.

    `loss_variance` is the variance of ln loss of head 0 about a straight line.
    """
    table = pd.DataFrame(
        {
            "norm": [one.grad_norm for one in telemetry],
            "loss": [one.objective.get("loss_0", one.loss) for one in telemetry],
        }
    )
    last = table.tail(max(len(table) // _LAST, 3))
    logs = np.log(last["loss"].to_numpy(float))
    places = np.arange(len(logs))
    variance = float("nan")
    if len(logs) > 2 and np.isfinite(logs).all():
        variance = float(np.var(logs - np.polyval(np.polyfit(places, logs, 1), places)))
    return {
        "grad_norm": float(table["norm"].mean()),
        "grad_norm_deviation": float(table["norm"].std()),
        "loss_variance": variance,
    }


def weights(telemetry: list[Telemetry]) -> Row:
    """Return the means of what the objective measured over the last quarter of the steps.

    Equal weights are not measured by the objective: their entropy and sample size are 1.
    """
    last = telemetry[-max(len(telemetry) // _LAST, 1) :]
    found: Row = {}
    for name in _MEASURED:
        values = [one.objective[name] for one in last if name in one.objective]
        found[name] = float(np.mean(values)) if values else None
    if found["weight_entropy"] is None:
        found |= {"weight_entropy": 1.0, "effective_sample_size": 1.0, "kept_share": 1.0}
    return found


def _reference_of(run: TrainingRun, path: Path | None) -> Any:
    """Return the reference as a model; None without a path."""
    if path is None:
        return None
    from trainenv.training.objectives import exported_model

    return exported_model(path, run.model)


def needs_reference(preset: Preset) -> bool:
    """Return True if a method of the comparison needs a reference."""
    return any(method in NEEDS_REFERENCE for method in preset.methods)
