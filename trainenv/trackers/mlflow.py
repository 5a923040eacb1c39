"""MLflow: a run with its branches as child runs.

It writes where MLflow itself would: to `MLFLOW_TRACKING_URI`, or to the store that MLflow makes in
the present folder. MLflow keeps every value of a step; of steps that were trained twice the newest
one counts, and the metric `line` tells them apart.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.report.drawing import formatting
from trainenv.tools.optional import require
from trainenv.trackers.contract import (
    MEGA,
    VALIDATION,
    RunStart,
    Step,
    branches_of,
    decision_row,
)
from trainenv.trackers.flat import flat

if TYPE_CHECKING:
    from mlflow.entities import Metric

EXPERIMENT = "trainenv"
_BATCH = 1000  # most metrics of one request, as MLflow allows
_LONGEST = 500  # characters of a parameter, as MLflow allows
_PARAMETERS = 100  # of one request


class MLflow:
    """Tracker that writes to an MLflow store.

    Raises:
        UserError: The package `mlflow` is not installed.
    """

    def __init__(self) -> None:
        require("mlflow", "the tracker mlflow")
        self._client: Any = None
        self._experiment = ""
        self._run = ""
        self._flops = 0.0

    def start(self, run: RunStart) -> Mapping[str, str]:
        """Open the run, or the same one again if it is resumed."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would ask the network
        from mlflow import MlflowClient
        from mlflow.entities import Param

        if "MLFLOW_LOGGING_LEVEL" not in os.environ:
            logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            self._experiment = self._client.create_experiment(EXPERIMENT)
        else:
            self._experiment = found.experiment_id
        if known := run.remembered.get("run_id"):
            self._run = known
            self._client.update_run(known, status="RUNNING")
            return {"run_id": known}
        self._run = self._client.create_run(self._experiment, run_name=run.name).info.run_id
        parameters = [Param(key, value[:_LONGEST]) for key, value in flat(run.config).items()]
        for start in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(self._run, params=parameters[start : start + _PARAMETERS])
        self._client.set_tag(self._run, "folder", str(run.folder))
        return {"run_id": self._run}

    def steps(self, steps: Sequence[Step]) -> None:
        """Log the numbers of each step, and the loss over compute."""
        metrics = []
        for one in steps:
            self._flops = one.flops
            values = {**one.values, "line": float(one.line), "compute/flops": one.flops}
            metrics += [_metric(tag, value, one.step) for tag, value in values.items()]
            if "loss/training" in one.values:
                loss = one.values["loss/training"]
                metrics.append(_metric("by_compute/loss/training", loss, self._compute))
        self._log(self._run, metrics)

    def event(self, record: Mapping[str, Any]) -> None:
        """Log a validation loss, or a decision as a row of a table and its branches as runs."""
        kind = record["kind"]
        loss = formatting.finite(record.get("loss"))
        if kind in VALIDATION and loss is not None:
            tag = VALIDATION[kind]
            self._log(
                self._run,
                [
                    _metric(tag, loss, record["step"]),
                    _metric(f"by_compute/{tag}", loss, self._compute),
                ],
            )
        elif decision := record.get("decision"):
            row = {name: [value] for name, value in decision_row(decision).items()}
            self._client.log_table(self._run, row, "decisions.json")
            self._branches(decision)

    def finish(self, summary: Mapping[str, Any] | None, report: Path | None) -> None:
        """Attach the report and close the run."""
        if report is not None:
            self._client.log_artifact(self._run, str(report))
        status = "FAILED"
        if summary is not None:
            ends = {"interrupted": "KILLED", "diverged": "FAILED"}
            status = ends.get(str(summary.get("ended")), "FINISHED")
        self._client.set_terminated(self._run, status)

    @property
    def _compute(self) -> int:
        """Compute so far, in millions of FLOPs: an axis of MLflow has whole numbers."""
        return round(self._flops / MEGA)

    def _branches(self, decision: Mapping[str, Any]) -> None:
        for branch in branches_of(decision):
            tags = {
                "mlflow.parentRunId": self._run,
                "fate": branch.fate,
                "decision": str(branch.decision),
                "branch": str(branch.place),
            }
            child = self._client.create_run(self._experiment, tags=tags, run_name=branch.name)
            metrics = [_metric("loss/training", loss, step) for step, loss in branch.points]
            self._log(child.info.run_id, metrics)
            self._client.set_terminated(child.info.run_id)

    def _log(self, run: str, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(run, metrics=metrics[start : start + _BATCH])


def _metric(tag: str, value: float, step: int) -> Metric:
    from mlflow.entities import Metric

    return Metric(tag, value, time.time_ns() // 1_000_000, step)
