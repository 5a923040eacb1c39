"""Calibration of the forecasts: their intervals against the measurements, over all decisions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainenv.report.drawing import formatting
from trainenv.report.drawing.panels import decimals, grid_class
from trainenv.report.drawing.svg import Scale, drawing, element, label, line, titled
from trainenv.report.run.decision_card import branch_forecast

NOMINAL = 0.9
SIZE = 330.0
LEFT = 46.0
BOTTOM = 40.0
EDGE = 12.0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Forecast and measurement of one branch, in Δ ln validation loss.

    Attributes:
        low: Lower end of the 90 % interval.
        median: Median of the forecast.
        high: Upper end of the 90 % interval.
        measured: Measured change.
        accepted: True for the accepted branch.
        about: Text that appears under the pointer.
    """

    low: float
    median: float
    high: float
    measured: float
    accepted: bool
    about: str

    @property
    def held(self) -> bool:
        """True if the measurement lies in the interval."""
        return self.low <= self.measured <= self.high

    @property
    def class_(self) -> str:
        """The style of the dot."""
        classes = {"pair-dot": True, "accepted": self.accepted, "outside": not self.held}
        return " ".join(name for name, applies in classes.items() if applies)


def pairs(decisions: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """Collect all branches with a forecast and a measurement; controls are 0 by definition."""
    found = []
    for decision in decisions:
        for branch in decision["branches"]:
            forecast = branch_forecast(branch)
            low, median, high = (
                formatting.finite(forecast.get(name)) for name in ("low", "median", "high")
            )
            measured = formatting.finite(branch.get("delta"))
            if low is None or median is None or high is None or measured is None:
                continue
            name = formatting.sequence(branch.get("interventions") or [])
            pair = Pair(
                low=low,
                median=median,
                high=high,
                measured=measured,
                accepted=branch.get("fate") == "accepted",
                about=f"decision {decision['number']}, {name}: forecast "
                f"{formatting.change(median)}, measured {formatting.change(measured)}",
            )
            found.append(pair)
    return found


def wilson(inside: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return a 95 % interval of a share (Wilson 1927); it holds near 0 and 1 and for few cases."""
    if count == 0:
        return 0.0, 1.0
    centre = (inside + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * math.sqrt(inside * (count - inside) / count + z * z / 4)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def calibration(decisions: Sequence[Mapping[str, Any]]) -> str:
    """Make the panel: coverage and errors in words, and a figure."""
    found = pairs(decisions)
    if not found:
        text = "No branch has both a forecast interval and a measurement yet."
        return element("p", text, class_="quiet")
    text = _coverage("all verified branches", found)
    if accepted := [pair for pair in found if pair.accepted]:
        text += _coverage("accepted branches", accepted)
    text += element("p", _errors([pair.measured - pair.median for pair in found]))
    return element(
        "div",
        element("div", text, class_="told"),
        element("figure", _scatter(found)),
        class_="split",
    )


def _coverage(which: str, found: Sequence[Pair]) -> str:
    inside = sum(pair.held for pair in found)
    low, high = wilson(inside, len(found))
    big = element("b", formatting.share(inside / len(found)), class_="big")
    text = (
        f" of {which} lie in their 90 % interval: {inside} of {len(found)}, "
        f"95 % confidence interval {100 * low:.0f} to {100 * high:.0f} %: {_judgement(low, high)}."
    )
    return element("p", big, text)


def _judgement(low: float, high: float) -> str:
    if high < NOMINAL:
        return "too few, the forecasts are too confident"
    if high - low > 0.4:
        return "too few branches to judge"
    if low > NOMINAL:
        return "more than 90 %, the intervals are too wide"
    return "in agreement with 90 %"


def _errors(errors: Sequence[float]) -> str:
    """Describe the differences of measurement and forecast median."""
    bias = sum(errors) / len(errors)
    size = sorted(abs(error) for error in errors)[len(errors) // 2]
    direction = "better"
    if bias > 0:
        direction = "worse"
    return (
        f"Median distance of the measurement from the forecast: "
        f"{formatting.change(size).lstrip('+')}. Mean difference: {formatting.change(bias)}, so "
        f"losses were {direction} than forecast on average."
    )


def _scatter(found: Sequence[Pair]) -> str:
    """Draw forecast medians across and measurements upwards; on the diagonal they are equal."""
    sizes = sorted(max(abs(pair.median), abs(pair.measured)) for pair in found)
    bound = 1.1 * min(sizes[-1], 3 * sizes[int(0.9 * (len(sizes) - 1))]) or 0.01
    across = Scale(-bound, bound, LEFT, SIZE - EDGE)
    up = Scale(-bound, bound, SIZE - BOTTOM, EDGE)
    percent = Scale(-100 * bound, 100 * bound, LEFT, SIZE - EDGE)
    ticks = percent.ticks(4)
    digits = decimals(ticks)
    parts = []
    for value in ticks:
        name = formatting.number(value, digits)
        x = across(value / 100)
        y = up(value / 100)
        class_ = grid_class(value)
        parts += [line(LEFT, y, SIZE - EDGE, y, class_), line(x, EDGE, x, SIZE - BOTTOM, class_)]
        parts += [
            label(LEFT - 6, y + 3.5, name, "tick", "end"),
            label(x, SIZE - BOTTOM + 14, name, "tick", "middle"),
        ]
    parts.append(line(across(-bound), up(-bound), across(bound), up(bound), "diagonal"))
    stride = max(len(found) // 800, 1)
    for pair in found[::stride]:
        radius = 3.2 + 0.8 * pair.accepted
        x = across.inside(pair.median)
        y = up.inside(pair.measured)
        dot = element("circle", titled(pair.about), cx=x, cy=y, r=radius, class_=pair.class_)
        parts.append(dot)
    parts.append(label((LEFT + SIZE - EDGE) / 2, SIZE - 6, "forecast median, %", "tick", "middle"))
    parts.append(label(LEFT, EDGE - 2, "measured, %", "tick"))
    return drawing(
        SIZE,
        SIZE,
        *parts,
        class_="chart small",
        about="Forecast median against measured change of the validation loss",
    )
