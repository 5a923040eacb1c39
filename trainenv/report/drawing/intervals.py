"""Interval plots in the cells of a table: an axis in the column's head, an interval in each row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainenv.report.drawing import formatting
from trainenv.report.drawing.panels import decimals
from trainenv.report.drawing.svg import Scale, drawing, element, label, line, titled

WIDTH = 220.0
HEIGHT = 30.0
EDGE = 14.0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Values of one row, in Δ ln loss; None is not drawn.

    Attributes:
        low: Lower end of the interval.
        middle: Value marked in the interval.
        high: Upper end of the interval.
        dot: Measured value.
        points: Single values, drawn faint.
        class_: Style: `accepted`, `good`, `bad`, or empty.
        about: Text that appears under the pointer.
    """

    low: float | None = None
    middle: float | None = None
    high: float | None = None
    dot: float | None = None
    points: tuple[float, ...] = ()
    class_: str = ""
    about: str = ""

    @property
    def holds(self) -> bool | None:
        """True if the dot lies in the interval; None if one of them is missing."""
        if self.low is None or self.high is None or self.dot is None:
            return None
        return self.low <= self.dot <= self.high


def scale_of(intervals: Iterable[Interval]) -> Scale:
    """Choose an axis for these rows; it includes 0.

    Very long intervals are cut off, so that the others can still be read.
    """
    rows = list(intervals)
    dots = [abs(v) for row in rows for v in (row.dot, row.middle) if v is not None]
    ends = [v for row in rows for v in (row.low, row.high, row.dot, *row.points) if v is not None]
    bound = max(2.5 * max(dots, default=0.0), 1e-4)
    low = min([0.0, *(max(v, -bound) for v in ends)])
    high = max([0.0, *(min(v, bound) for v in ends)])
    room = 0.05 * (high - low) or 0.01
    return Scale(low - room, high + room, EDGE, WIDTH - EDGE)


def interval_head(
    scale: Scale, about: str = "Axis: change of the loss in percent, below 0 is better"
) -> str:
    """Draw the axis, with round values in percent.

    Args:
        scale: Axis, as a share.
        about: Text for screen readers.
    """
    percent = Scale(100 * scale.low, 100 * scale.high, scale.start, scale.end)
    ticks = percent.ticks(4)
    digits = decimals(ticks)
    written = [formatting.number(v, digits) for v in ticks]
    written[-1:] = [f"{last} %" for last in written[-1:]]
    numbers = [label(percent(v), 12, text, "tick", "middle") for v, text in zip(ticks, written)]
    marks = [line(percent(v), 18, percent(v), 22, "mark") for v in ticks]
    return drawing(
        WIDTH,
        22,
        *numbers,
        *marks,
        class_="cell",
        about=about,
    )


def zero_line(scale: Scale) -> str:
    """Return the style of a cell that draws a line at 0 over the full height of its row."""
    return f"--zero:{100 * scale(0.0) / WIDTH:.2f}%"


def interval_row(row: Interval, scale: Scale) -> str:
    """Draw one row."""
    y = HEIGHT / 2
    parts = [
        element("circle", cx=scale.inside(v), cy=y, r=1.6, class_="pair")
        for v in row.points
        if scale.low <= v <= scale.high
    ]
    kind = f" {row.class_}".rstrip()
    if row.low is not None and row.high is not None:
        x1 = scale.inside(row.low)
        x2 = scale.inside(row.high)
        parts.append(
            element(
                "rect",
                x=x1,
                y=y - 4,
                width=max(x2 - x1, 1.0),
                height=8,
                rx=4,
                class_=f"interval{kind}",
            )
        )
        for value, x, direction in ((row.low, x1, -1), (row.high, x2, 1)):
            if not scale.low <= value <= scale.high:  # the interval is longer than the picture
                parts.append(
                    element(
                        "path",
                        d=f"M{x:.1f} {y - 5:.1f}l{4 * direction} 5l{-4 * direction} 5z",
                        class_=f"beyond{kind}",
                    )
                )
    if row.middle is not None:
        parts.append(
            line(scale.inside(row.middle), y - 6, scale.inside(row.middle), y + 6, f"median{kind}")
        )
    if row.dot is not None:
        class_ = f"measured{kind}"
        if row.holds is False:
            class_ += " outside"
        parts.append(element("circle", cx=scale.inside(row.dot), cy=y, r=4.2, class_=class_))
    if row.about:
        parts.insert(0, titled(row.about))
    return drawing(WIDTH, HEIGHT, *parts, class_="cell", about=row.about or "no interval")


def key(entries: Sequence[tuple[str, str]]) -> str:
    """Make a legend: a swatch of each class with its meaning."""
    items = [element("li", f'<i class="swatch {class_}"></i>', text) for class_, text in entries]
    return element("ul", *items, class_="key")
