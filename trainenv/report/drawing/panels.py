"""Parts that the panels of a figure share: the step axis, and a panel's axis, grid and title."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from trainenv.report.drawing import formatting
from trainenv.report.drawing.svg import Scale, element, escaped, label, line

LEFT = 46.0
RIGHT = 16.0
# Widths of a figure, pixels; the style sheet shows the one that fits the screen.
WIDTHS = {"wide": 1080.0, "middle": 680.0, "narrow": 350.0}


@dataclass(frozen=True)
class Frame:
    """Width of a figure and its step axis.

    Attributes:
        width: Width of the figure, pixels.
        steps: Scale from optimizer steps to pixels.
    """

    width: float
    steps: Scale

    @classmethod
    def of(cls, width: float, last_step: int) -> Frame:
        return cls(width, Scale(0, max(last_step, 1), LEFT, width - RIGHT))

    @property
    def points(self) -> int:
        """The number of points of a line across the figure: one for every second pixel."""
        return int(self.width - LEFT - RIGHT) // 2

    def fitting(self, wide: float, middle: float, narrow: float) -> float:
        """Return the value for the width of this figure."""
        if self.width > 900:
            return wide
        if self.width > 500:
            return middle
        return narrow


def axis(frame: Frame, scale: Scale, count: int, written: Callable[[float], str]) -> str:
    """Draw lines across the panel at about `count` round values, with the values at the left."""
    parts = []
    for value in scale.ticks(count):
        y = scale(value)
        parts.append(line(LEFT, y, frame.width - RIGHT, y, "grid"))
        parts.append(label(LEFT - 7, y + 3.5, written(value), "tick", "end"))
    return "".join(parts)


def title(top: float, text: str, note: str = "") -> str:
    """Draw the title of a panel, above it at the left."""
    parts = [escaped(text)]
    if note:
        parts.append(element("tspan", escaped(f"  {note}"), class_="note"))
    return element("text", *parts, x=0, y=top, class_="panel")


def step_axis(frame: Frame, top: float) -> str:
    """Draw the step numbers below the last panel."""
    ticks = frame.steps.ticks(int(frame.fitting(10, 6, 3)))
    numbers = [
        label(frame.steps(value), top + 14, formatting.whole(value), "tick", "middle")
        for value in ticks
    ]
    return "".join(numbers) + label(frame.width - RIGHT, top + 30, "optimizer steps", "tick", "end")


def decimals(ticks: list[float]) -> int:
    """Return the number of decimals that make these values distinct."""
    step = min((abs(b - a) for a, b in pairwise(ticks)), default=1.0)
    return next(
        (digits for digits in range(6) if abs(round(step, digits) - step) <= 1e-6 * step), 6
    )


def grid_class(value: float) -> str:
    """Return the style of a grid line; the one at 0 is stronger."""
    if value == 0:
        return "zero"
    return "grid"
