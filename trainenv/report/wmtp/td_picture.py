"""Histogram of the TD errors of a critic, on right and on wrong solutions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainenv.report.drawing import formatting
from trainenv.report.drawing.panels import LEFT, RIGHT
from trainenv.report.drawing.svg import Scale, drawing, escaped, label, line, polyline, titled

WIDTH = 430.0
HEIGHT = 200.0
_TOP = 12.0
_BOTTOM = HEIGHT - 40.0
_LEAST = 1e-4  # share of the tokens at the foot of the picture
_STYLES = {"right": "smooth", "wrong": "lost"}


def td_picture(found: Mapping[str, Any]) -> str:
    """Draw the share of the tokens in each bin of δ, on a logarithmic scale.

    Args:
        found: Numbers of tokens in bins of equal width from −1 to 1, `right` and `wrong`.
    """
    across = Scale(-1.0, 1.0, LEFT, WIDTH - RIGHT)
    up = Scale(math.log10(_LEAST), 0.0, _BOTTOM, _TOP)
    parts = [_axes(across, up)]
    for name, style in _STYLES.items():
        parts.append(polyline(_steps(found[name], across, up), style, titled(f"{name} solutions")))
    return drawing(
        WIDTH,
        HEIGHT,
        *parts,
        class_="chart small",
        about="Share of the tokens by TD error, on right and on wrong solutions",
    )


def td_words(found: Mapping[str, Any]) -> str:
    """Describe how well the values know right from wrong."""
    explained = formatting.number(found["explained"], 2)
    ranked = formatting.share(found["ranked"])
    return escaped(
        f"Explained variance of the values {explained}; the right solution ends with the higher "
        f"value in {ranked} of the tasks."
    )


def _steps(counts: Sequence[int], across: Scale, up: Scale) -> list[tuple[float, float]]:
    """Return the corners of the outline of a histogram."""
    total = max(sum(counts), 1)
    width = 2.0 / len(counts)
    corners = []
    for place, count in enumerate(counts):
        height = up(math.log10(max(count / total, _LEAST)))
        left = -1.0 + place * width
        corners += [(across(left), height), (across(left + width), height)]
    return corners


def _axes(across: Scale, up: Scale) -> str:
    parts = []
    for power in range(round(math.log10(_LEAST)), 1):
        y = up(power)
        parts.append(line(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(label(LEFT - 7, y + 3.5, f"{100 * 10.0**power:g} %", "tick", "end"))
    for value in across.ticks(4):
        text = formatting.number(value, 1)
        parts.append(label(across(value), _BOTTOM + 16, text, "tick", "middle"))
    parts.append(line(across(0), _TOP, across(0), _BOTTOM, "zero"))
    parts.append(label(WIDTH - RIGHT, _BOTTOM + 34, "TD error", "tick", "end"))
    return "".join(parts)
