"""Figures of a run: panels that share the step axis, drawn once for each width of screen."""

from __future__ import annotations

from collections.abc import Callable

from trainenv.report.drawing import formatting
from trainenv.report.drawing.panels import LEFT, RIGHT, WIDTHS, Frame, step_axis
from trainenv.report.drawing.svg import drawing, element, line
from trainenv.report.run.index_panel import index_panel, rate_panel
from trainenv.report.run.loss_panel import loss_panel
from trainenv.report.run.run_record import RunRecord
from trainenv.report.run.tree_panel import tree_panel


def run_figure(record: RunRecord) -> str:
    """Draw the loss and the branch tree."""
    return _each_width(record, _loss_and_tree)


def index_figure(record: RunRecord) -> str:
    """Draw the uncertainty index, its parts and the learning rate."""
    return _each_width(record, _index_and_rate)


def _loss_and_tree(record: RunRecord, width: float) -> str:
    frame = Frame.of(width, _furthest(record))
    tall = frame.fitting(300.0, 300.0, 240.0)
    parts = [loss_panel(record, frame, 14, tall)]
    top = 14 + 16 + tall + 34
    bottom = top - 24
    if record.decisions:
        parts += [_drops(record, frame, 30, top + 16 + 65), tree_panel(record, frame, top, 130)]
        bottom = top + 16 + 130
    parts.append(step_axis(frame, bottom))
    decisions = formatting.counted(len(record.decisions), "decision")
    about = f"Loss over {formatting.whole(record.last_step)} steps, with {decisions}"
    return _drawn(frame, bottom + 36, about, parts)


def _furthest(record: RunRecord) -> int:
    """Return the highest step that is drawn."""
    if record.left_alone is None:
        return record.furthest
    return max(record.furthest, record.left_alone.last_step)


def _index_and_rate(record: RunRecord, width: float) -> str:
    frame = Frame.of(width, record.furthest)
    parts = [index_panel(record, frame, 14, 120, "index")]
    top = 14 + 17 + 120 + 30.0
    for column in ("volatility", "entropy", "disagreement"):
        parts.append(index_panel(record, frame, top, 54, column))
        top += 17 + 54 + 28
    parts += [rate_panel(record, frame, top, 54), step_axis(frame, top + 17 + 54)]
    return _drawn(
        frame,
        top + 17 + 54 + 36,
        "Uncertainty index, its parts and the learning rate over steps",
        parts,
    )


def _drops(record: RunRecord, frame: Frame, top: float, bottom: float) -> str:
    """Draw thin lines from the loss down to the fans; none if there are more than 80."""
    xs = {round(frame.steps.inside(decision["step"]), 1) for decision in record.decisions}
    if len(xs) > 80:
        return ""
    return "".join(line(x, top, x, bottom, "drop") for x in sorted(xs))


def _each_width(record: RunRecord, drawn: Callable[[RunRecord, float], str]) -> str:
    return "".join(
        element("div", drawn(record, width), class_=f"only-{name}")
        for name, width in WIDTHS.items()
    )


def _drawn(frame: Frame, height: float, about: str, parts: list[str]) -> str:
    return drawing(
        frame.width,
        height,
        *parts,
        class_="chart steps",
        about=about,
        data_last=str(int(frame.steps.high)),
        data_left=LEFT,
        data_right=frame.width - RIGHT,
        data_width=frame.width,
    )
