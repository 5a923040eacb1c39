"""Weights & Biases: a run with its branches as runs of one group.

It writes offline, into `wandb/` in the present folder or in `WANDB_DIR`; `wandb sync` sends it
later. `WANDB_MODE=online` sends at once. The x axis is `step`; `compute/flops` can be chosen in its
place. Steps that were trained twice differ in `line`.
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


class WandB:
    """Tracker that writes a run of Weights & Biases.

    Raises:
        UserError: The package `wandb` is not installed.
    """

    def __init__(self) -> None:
        require("wandb", "the tracker wandb")
        self._run: Any = None
        self._group = ""
        self._flops = 0.0
        self._rows: list[dict[str, Any]] = []

    def start(self, run: RunStart) -> Mapping[str, str]:
        """Open the run, or the same one again if it is resumed."""
        known = run.remembered.get("id")
        self._group = known or secrets.token_hex(4)
        resume = None
        if known:
            resume = "allow"
        self._run = self._open(
            id=self._group, name=run.name, config=dict(run.config), job_type="run", resume=resume
        )
        return {"id": self._group}

    def steps(self, steps: Sequence[Step]) -> None:
        """Log the numbers of each step."""
        for one in steps:
            self._flops = one.flops
            self._run.log(
                {**one.values, "step": one.step, "line": one.line, "compute/flops": one.flops}
            )

    def event(self, record: Mapping[str, Any]) -> None:
        """Log a validation loss, or a decision as a row of a table and its branches as runs."""
        kind = record["kind"]
        loss = formatting.finite(record.get("loss"))
        if kind in VALIDATION and loss is not None:
            self._run.log(
                {
                    VALIDATION[kind]: loss,
                    "step": record["step"],
                    "line": record["line"],
                    "compute/flops": self._flops,
                }
            )
        elif decision := record.get("decision"):
            self._rows.append(decision_row(decision))
            self._run.log({"decisions": self._table(), "step": self._rows[-1]["step"]})
            self._branches(decision)

    def finish(self, summary: Mapping[str, Any] | None, report: Path | None) -> None:
        """Attach the report and close the run."""
        import wandb

        if report is not None:
            self._run.log({"report": wandb.Html(report.read_text(encoding="utf-8"))})
        self._run.finish(exit_code=int(summary is None))

    def _table(self) -> Any:
        import wandb

        rows: list[Any] = [[row[name] for name in DECISION_COLUMNS] for row in self._rows]
        return wandb.Table(columns=list(DECISION_COLUMNS), data=rows)

    def _branches(self, decision: Mapping[str, Any]) -> None:
        for branch in branches_of(decision):
            config = {
                "decision": branch.decision,
                "branch": branch.place,
                "fate": branch.fate,
                "parent": self._group,
            }
            one = self._open(name=branch.name, config=config, job_type="branch")
            for step, loss in branch.points:
                one.log({"loss/training": loss, "step": step})
            one.finish(exit_code=0)

    def _open(self, **about: Any) -> Any:
        """Open a run of the group, with `step` as its x axis."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would ask the network
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=self._group,
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
            **about,
        )
        run.define_metric("step")
        run.define_metric("compute/flops")
        run.define_metric("*", step_metric="step")
        return run
