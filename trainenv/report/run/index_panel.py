"""Panels of the uncertainty index, its three parts and the learning rate over steps."""

from __future__ import annotations

import numpy as np

from trainenv.report.drawing import formatting
from trainenv.report.drawing.downsampling import Line, bucketed, cloud, floats
from trainenv.report.drawing.panels import Frame, axis, title
from trainenv.report.drawing.svg import Scale, dots, polyline
from trainenv.report.run.run_record import RunRecord

# Limits of the axis, z-scores; values outside are drawn at the edge.
LOWEST = -3.0
HIGHEST = 10.0


def index_panel(record: RunRecord, frame: Frame, top: float, height: float, column: str) -> str:
    """Draw `index`, `volatility`, `entropy` or `disagreement` from `top` downwards.

    It shows single steps as dots, their mean as a line, and for the index the alarm threshold.
    """
    kept = record.kept
    steps = floats(kept["step"])
    values = floats(kept[column])
    known = values[np.isfinite(values)]
    limits = floats(kept["threshold"])
    highest = max(4.0, float(known.max(initial=0.0)) + 0.3)
    if column == "index":
        highest = max(highest, float(limits[np.isfinite(limits)].max(initial=0.0)) + 0.5)
    lowest = min(-1.0, float(known.min(initial=0.0)) - 0.3)
    scale = Scale(max(lowest, LOWEST), min(highest, HIGHEST), top + 17 + height, top + 17)
    lost = record.steps[~record.steps["kept"]]
    ghosts = cloud(floats(lost["step"]), floats(lost[column]), frame.points // 2)
    parts = [
        title(top, {"index": "Uncertainty index"}.get(column, column.capitalize()), "z-score"),
        axis(frame, scale, 2 + (height > 60), lambda value: formatting.number(value, 0)),
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
    """Draw the learning rate of each kept step, from 0."""
    kept = record.kept
    steps = floats(kept["step"])
    rates = floats(kept["lr"])
    highest = 1.05 * float(rates[np.isfinite(rates)].max(initial=0.0))
    scale = Scale(0.0, highest or 1.0, top + 17 + height, top + 17)
    return "".join(
        (
            title(top, "Learning rate"),
            axis(frame, scale, 2, formatting.rate),
            polyline(_placed(bucketed(steps, rates, frame.points), frame, scale), "smooth"),
        )
    )


def _placed(points: Line, frame: Frame, scale: Scale) -> list[tuple[float, float]]:
    steps, values = points
    known = np.where(np.isfinite(values), values, np.nan)
    return [(frame.steps(x), scale.inside(y)) for x, y in zip(steps, known)]
