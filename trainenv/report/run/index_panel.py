"""The uncertainty index and its three axes over steps, and the learning rate."""

from __future__ import annotations

import math

import numpy as np

from trainenv.report.drawing import formatting
from trainenv.report.drawing.downsampling import Line, bucketed, cloud, floats
from trainenv.report.drawing.panels import Frame, axis, title
from trainenv.report.drawing.svg import Scale, dots, polyline
from trainenv.report.run.run_record import RunRecord

# z; what is beyond lies on the edge
LOWEST = -3.0
HIGHEST = 10.0


def index_panel(record: RunRecord, frame: Frame, top: float, height: float, column: str) -> str:
    """One of `index`, `volatility`, `entropy`, `disagreement`: dots of all steps, the mean as a line, and the threshold."""
    kept = record.kept
    steps = floats(kept["step"])
    values = floats(kept[column])
    known = values[np.isfinite(values)]
    limits = floats(kept["threshold"])
    limit = float(limits[np.isfinite(limits)].max(initial=0.0)) if column == "index" else 0.0
    highest = min(max(4.0, limit + 0.5, float(known.max()) + 0.3 if len(known) else 4.0), HIGHEST)
    lowest = max(min(-1.0, float(known.min()) - 0.3 if len(known) else -1.0), LOWEST)
    scale = Scale(lowest, highest, top + 17 + height, top + 17)
    lost = record.steps[~record.steps["kept"]]
    ghosts = cloud(floats(lost["step"]), floats(lost[column]), frame.points // 2)
    parts = [
        title(top, {"index": "Uncertainty index"}.get(column, column.capitalize()), "z"),
        axis(frame, scale, 3 if height > 60 else 2, lambda value: formatting.number(value, 0)),
        dots(_placed(ghosts, frame, scale), "dot lost"),
        dots(_placed(cloud(steps, values, 2 * frame.points), frame, scale), "dot axis-dot"),
        polyline(
            _placed(bucketed(steps, values, max(frame.points // 4, 8)), frame, scale),
            f"axis-line {column}",
        ),
    ]
    if column == "index":
        parts.append(
            polyline(_placed(bucketed(steps, limits, frame.points // 2), frame, scale), "threshold")
        )
    return "".join(parts)


def rate_panel(record: RunRecord, frame: Frame, top: float, height: float) -> str:
    """The learning rate of each kept step, from 0."""
    kept = record.kept
    steps = floats(kept["step"])
    rates = floats(kept["lr"])
    known = rates[np.isfinite(rates)]
    scale = Scale(
        0.0,
        1.05 * float(known.max()) if len(known) and known.max() > 0 else 1.0,
        top + 17 + height,
        top + 17,
    )
    return "".join(
        (
            title(top, "Learning rate"),
            axis(frame, scale, 2, lambda value: formatting.rate(value) if value else "0"),
            polyline(_placed(bucketed(steps, rates, frame.points), frame, scale), "smooth"),
        )
    )


def _placed(points: Line, frame: Frame, scale: Scale) -> list[tuple[float, float]]:
    return [
        (frame.steps(x), scale.inside(y) if math.isfinite(y) else math.nan) for x, y in zip(*points)
    ]
