"""TensorBoard: a run as event files, live or from its record.

Below the folder `tensorboard` of the run: `.` has the kept history over steps (a rollback removes
what it has undone), `by_compute` the same over millions of FLOPs, `decisions` the table of
decisions, and `branches/…` the steps of each branch.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.report.drawing import formatting
from trainenv.report.run.decision_card import outcome
from trainenv.report.run.run_record import RunRecord, read_run
from trainenv.tools.optional import require
from trainenv.trackers.contract import (
    DECISION_COLUMNS,
    MEGA,
    READINGS,
    TAGS,
    VALIDATION,
    RunStart,
    Step,
    branches_of,
    decision_row,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoard:
    """Tracker that writes event files.

    Raises:
        UserError: The package `tensorboard` is not installed.
    """

    def __init__(self) -> None:
        require("tensorboard", "the tracker tensorboard")
        self._folder = Path()
        self._flops = 0.0
        self._rows: list[dict[str, Any]] = []
        self._writers: dict[str, SummaryWriter] = {}

    def start(self, run: RunStart) -> Mapping[str, str]:
        """Open the event files. In a resumed run they end before its first step."""
        self._folder = run.folder / FOLDER
        self._open(".", run.step + 1)
        self._open("by_compute")
        return {}

    def steps(self, steps: Sequence[Step]) -> None:
        """Write the numbers of each step, over steps and over compute."""
        for one in steps:
            self._flops = one.flops
            for tag, value in one.values.items():
                self._writers["."].add_scalar(tag, value, one.step)
            if "loss/training" in one.values:
                loss = one.values["loss/training"]
                self._writers["by_compute"].add_scalar("loss/training", loss, self._compute)

    def event(self, record: Mapping[str, Any]) -> None:
        """Write a validation loss or a decision; begin new files where the run was rolled back."""
        kind = record["kind"]
        loss = formatting.finite(record.get("loss"))
        if kind in VALIDATION and loss is not None:
            self._writers["."].add_scalar(VALIDATION[kind], loss, record["step"])
            self._writers["by_compute"].add_scalar(VALIDATION[kind], loss, self._compute)
        elif kind == "rewind":
            self._open(".", record["detail"]["to"] + 1)
        elif decision := record.get("decision"):
            self._decision(decision)
        for writer in self._writers.values():
            writer.flush()

    def finish(self, summary: Mapping[str, Any] | None, report: Path | None) -> None:
        """Close the event files, and put the report next to them."""
        for writer in self._writers.values():
            writer.close()
        if report is not None:
            shutil.copy(report, self._folder / "report.html")

    @property
    def _compute(self) -> int:
        """Compute so far, in millions of FLOPs: an axis of TensorBoard has whole numbers."""
        return round(self._flops / MEGA)

    def _open(self, name: str, purge_step: int | None = None) -> None:
        """Open a writer, in place of one that is open; what is at `purge_step` or later is void."""
        from torch.utils.tensorboard import SummaryWriter

        if before := self._writers.pop(name, None):
            before.close()
        suffix = f".{len(list((self._folder / name).glob('events.*')))}"
        self._writers[name] = SummaryWriter(
            str(self._folder / name), purge_step=purge_step, flush_secs=5, filename_suffix=suffix
        )

    def _decision(self, decision: Mapping[str, Any]) -> None:
        """Write the table of decisions anew, and the branches of the newest."""
        from torch.utils.tensorboard import SummaryWriter

        self._rows.append(decision_row(decision))
        if "decisions" not in self._writers:
            self._open("decisions")
        writer = self._writers["decisions"]
        writer.add_text("decisions", _table(self._rows), self._rows[-1]["number"])
        for branch in branches_of(decision):
            place = f"branches/decision-{branch.decision}/branch-{branch.place}"
            with SummaryWriter(str(self._folder / place)) as one:
                one.add_text("branch", f"{branch.name} ({branch.fate})")
                for step, loss in branch.points:
                    one.add_scalar("loss/training", loss, step)


def write_tensorboard(folder: Path, out: Path) -> int:
    """Write an event file of a run from its record; return the number of scalars in it.

    Args:
        folder: Folder of the run.
        out: Folder for the event file.

    Raises:
        UserError: The folder is not that of a run, or the package `tensorboard` is not installed.
    """
    record = read_run(folder)
    require("tensorboard", "TensorBoard output")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(out)) as writer:
        scalars = _scalars(record)
        for tag, value, step in scalars:
            writer.add_scalar(tag, value, step)
        for decision in record.decisions:
            text = f"{outcome(decision)}. {formatting.sentence(decision.get('reason') or '')}"
            writer.add_text("decisions", text, decision["step"])
    return len(scalars)


def _scalars(record: RunRecord) -> list[tuple[str, float, int]]:
    """List tag, value and step of all finite values, in the order of the steps."""
    kept = record.kept
    found = []
    for column, tag in (TAGS | READINGS).items():
        if column not in kept:
            continue
        pairs = zip(kept[column].tolist(), kept["step"].tolist())
        found += [
            (tag, float(value), int(step))
            for value, step in pairs
            if value is not None and math.isfinite(value)
        ]
    validation = [(v["loss"], v["step"]) for v in record.validation if v["kept"]]
    found += [
        (VALIDATION["validation"], float(loss), int(step))
        for loss, step in validation
        if formatting.finite(loss) is not None
    ]
    return sorted(found, key=lambda scalar: scalar[2])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write decisions as a Markdown table."""
    lines = [" | ".join(DECISION_COLUMNS), " | ".join("---" for _ in DECISION_COLUMNS)]
    lines += [" | ".join(_cell(row[name]) for name in DECISION_COLUMNS) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
