"""A run for TensorBoard: scalars of the kept history, validation losses, decisions as text."""

from __future__ import annotations

import math
from pathlib import Path

from trainenv.report.drawing import formatting
from trainenv.report.run.decision_card import outcome
from trainenv.report.run.run_record import RunRecord, read_run
from trainenv.tools.optional import require

TAGS = {
    "loss": "loss/training",
    "lr": "learning_rate",
    "index": "uncertainty/index",
    "volatility": "uncertainty/volatility",
    "entropy": "uncertainty/entropy",
    "disagreement": "uncertainty/disagreement",
}


def write_tensorboard(folder: Path, out: Path) -> int:
    """Write an event file of a run; return the number of scalars in it.

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
    for column, tag in TAGS.items():
        pairs = zip(kept[column].tolist(), kept["step"].tolist())
        found += [
            (tag, float(value), int(step))
            for value, step in pairs
            if value is not None and math.isfinite(value)
        ]
    validation = [(v["loss"], v["step"]) for v in record.validation if v["kept"]]
    found += [
        ("loss/validation", float(loss), int(step))
        for loss, step in validation
        if formatting.finite(loss) is not None
    ]
    return sorted(found, key=lambda scalar: scalar[2])
