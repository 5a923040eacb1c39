"""Was the draft honest?

The intervals that were expected against what the real steps measured, over all decisions of a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainenv.report.drawing import formatting
from trainenv.report.drawing.panels import decimals
from trainenv.report.drawing.svg import Scale, drawing, element, label, line, titled

NOMINAL = 0.9
SIZE = 330.0
LEFT = 46.0
BOTTOM = 40.0
EDGE = 12.0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One branch: what was expected and what was measured, in Δ ln validation loss."""

    low: float
    median: float
    high: float
    measured: float
    accepted: bool
    said: str

    @property
    def held(self) -> bool:
        return self.low <= self.measured <= self.high


def pairs(decisions: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """All branches that were both drafted and measured, controls left out: theirs is 0 by definition."""
    found = []
    for decision in decisions:
        for branch in decision["branches"]:
            expected = branch.get("expected") or {}
            low, median, high = (
                formatting.finite(expected.get(name)) for name in ("low", "median", "high")
            )
            measured = formatting.finite(branch.get("delta"))
            if (
                branch.get("control")
                or low is None
                or median is None
                or high is None
                or measured is None
            ):
                continue
            said = f"decision {decision['number']}, {formatting.sequence(branch.get('interventions') or [])}: "
            said += f"drafted {formatting.change(median)}, measured {formatting.change(measured)}"
            accepted = branch.get("fate") == "accepted"
            found.append(
                Pair(
                    low=low,
                    median=median,
                    high=high,
                    measured=measured,
                    accepted=accepted,
                    said=said,
                )
            )
    return found


def wilson(inside: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """A 95 % interval of a share (Wilson 1927): holds near 0 and 1, and for few."""
    if count == 0:
        return 0.0, 1.0
    centre = (inside + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * math.sqrt(inside * (count - inside) / count + z * z / 4)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def calibration(decisions: Sequence[Mapping[str, Any]]) -> str:
    """Coverage in words, and the picture; a sentence where nothing can be told yet."""
    found = pairs(decisions)
    if not found:
        return element(
            "p",
            "No branch was both drafted with an interval and measured, so nothing can be told.",
            class_="quiet",
        )
    accepted = [pair for pair in found if pair.accepted]
    told = _coverage("of all verified branches", found) + (
        _coverage("of those that became the run", accepted) if accepted else ""
    )
    errors = [pair.measured - pair.median for pair in found]
    bias = sum(errors) / len(errors)
    size = sorted(abs(e) for e in errors)[len(errors) // 2]
    told += element(
        "p",
        f"The draft’s median was {formatting.change(size).lstrip('+')} off in the middle case; on average the measurement lay "
        f"{formatting.change(bias)} from it ({'worse' if bias > 0 else 'better'} than drafted).",
    )
    return element(
        "div",
        element("div", told, class_="told"),
        element("figure", _scatter(found)),
        class_="split",
    )


def _coverage(which: str, found: Sequence[Pair]) -> str:
    inside = sum(pair.held for pair in found)
    low, high = wilson(inside, len(found))
    big = element("b", formatting.share(inside / len(found)), class_="big")
    text = f" {which} lay in their 90 % interval: {inside} of {len(found)}, "
    return element(
        "p",
        big,
        text,
        f"95 % interval {100 * low:.0f} to {100 * high:.0f} %: {_judged(low, high)}.",
    )


def _judged(low: float, high: float) -> str:
    if high < NOMINAL:
        return "too few, the draft is too sure"
    if high - low > 0.4:
        return "too few branches to tell"
    return "as promised" if low <= NOMINAL else "more than promised"


def _scatter(found: Sequence[Pair]) -> str:
    """Drafted median across, measured upwards; on the diagonal the draft was right."""
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
        class_ = "zero" if value == 0 else "grid"
        parts += [line(LEFT, y, SIZE - EDGE, y, class_), line(x, EDGE, x, SIZE - BOTTOM, class_)]
        parts += [
            label(LEFT - 6, y + 3.5, name, "tick", "end"),
            label(x, SIZE - BOTTOM + 14, name, "tick", "middle"),
        ]
    parts.append(line(across(-bound), up(-bound), across(bound), up(bound), "diagonal"))
    stride = max(len(found) // 800, 1)
    for pair in found[::stride]:
        class_ = f"pair-dot{' accepted' if pair.accepted else ''}{'' if pair.held else ' outside'}"
        x = across.inside(pair.median)
        y = up.inside(pair.measured)
        parts.append(
            element(
                "circle",
                titled(pair.said),
                cx=x,
                cy=y,
                r=4 if pair.accepted else 3.2,
                class_=class_,
            )
        )
    parts.append(label((LEFT + SIZE - EDGE) / 2, SIZE - 6, "drafted median, %", "tick", "middle"))
    parts.append(label(LEFT, EDGE - 2, "measured, %", "tick"))
    return drawing(
        SIZE,
        SIZE,
        *parts,
        class_="chart small",
        about="Drafted median against measured change of validation loss",
    )
