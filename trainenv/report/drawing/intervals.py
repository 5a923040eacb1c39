"""Interval plots that stand in the cells of a table: an axis in the head of the column, an interval and a dot in each row."""

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
    """What stands in one row; all in Δ ln loss.

    Attributes:
        low, middle, high: an interval and the value in it; None draws none.
        dot: a measured value; None draws none.
        points: single values, drawn faint.
        class_: how it is drawn: `accepted`, `good`, `bad`, or nothing.
        said: what shows when the pointer rests on it.
    """

    low: float | None = None
    middle: float | None = None
    high: float | None = None
    dot: float | None = None
    points: tuple[float, ...] = ()
    class_: str = ""
    said: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the dot lies in the interval; None where one of them lacks."""
        if self.low is None or self.high is None or self.dot is None:
            return None
        return self.low <= self.dot <= self.high


def scale_of(intervals: Iterable[Interval]) -> Scale:
    """An axis for these rows, with 0 in it.

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


def interval_head(scale: Scale) -> str:
    """The axis: round values in percent of the loss, below 0 is better."""
    percent = Scale(100 * scale.low, 100 * scale.high, scale.start, scale.end)
    ticks = percent.ticks(4)
    digits = decimals(ticks)
    numbers = [
        label(
            percent(v),
            12,
            formatting.number(v, digits) + (" %" if v == ticks[-1] else ""),
            "tick",
            "middle",
        )
        for v in ticks
    ]
    marks = [line(percent(v), 18, percent(v), 22, "mark") for v in ticks]
    return drawing(
        WIDTH,
        22,
        *numbers,
        *marks,
        class_="cell",
        about="Axis: change of the loss in percent, below 0 is better",
    )


def zero_line(scale: Scale) -> str:
    """The style of a cell that draws 0 through its whole height, whatever the height of its row."""
    return f"--zero:{100 * scale(0.0) / WIDTH:.2f}%"


def interval_row(row: Interval, scale: Scale) -> str:
    """The plot of one row."""
    y = HEIGHT / 2
    parts = [
        element("circle", cx=scale.inside(v), cy=y, r=1.6, class_="pair")
        for v in row.points
        if scale.low <= v <= scale.high
    ]
    kind = f" {row.class_}" if row.class_ else ""
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
            if not scale.low <= value <= scale.high:  # goes on beyond the picture
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
        x = scale.inside(row.dot)
        outside = " outside" if row.holds is False else ""
        parts.append(element("circle", cx=x, cy=y, r=4.2, class_=f"measured{kind}{outside}"))
    return drawing(
        WIDTH,
        HEIGHT,
        titled(row.said) if row.said else "",
        *parts,
        class_="cell",
        about=row.said or "no interval",
    )


def key(entries: Sequence[tuple[str, str]]) -> str:
    """A legend: a swatch of each class with what it stands for."""
    items = [element("li", f'<i class="swatch {class_}"></i>', text) for class_, text in entries]
    return element("ul", *items, class_="key")
