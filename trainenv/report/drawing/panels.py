"""What the panels of one figure share: the axis of steps, and how a panel's own axis, grid and title are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from trainenv.report.drawing import formatting
from trainenv.report.drawing.svg import Scale, element, escaped, label, line

LEFT = 46.0
RIGHT = 16.0
WIDTHS = {
    "wide": 1080.0,
    "middle": 680.0,
    "narrow": 350.0,
}  # pixels; the style sheet shows the one that fits


@dataclass(frozen=True)
class Frame:
    """A figure's width and its axis of steps, in pixels."""

    width: float
    steps: Scale

    @classmethod
    def of(cls, width: float, last_step: int) -> Frame:
        return cls(width, Scale(0, max(last_step, 1), LEFT, width - RIGHT))

    @property
    def points(self) -> int:
        """How many points a line across the figure needs: one for every second pixel."""
        return int(self.width - LEFT - RIGHT) // 2


def axis(frame: Frame, scale: Scale, count: int, written: Callable[[float], str]) -> str:
    """Lines across the panel at round values, with the values beside them."""
    parts = []
    for value in scale.ticks(count):
        y = scale(value)
        parts.append(line(LEFT, y, frame.width - RIGHT, y, "grid"))
        parts.append(label(LEFT - 7, y + 3.5, written(value), "tick", "end"))
    return "".join(parts)


def title(top: float, text: str, note: str = "") -> str:
    """What a panel shows, above it at the left."""
    small = element("tspan", escaped(f"  {note}"), class_="note") if note else ""
    return element("text", escaped(text), small, x=0, y=top, class_="panel")


def step_axis(frame: Frame, top: float) -> str:
    """The steps, written below the last panel."""
    ticks = frame.steps.ticks(10 if frame.width > 900 else 6 if frame.width > 500 else 3)
    numbers = [
        label(frame.steps(value), top + 14, formatting.whole(value), "tick", "middle")
        for value in ticks
    ]
    return "".join(numbers) + label(frame.width - RIGHT, top + 30, "optimizer steps", "tick", "end")


def decimals(ticks: list[float]) -> int:
    """How many decimals tell these values apart."""
    step = min((abs(b - a) for a, b in pairwise(ticks)), default=1.0)
    return next(
        (digits for digits in range(6) if abs(round(step, digits) - step) <= 1e-6 * step), 6
    )
