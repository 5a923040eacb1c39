"""Small functions that make SVG: elements, paths, scales.

What comes from files is escaped here, once.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SHAPES = {
    "circle",
    "line",
    "path",
    "rect",
}  # of SVG; in HTML an element that closes itself stays open


def element(name: str, *children: str, **attributes: str | float | None) -> str:
    """An element.

    Children are markup already; attributes are escaped: `class_` is `class`, `stroke_width`
    `stroke-width`.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(children)
    return (
        f"<{name}{written}>{inside}</{name}>"
        if inside or name not in _SHAPES
        else f"<{name}{written}/>"
    )


def escaped(text: object) -> str:
    """Text as markup that shows it, whatever is in it."""
    return html.escape(str(text))


def titled(text: str) -> str:
    """What shows when the pointer rests on an element: a child of it."""
    return f"<title>{escaped(text)}</title>"


def label(x: float, y: float, text: str, class_: str = "", anchor: str = "start") -> str:
    """A line of text that starts, ends or has its middle at (x, y)."""
    return element(
        "text",
        escaped(text),
        x=x,
        y=y,
        class_=class_ or None,
        text_anchor=None if anchor == "start" else anchor,
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line from (x1, y1) to (x2, y2)."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def polyline(points: Iterable[tuple[float, float]], class_: str, *children: str) -> str:
    """A line through points; where one is not finite the line breaks."""
    parts = []
    pen = "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        parts.append(f"{pen}{_short(x)} {_short(y)}")
        pen = "L"
    return element("path", *children, d="".join(parts), class_=class_) if parts else ""


def dots(points: Iterable[tuple[float, float]], class_: str) -> str:
    """Many dots as one path of no length, to be drawn with a round line cap: a few bytes a dot."""
    parts = [
        f"M{_short(x)} {_short(y)}h0" for x, y in points if math.isfinite(x) and math.isfinite(y)
    ]
    return element("path", d="".join(parts), class_=class_) if parts else ""


def clipped(left: float, top: float, width: float, height: float, *children: str) -> str:
    """What is drawn within a box is cut off at its edges; coordinates stay those of the drawing."""
    box = " ".join(_short(value) for value in (left, top, width, height))
    return element("svg", *children, x=left, y=top, width=width, height=height, viewBox=box)


def drawing(
    width: float,
    height: float,
    *children: str,
    class_: str,
    about: str,
    **attributes: str | float | None,
) -> str:
    """An SVG that takes the width that it is given; `about` is what a screen reader says."""
    box = f"0 0 {_short(width)} {_short(height)}"
    return element(
        "svg", *children, viewBox=box, class_=class_, role="img", aria_label=about, **attributes
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map of the values [low, high] to the pixels [start, end]; an empty range of values is widened."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        return self.start + (self.end - self.start) * (
            (value - self.low) / span if span > 0 else 0.5
        )

    def inside(self, value: float) -> float:
        """The same, with values outside of the range put at its nearer end."""
        return self(min(max(value, self.low), self.high))

    def ticks(self, count: int) -> list[float]:
        """About `count` round values within the range: multiples of 1, 2 or 5 times a power of ten."""
        span = self.high - self.low
        if not (span > 0 and math.isfinite(span)):
            return []
        rough = span / max(count, 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.7 * rough)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(place * step, 12) for place in range(first, last + 1)]


def spread(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
    """The range of the finite values with a share of it added at both ends; (0, 1) where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low = min(finite)
    high = max(finite)
    room = pad * (high - low) or abs(low) * 0.05 or 1.0
    return low - room, high + room


def _attribute(value: str | float) -> str:
    return html.escape(value) if isinstance(value, str) else _short(value)


def _short(value: float) -> str:
    """A number with one decimal at most."""
    text = f"{value:.1f}"
    return text.removesuffix(".0")
