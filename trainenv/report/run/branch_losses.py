"""Training loss of a decision's branches minus the control's on the same batches, running mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.report.drawing import formatting
from trainenv.report.drawing.panels import decimals, grid_class
from trainenv.report.drawing.svg import (
    Scale,
    drawing,
    element,
    label,
    line,
    polyline,
    spread,
    titled,
)

WIDTH = 330.0
HEIGHT = 170.0
LEFT = 46.0
RIGHT = 12.0
TOP = 12.0
BOTTOM = 24.0


def rollouts(decision: Mapping[str, Any]) -> str:
    """Draw a small figure; empty unless the control and another branch were trained."""
    control = next(
        (_losses(branch) for branch in decision["branches"] if branch.get("control")), np.empty(0)
    )
    curves = [
        (branch, _against(_losses(branch), control))
        for branch in decision["branches"]
        if not branch.get("control")
    ]
    curves = [(branch, curve) for branch, curve in curves if len(curve)]
    if len(control) < 2 or not curves:
        return ""
    calm = [value for _, curve in curves for value in curve[min(2, len(curve) - 1) :].tolist()]
    low, high = spread([0.0, *calm])
    across = Scale(low, high, HEIGHT - BOTTOM, TOP)
    along = Scale(0, len(control), LEFT, WIDTH - RIGHT)
    ticks = across.ticks(4)
    digits = decimals(ticks)
    grid = [
        line(LEFT, across(v), WIDTH - RIGHT, across(v), grid_class(v))
        + label(LEFT - 6, across(v) + 3.5, formatting.number(v, digits), "tick", "end")
        for v in ticks
    ]
    curves.sort(key=lambda pair: pair[0].get("fate") == "accepted")  # the accepted one on top
    lines = [_curve(branch, curve, along, across) for branch, curve in curves]
    steps = [
        label(along(v), HEIGHT - 8, formatting.whole(v), "tick", "middle") for v in along.ticks(4)
    ]
    about = (
        "Training loss of each branch minus the loss without intervention, running mean over the "
        "verified steps"
    )
    return drawing(WIDTH, HEIGHT, *grid, *steps, *lines, class_="chart small", about=about)


def _losses(branch: Mapping[str, Any]) -> NDArray[np.float64]:
    losses = branch.get("losses")
    if not isinstance(losses, list):
        return np.empty(0)
    return np.array([formatting.finite(loss) for loss in losses], dtype=np.float64)  # None → NaN


def _against(losses: NDArray[np.float64], control: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the running mean of the paired differences, up to the first that is not finite."""
    both = min(len(losses), len(control))
    difference = losses[:both] - control[:both]
    broken = np.flatnonzero(~np.isfinite(difference))
    if len(broken):
        difference = difference[: broken[0]]
    means: NDArray[np.float64] = np.cumsum(difference) / np.arange(1, len(difference) + 1)
    return means


def _curve(
    branch: Mapping[str, Any], curve: NDArray[np.float64], along: Scale, across: Scale
) -> str:
    fate = str(branch.get("fate"))
    class_ = "rejected"
    if fate in ("accepted", "passed", "failed"):
        class_ = fate
    points = [(along(place + 1), across.inside(float(value))) for place, value in enumerate(curve)]
    about = titled(f"{formatting.sequence(branch.get('interventions') or [])}, {fate}")
    x, y = points[-1]
    if class_ == "failed":
        tip = element("path", about, d=f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6", class_="cross")
    else:
        tip = element("circle", about, cx=x, cy=y, r=2.4, class_=f"tip {class_}")
    return polyline(points, class_, about) + tip
