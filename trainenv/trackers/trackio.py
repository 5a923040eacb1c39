"""Trackio: a run with its branches as runs of one group, in Trackio's store on this machine.

`trackio show --project trainenv` shows it. The x axis is `step`; `compute/flops` can be chosen in
its place. Steps that were trained twice differ in `line`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainenv.report.drawing import formatting
from trainenv.tools.optional import require
from trainenv.trackers.contract import (
    DECISION_COLUMNS,
    VALIDATION,
    RunStart,
    Step,
    branches_of,
    decision_row,
)

PROJECT = "trainenv"


class Trackio:
    """Tracker that writes to Trackio.

    Raises:
        UserError: The package `trackio` is not installed.
    """

    def __init__(self) -> None:
        require("trackio", "the tracker trackio")
        self._run: Any = None
        self._name = ""
        self._flops = 0.0
        self._rows: list[dict[str, Any]] = []
        self._waiting: list[Mapping[str, Any]] = []
        self._project = os.environ.get("TRACKIO_PROJECT", PROJECT)

    def start(self, run: RunStart) -> Mapping[str, str]:
        """Open the run, or the same one again if it is resumed."""
        known = run.remembered.get("name")
        self._name = known or f"{run.name}-{secrets.token_hex(3)}"
        resume = "never"
        if known:
            resume = "allow"
        self._run = self._open(self._name, dict(run.config), resume=resume)
        return {"name": self._name}

    def steps(self, steps: Sequence[Step]) -> None:
        """Log the numbers of each step."""
        for one in steps:
            self._flops = one.flops
            values = {**one.values, "line": one.line, "compute/flops": one.flops}
            self._run.log(values, step=one.step)

    def event(self, record: Mapping[str, Any]) -> None:
        """Log a validation loss, or keep a decision: Trackio has one writer at a time."""
        kind = record["kind"]
        loss = formatting.finite(record.get("loss"))
        if kind in VALIDATION and loss is not None:
            values = {VALIDATION[kind]: loss, "compute/flops": self._flops}
            self._run.log(values, step=record["step"])
        elif decision := record.get("decision"):
            import trackio

            self._rows.append(decision_row(decision))
            self._waiting.append(decision)
            rows = {name: [row[name] for row in self._rows] for name in DECISION_COLUMNS}
            self._run.log({"decisions": trackio.Table(dataframe=_frame(rows))}, step=record["step"])

    def finish(self, summary: Mapping[str, Any] | None, report: Path | None) -> None:
        """Attach the report, close the run, and write the branches as runs of its group."""
        import trackio

        if report is not None:
            text = report.read_text(encoding="utf-8")
            self._run.log({"report": trackio.Html(text)})
        self._run.finish()
        for decision in self._waiting:
            for branch in branches_of(decision):
                config = {"decision": branch.decision, "branch": branch.place, "fate": branch.fate}
                one = self._open(f"{self._name}/{branch.name}", config, resume="never")
                for step, loss in branch.points:
                    one.log({"loss/training": loss}, step=step)
                one.finish()

    def _open(self, name: str, config: Mapping[str, Any], *, resume: str) -> Any:
        import trackio

        return trackio.init(
            project=self._project,
            name=name,
            group=self._name,
            config=dict(config),
            resume=resume,
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )


def _frame(rows: Mapping[str, Sequence[Any]]) -> Any:
    import pandas as pd

    return pd.DataFrame(rows)
