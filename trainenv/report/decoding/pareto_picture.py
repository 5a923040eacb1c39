"""Speed against exactness: one dot for each measured setting, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainenv.report.drawing import formatting
from trainenv.report.drawing.panels import LEFT, RIGHT, decimals
from trainenv.report.drawing.svg import (
    Scale,
    dots,
    drawing,
    element,
    label,
    line,
    polyline,
    titled,
)

WIDTH = 430.0
HEIGHT = 250.0
_TOP = 12.0
_BOTTOM = HEIGHT - 40.0


def pareto_picture(points: Sequence[Mapping[str, Any]]) -> str:
    """Draw the speed-up of settings over their distance to the target.

    Args:
        points: Measured settings with `rule`, `speedup` and `distance`.
    """
    front = pareto_front(points)
    # Settings that only lose are cut off, so that the front can be read.
    far = 1.15 * max([0.02, *(float(point["distance"]) for point in front)])
    fast = 1.06 * max([1.1, *(float(point["speedup"]) for point in front)])
    across = Scale(0.0, far, LEFT, WIDTH - RIGHT)
    up = Scale(0.0, fast, _BOTTOM, _TOP)
    parts = [_axes(across, up)]
    shown = [
        (across(float(point["distance"])), up(float(point["speedup"])))
        for point in points
        if float(point["distance"]) <= far
    ]
    parts.append(dots(shown, "dot"))
    parts.append(
        polyline([(across(float(p["distance"])), up(float(p["speedup"]))) for p in front], "front")
    )
    for point in front:
        parts.append(
            element(
                "circle",
                titled(describe(point)),
                cx=across(float(point["distance"])),
                cy=up(float(point["speedup"])),
                r=3.6,
                class_="measured good",
            )
        )
    return drawing(
        WIDTH,
        HEIGHT,
        *parts,
        class_="chart small",
        about="Speed-up over the target alone against the distance to the target",
    )


def pareto_front(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the settings that no other beats in both speed and exactness, the exactest first."""
    front: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda p: (float(p["distance"]), -float(p["speedup"]))):
        if not front or float(point["speedup"]) > float(front[-1]["speedup"]):
            front.append(point)
    return front


def describe(point: Mapping[str, Any]) -> str:
    """Describe a measured setting in words."""
    words = [
        f"{point['rule']} rule",
        f"fall-back {formatting.number(point['fallback_threshold'], 2)}",
    ]
    if point["rule"] == "lossy":
        words.append(f"roll-back {formatting.number(point['rollback_threshold'], 2)} nats")
    words.append(f"{formatting.whole(point['k'])} tokens")
    speed = formatting.number(point["speedup"], 2)
    return f"{', '.join(words)}: {speed} × as fast, distance {formatting.number(point['distance'])}"


def _axes(across: Scale, up: Scale) -> str:
    ticks = across.ticks(5)
    digits = decimals(ticks)
    parts = []
    for value in up.ticks(5):
        class_ = "zero" if value == 1 else "grid"
        parts.append(line(LEFT, up(value), WIDTH - RIGHT, up(value), class_))
        written = f"{formatting.number(value, 1)} ×"
        parts.append(label(LEFT - 7, up(value) + 3.5, written, "tick", "end"))
    for value in ticks:
        parts.append(
            label(across(value), _BOTTOM + 16, formatting.number(value, digits), "tick", "middle")
        )
    parts.append(label(WIDTH - RIGHT, _BOTTOM + 34, "distance to the target", "tick", "end"))
    return "".join(parts)
