"""Summary of a run: its result, as it is written when the run has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainenv.records.faults import faults_of
from trainenv.records.run_folder import read_events, read_full_validation, read_validation
from trainenv.types import Run


def summary_of(run: Run, folder: Path, ended: str, taken: int, seconds: float) -> dict[str, Any]:
    """Return the summary of a run. Alarms and rewinds are counted over all lines of its history.

    Args:
        run: Run after its last step.
        folder: Folder that has recorded it.
        ended: Reason of the end: `budget spent`, `diverged` or `interrupted`.
        taken: Number of steps that this process has trained.
        seconds: Wall-clock time that they took.
    """
    events = read_events(folder)
    kinds = [event["kind"] for event in events]
    losses: list[float] = [validation["loss"] for validation in read_validation(folder)]
    final = None
    if ended != "diverged":
        final = losses[-1]
    return {
        "name": run.config.name,
        "seed": run.config.seed,
        "uniform_loss": run.uniform_loss,
        "fingerprint": run.fingerprint(),
        "ended": ended,
        "step": run.step,
        "first_validation_loss": losses[0],
        "final_validation_loss": final,
        **_final_losses(run, folder, ended),
        "final_learning_rate": run.optimizer.param_groups[0]["lr"],
        "fired": kinds.count("fired"),
        "rewinds": kinds.count("rewind"),
        "faults": faults_of(events),
        "flops": run.ledger.as_dict(),
        "seconds": round(seconds, 2),
        "ms_per_step": round(1000 * seconds / max(taken, 1), 3),
        "folder": str(folder),
    }


def _final_losses(run: Run, folder: Path, ended: str) -> dict[str, float | None]:
    """Return the losses of the summary that only some configurations ask for.

    The test part is evaluated now, and never for a run that can still be resumed.
    """
    found: dict[str, float | None] = {}
    if run.config.validation.full_every:
        found["full_validation_loss"] = None
        losses = [validation["loss"] for validation in read_full_validation(folder)]
        if losses and ended != "diverged":
            found["full_validation_loss"] = losses[-1]
    if run.has_test_set and ended != "interrupted":
        found["test_loss"] = run.test_loss()
    return found
