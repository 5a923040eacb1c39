"""Panel of the branch tree: the run is the middle line, the branches of a decision form a fan.

Along the steps, branches are drawn larger than their scale: 25 steps of 100 000 would be invisible.
Across, they are drawn by the measured change of the loss: worse than no intervention goes up,
better goes down, as losses do. The accepted branch leads back into the line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from trainenv.records.decision_files import accepted_branch
from trainenv.report.drawing import formatting
from trainenv.report.drawing.panels import LEFT, Frame, title
from trainenv.report.drawing.svg import element, label, line, titled
from trainenv.report.run.run_record import RunRecord, rollbacks

Point = tuple[float, float]
NARROWEST = 9.0  # pixels of a fan; a narrower one is drawn as a mark
NOTE = "each fan is a decision; its length is not to scale"


def tree_panel(record: RunRecord, frame: Frame, top: float, height: float) -> str:
    """Draw the panel from `top` downwards: its title, then `height` pixels of tree."""
    middle = top + 16 + height / 2
    reach = height / 2 - 14
    across = usual(record.decisions)
    widest = frame.fitting(58.0, 40.0, 26.0)
    starts = [frame.steps.inside(decision["step"]) for decision in record.decisions]
    fans = []
    for place, (decision, x) in enumerate(zip(record.decisions, starts)):
        gap = min(
            (other - x for other in starts[place + 1 :] if other - x > 0.5), default=widest / 0.86
        )
        fans.append(
            fan(decision, x, middle, min(widest, 0.86 * gap, frame.width - 4 - x), reach, across)
        )
    note = NOTE
    if frame.width < 500:
        note = ""
    return "".join(
        (
            title(top, "Branch tree", note),
            label(LEFT - 7, middle - reach + 4, "worse", "tick", "end"),
            label(LEFT - 7, middle + 3.5, "same", "tick", "end"),
            label(LEFT - 7, middle + reach + 4, "better", "tick", "end"),
            line(frame.steps(0), middle, frame.steps.inside(record.last_step), middle, "trunk"),
            *_rewinds(record, frame, middle - reach - 4),
            *fans,
        )
    )


def usual(decisions: Sequence[Mapping[str, Any]]) -> float:
    """Return the median size of a measured change, which is the unit across."""
    sizes = [
        abs(delta)
        for d in decisions
        for b in d["branches"]
        if (delta := formatting.finite(b.get("delta"))) and not b.get("control")
    ]
    return median(sizes or [1.0])


def fan(
    decision: Mapping[str, Any], x: float, middle: float, room: float, reach: float, across: float
) -> str:
    """Draw the branches of one decision as curves from (x, middle), `room` pixels long."""
    node_class = "node"
    mark_class = "passed"
    size = 4
    if accepted_branch(decision) is not None:
        node_class = "node on"
        mark_class = "accepted"
        size = 7
    step = formatting.whole(decision["step"])
    about = titled(f"decision {decision['number']} at step {step}: {decision.get('reason') or ''}")
    if room < NARROWEST:
        ends = {"x1": x, "x2": x, "y1": middle - size, "y2": middle + size}
        return element("line", about, **ends, class_=mark_class)
    # The accepted one comes last, so that it is on top.
    branches = sorted(decision["branches"], key=lambda branch: branch.get("fate") == "accepted")
    curves = [
        _curve(branch, x, middle, room, reach, across)
        for branch in branches
        if not branch.get("control")
    ]
    node = element("circle", about, cx=x, cy=middle, r=3.4, class_=node_class)
    return element("g", *curves, node, class_="fan")


def _curve(
    branch: Mapping[str, Any], x: float, middle: float, room: float, reach: float, across: float
) -> str:
    fate = str(branch.get("fate"))
    delta = formatting.finite(branch.get("delta"))
    height = -reach
    if delta is not None:
        height *= math.tanh(0.55 * math.asinh(delta / across))
    y = middle + height
    name = formatting.sequence(branch.get("interventions") or [])
    about = titled(f"{name}: {formatting.change(delta)}, {fate}. {formatting.reason(branch)}")
    if fate == "accepted":
        quarter = x + 0.25 * room
        half = x + 0.5 * room
        path = _bezier((x, middle), (quarter, middle), (quarter, y), (half, y))
        path += f"S{x + 0.75 * room:.1f} {middle:.1f} {x + room:.1f} {middle:.1f}"
        dot = element("circle", about, cx=half, cy=y, r=3.2, class_="tip accepted")
        return element("path", about, d=path, class_="accepted") + dot
    bend = 0.5 * room
    path = _bezier((x, middle), (x + bend, middle), (x + 0.4 * bend, y), (x + room - 3, y))
    if fate == "failed" or delta is None:
        cross = f"M{x + room - 6:.1f} {y - 3:.1f}l6 6m0 -6l-6 6"
        tip = element("path", about, d=cross, class_="cross")
        return element("path", about, d=path, class_="failed") + tip
    class_ = "rejected"
    if fate == "passed":
        class_ = "passed"
    tip = element("circle", about, cx=x + room - 3, cy=y, r=1.9, class_=f"tip {class_}")
    return element("path", about, d=path, class_=class_) + tip


def _bezier(start: Point, first: Point, second: Point, end: Point) -> str:
    """Write a cubic Bézier curve as the beginning of a path."""
    points = " ".join(f"{x:.1f} {y:.1f}" for x, y in (first, second, end))
    return f"M{start[0]:.1f} {start[1]:.1f}C{points}"


def _rewinds(record: RunRecord, frame: Frame, top: float) -> list[str]:
    """Draw rollbacks as arrows back along the upper edge."""
    parts = []
    for rollback in rollbacks(record):
        start = frame.steps.inside(rollback.start)
        end = frame.steps.inside(rollback.to)
        y = top - min(9.0, 3 + 0.2 * (start - end))
        path = _bezier((start, top), (start, y), (end, y), (end, top))
        arrow = f"{path}m-3.4 -2.6l3.2 3l3.6 -2.4"
        parts.append(element("path", titled(rollback.about), d=arrow, class_="back"))
    return parts
