"""Forest plot of methods in a table: change against no intervention, and the other metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainenv.compare.paired_rows import SUBJECT, UNTOUCHED
from trainenv.report.comparison.comparison_record import Comparison
from trainenv.report.drawing import formatting
from trainenv.report.drawing.intervals import (
    Interval,
    interval_head,
    interval_row,
    scale_of,
    zero_line,
)
from trainenv.report.drawing.svg import element, escaped

POINTS = 200  # most pairs that are drawn one by one
TITLES = (
    "Change",
    "Regret",
    "Headroom closed",
    "Final loss",
    "Events per 100k",
    "Steps to recover",
    "Wasted",
    "Planning",
    "Failures",
)


def forest(comparison: Comparison, group: str, scenarios: Sequence[str]) -> str:
    """Draw one row a method, the best first; references come last."""
    found = best_first(comparison.rows(group))
    rows = [(row, _interval(row, pairs(comparison, scenarios, row["method"]))) for row in found]
    scale = scale_of(interval for _, interval in rows)
    top = f"<th>Method</th><th class='plot'>{interval_head(scale)}</th>" + "".join(
        f"<th class='n'>{t}</th>" for t in TITLES
    )
    body = []
    for row, interval in rows:
        plot = element("td", interval_row(interval, scale), class_="plot", style=zero_line(scale))
        name = escaped(row["method"])
        if row["hindsight"]:
            name += "<small>reference</small>"
        head = element("th", name, scope="row")
        cells = [
            element("td", text, class_="n", data_name=title)
            for title, text in zip(TITLES, _numbers(row))
        ]
        body.append(element("tr", head, plot, *cells, class_=row_class(row["method"])))
    table = element(
        "table",
        element("thead", f"<tr>{top}</tr>"),
        element("tbody", *body),
        class_="forest methods stack",
    )
    return element("div", table, class_="box")


def best_first(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort rows: no intervention first, then by change of the loss; references come last."""
    return sorted(rows, key=_order)


def pairs(comparison: Comparison, scenarios: Sequence[str], method: str) -> tuple[float, ...]:
    """Return Δ ln final loss against no intervention for each scenario and seed."""
    if method == UNTOUCHED:
        return ()
    found = comparison.table.pairs(scenarios, method, UNTOUCHED)
    return tuple(mine["log_final_loss"] - theirs["log_final_loss"] for mine, theirs in found)


def clear(figure: Mapping[str, Any]) -> int:
    """Return −1 if the whole interval of a figure is below 0, 1 if it is above, else 0."""
    low = formatting.finite(figure.get("low"))
    high = formatting.finite(figure.get("high"))
    if low is None or high is None:
        return 0
    return int(low > 0) - int(high < 0)


def row_class(method: str) -> str | None:
    """Return the style of a method's row: the loop's own rows stand out."""
    if method.startswith(SUBJECT):
        return "us"
    return None


def closed(share: float) -> str:
    """Write a share of the headroom in percent; it is below 0 for a method that does harm."""
    if formatting.finite(share) is None:
        return formatting.MISSING
    return f"{formatting.number(100 * share, 0)} %"


def with_interval(figure: Mapping[str, Any]) -> str:
    """Write a difference and, if known, its interval."""
    written = formatting.change(figure.get("value"))
    if inside := _bounds(figure):
        written += f" ({inside})"
    return written


def _order(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
    value = formatting.finite(row["against_nothing"]["value"])
    if value is None:
        value = math.inf
    return row["hindsight"], row["method"] != UNTOUCHED, value


def _interval(row: Mapping[str, Any], points: tuple[float, ...]) -> Interval:
    name = row["method"]
    figure = row["against_nothing"]
    if name == UNTOUCHED:
        return Interval(dot=0.0, class_="control", about=f"{name}: baseline of the other methods")
    if len(points) > POINTS:
        points = ()
    return Interval(
        low=formatting.finite(figure["low"]),
        high=formatting.finite(figure["high"]),
        dot=formatting.finite(figure["value"]),
        points=points,
        class_={-1: "good", 0: "", 1: "bad"}[clear(figure)],
        about=f"{name}: {with_interval(figure)}, {formatting.counted(figure['pairs'], 'pair')}",
    )


def _numbers(row: Mapping[str, Any]) -> list[str]:
    """Write the numbers to the right of the plot, in the order of `TITLES`."""
    change = row["against_nothing"]
    regret = row["regret"]
    headroom = row["headroom_closed"]
    failures = formatting.MISSING
    if count := row["diverged"] + row["failed"]:
        failures = f"{count}<small>of {row['cells']}</small>"
    return [
        f"{formatting.change(change['value'])}<small>{_bounds(change)}</small>",
        f"{formatting.change(regret['value'])}<small>{_bounds(regret)}</small>",
        f"{closed(headroom['value'])}<small>{_shares(headroom)}</small>",
        formatting.number(row["final_loss"]),
        formatting.whole(row["instability"]["value"]),
        formatting.whole(row["recovery"]["value"]),
        formatting.share(row["wasted"]["value"]),
        formatting.share(row["drafting"]["value"]),
        failures,
    ]


def _shares(figure: Mapping[str, Any]) -> str:
    """Write the interval of a share; empty if it is unknown."""
    if formatting.finite(figure["low"]) is None:
        return ""
    return f"{closed(figure['low']).removesuffix(' %')} to {closed(figure['high'])}"


def _bounds(figure: Mapping[str, Any]) -> str:
    """Write the interval of a figure; empty if it is unknown."""
    inside = formatting.interval(figure.get("low"), figure.get("high"))
    if inside == formatting.MISSING:
        return ""
    return inside
