"""Functions that make SVG and HTML: elements, paths, scales.

Text from files is escaped here, once.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Elements of SVG that may be written as `<name/>`; elements of HTML may not.
_SHAPES = {"circle", "line", "path", "rect"}


def element(name: str, *children: str, **attributes: str | float | None) -> str:
    """Make an element.

    Children must be markup. Attributes are escaped; `class_` becomes `class` and `stroke_width`
    becomes `stroke-width`.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(children)
    if name in _SHAPES and not inside:
        return f"<{name}{written}/>"
    return f"<{name}{written}>{inside}</{name}>"


def details(summary: str, *children: str, opened: bool, **attributes: str | None) -> str:
    """Make an element that opens at a click on its summary."""
    if opened:
        attributes["open"] = "open"
    return element("details", element("summary", summary), *children, **attributes)


def escaped(text: object) -> str:
    """Return markup that shows a text literally."""
    return html.escape(str(text))


def titled(text: str) -> str:
    """Make a child of an element: text that appears when the pointer rests on the element."""
    return f"<title>{escaped(text)}</title>"


def label(x: float, y: float, text: str, class_: str = "", anchor: str = "start") -> str:
    """Draw text that has its start, middle or end at (x, y)."""
    anchors = {}
    if anchor != "start":
        anchors["text_anchor"] = anchor
    return element("text", escaped(text), x=x, y=y, class_=class_ or None, **anchors)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """Draw a straight line from (x1, y1) to (x2, y2)."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def polyline(points: Iterable[tuple[float, float]], class_: str, *children: str) -> str:
    """Draw a line through points; it breaks where a point is not finite."""
    parts = []
    pen = "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        parts.append(f"{pen}{_short(x)} {_short(y)}")
        pen = "L"
    return _path(parts, class_, *children)


def dots(points: Iterable[tuple[float, float]], class_: str) -> str:
    """Draw many dots as one path of empty strokes, which take a few bytes each.

    The style must use a round line cap.
    """
    parts = [
        f"M{_short(x)} {_short(y)}h0" for x, y in points if math.isfinite(x) and math.isfinite(y)
    ]
    return _path(parts, class_)


def _path(parts: Sequence[str], class_: str, *children: str) -> str:
    if not parts:
        return ""
    return element("path", *children, d="".join(parts), class_=class_)


def clipped(left: float, top: float, width: float, height: float, *children: str) -> str:
    """Cut off children at the edges of a box; coordinates remain those of the drawing."""
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
    """Make an SVG that scales to the width of the page; `about` is for screen readers."""
    box = f"0 0 {_short(width)} {_short(height)}"
    return element(
        "svg", *children, viewBox=box, class_=class_, role="img", aria_label=about, **attributes
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from values to pixels.

    Attributes:
        low: Value at `start`; if equal to `high`, all values are drawn in the middle.
        high: Value at `end`.
        start: Position of `low`, pixels.
        end: Position of `high`, pixels.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = 0.5
        if span > 0:
            share = (value - self.low) / span
        return self.start + (self.end - self.start) * share

    def inside(self, value: float) -> float:
        """Map a value; one outside of the range is moved to the nearer end."""
        return self(min(max(value, self.low), self.high))

    def ticks(self, count: int) -> list[float]:
        """Return about `count` round values in the range: 1, 2 or 5 times a power of ten apart."""
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
    """Return the range of the finite values, with a margin at both ends; (0, 1) without any."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low = min(finite)
    high = max(finite)
    room = pad * (high - low) or abs(low) * 0.05 or 1.0
    return low - room, high + room


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return html.escape(value)
    return _short(value)


def _short(value: float) -> str:
    """Write a number with at most one decimal."""
    text = f"{value:.1f}"
    return text.removesuffix(".0")
