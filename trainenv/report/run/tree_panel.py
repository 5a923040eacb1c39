"""The branch tree on the axis of steps: the run is the middle line, each verification fans out from its step.

Branches are drawn larger than life along the steps (25 steps of 100 000 could not be seen) and,
across, by what they measured: worse than doing nothing goes up, better goes down, as losses do. A
branch that became the run leads back into the line.
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
from trainenv.report.run.run_record import RunRecord

NARROWEST = 9.0  # pixels below which a fan is a mark: nothing in it could be told apart


def tree_panel(record: RunRecord, frame: Frame, top: float, height: float) -> str:
    """The panel, from `top` downwards: its title, then `height` pixels of tree."""
    middle = top + 16 + height / 2
    reach = height / 2 - 14
    across = usual(record.decisions)
    widest = 58.0 if frame.width > 900 else 40.0 if frame.width > 500 else 26.0
    starts = [frame.steps.inside(decision["step"]) for decision in record.decisions]
    fans = []
    for place, (decision, x) in enumerate(zip(record.decisions, starts)):
        gap = min(
            (other - x for other in starts[place + 1 :] if other - x > 0.5), default=widest / 0.86
        )
        fans.append(
            fan(decision, x, middle, min(widest, 0.86 * gap, frame.width - 4 - x), reach, across)
        )
    return "".join(
        (
            title(
                top,
                "Branch tree",
                ""
                if frame.width < 500
                else "each fan is a verification; lengths along the steps are not to scale",
            ),
            label(LEFT - 7, middle - reach + 4, "worse", "tick", "end"),
            label(LEFT - 7, middle + 3.5, "same", "tick", "end"),
            label(LEFT - 7, middle + reach + 4, "better", "tick", "end"),
            line(frame.steps(0), middle, frame.steps.inside(record.last_step), middle, "trunk"),
            *_rewinds(record, frame, middle - reach - 4),
            *fans,
        )
    )


def usual(decisions: Sequence[Mapping[str, Any]]) -> float:
    """The median size of a measured difference, by which all are drawn."""
    sizes = [
        abs(delta)
        for d in decisions
        for b in d["branches"]
        if (delta := formatting.finite(b.get("delta"))) and not b.get("control")
    ]
    return median(sizes) if sizes else 1.0


def fan(
    decision: Mapping[str, Any], x: float, middle: float, room: float, reach: float, across: float
) -> str:
    """The branches of one decision as curves from (x, middle), `room` pixels long."""
    branches = sorted(
        decision["branches"], key=lambda branch: branch.get("fate") == "accepted"
    )  # the accepted one on top
    became = accepted_branch(decision) is not None
    said = f"decision {decision['number']} at step {formatting.whole(decision['step'])}: {decision.get('reason') or ''}"
    if room < NARROWEST:
        size = 7 if became else 4
        return element(
            "line",
            titled(said),
            x1=x,
            x2=x,
            y1=middle - size,
            y2=middle + size,
            class_="accepted" if became else "passed",
        )
    curves = [
        _curve(branch, x, middle, room, reach, across)
        for branch in branches
        if not branch.get("control")
    ]
    node = element(
        "circle", titled(said), cx=x, cy=middle, r=3.4, class_="node on" if became else "node"
    )
    return element("g", *curves, node, class_="fan")


def _curve(
    branch: Mapping[str, Any], x: float, middle: float, room: float, reach: float, across: float
) -> str:
    fate = str(branch.get("fate"))
    delta = formatting.finite(branch.get("delta"))
    failed = fate == "failed" or delta is None
    height = -reach if delta is None else -reach * math.tanh(0.55 * math.asinh(delta / across))
    y = middle + height
    bend = 0.5 * room
    about = titled(
        f"{formatting.sequence(branch.get('interventions') or [])}: {formatting.change(delta)}, {fate}. {formatting.reason(branch)}"
    )
    if fate == "accepted":
        quarter = x + 0.25 * room
        half = x + 0.5 * room
        path = f"M{x:.1f} {middle:.1f}C{quarter:.1f} {middle:.1f} {quarter:.1f} {y:.1f} {half:.1f} {y:.1f}"
        path += f"S{x + 0.75 * room:.1f} {middle:.1f} {x + room:.1f} {middle:.1f}"
        dot = element("circle", about, cx=half, cy=y, r=3.2, class_="tip accepted")
        return element("path", about, d=path, class_="accepted") + dot
    path = f"M{x:.1f} {middle:.1f}C{x + bend:.1f} {middle:.1f} {x + 0.4 * bend:.1f} {y:.1f} {x + room - 3:.1f} {y:.1f}"
    class_ = "failed" if failed else "passed" if fate == "passed" else "rejected"
    if failed:
        tip = element(
            "path", about, d=f"M{x + room - 6:.1f} {y - 3:.1f}l6 6m0 -6l-6 6", class_="cross"
        )
    else:
        tip = element("circle", about, cx=x + room - 3, cy=y, r=1.9, class_=f"tip {class_}")
    return element("path", about, d=path, class_=class_) + tip


def _rewinds(record: RunRecord, frame: Frame, top: float) -> list[str]:
    """Arrows back along the upper edge."""
    parts = []
    for event in record.events:
        to = formatting.finite((event.get("detail") or {}).get("to"))
        if event["kind"] != "rewind" or to is None:
            continue
        start = frame.steps.inside(event["step"])
        end = frame.steps.inside(to)
        lift = min(9.0, 3 + 0.2 * (start - end))
        path = f"M{start:.1f} {top:.1f}C{start:.1f} {top - lift:.1f} {end:.1f} {top - lift:.1f} {end:.1f} {top:.1f}"
        about = titled(
            f"rewound from step {formatting.whole(event['step'])} to {formatting.whole(to)}"
        )
        parts.append(element("path", about, d=f"{path}m-3.4 -2.6l3.2 3l3.6 -2.4", class_="back"))
    return parts
