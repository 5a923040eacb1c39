"""Methods as a forest plot in a table: their difference to doing nothing on a group of trunks, and the other metrics."""

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

POINTS = 200  # more pairs than this are not drawn one by one
TITLES = (
    "Change",
    "Regret",
    "Final loss",
    "Events per 100k",
    "Steps to recover",
    "Wasted",
    "Drafting",
    "Lost",
)


def forest(comparison: Comparison, group: str, trunks: Sequence[str]) -> str:
    """A row a method, the best first; what was known in hindsight only comes last."""
    found = best_first(comparison.rows(group))
    rows = [(row, _interval(row, pairs(comparison, trunks, row["method"]))) for row in found]
    scale = scale_of(interval for _, interval in rows)
    top = f"<th>Method</th><th class='plot'>{interval_head(scale)}</th>" + "".join(
        f"<th class='n'>{t}</th>" for t in TITLES
    )
    body = []
    for row, interval in rows:
        plot = element("td", interval_row(interval, scale), class_="plot", style=zero_line(scale))
        note = "<small>in hindsight</small>" if row["hindsight"] else ""
        cells = [element("td", text, class_="n") for text in _numbers(row)]
        class_ = "us" if row["method"].startswith(SUBJECT) else None
        body.append(
            element(
                "tr",
                element("th", escaped(row["method"]), note, scope="row"),
                plot,
                *cells,
                class_=class_,
            )
        )
    table = element(
        "table",
        element("thead", f"<tr>{top}</tr>"),
        element("tbody", *body),
        class_="forest methods",
    )
    return element("div", table, class_="box")


def best_first(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Doing nothing, then by the change of the loss; what was known in hindsight only comes last."""
    return sorted(rows, key=_order)


def pairs(comparison: Comparison, trunks: Sequence[str], method: str) -> tuple[float, ...]:
    """Δ ln final loss of each trunk and seed to doing nothing."""
    found = comparison.table.pairs(trunks, method, UNTOUCHED) if method != UNTOUCHED else []
    return tuple(mine["log_final_loss"] - theirs["log_final_loss"] for mine, theirs in found)


def clear(figure: Mapping[str, Any]) -> int:
    """−1 where the whole interval of a figure is below 0, 1 where it is above, else 0."""
    low = formatting.finite(figure.get("low"))
    high = formatting.finite(figure.get("high"))
    if low is None or high is None:
        return 0
    return -1 if high < 0 else 1 if low > 0 else 0


def told(figure: Mapping[str, Any]) -> str:
    """A difference with its interval in words."""
    inside = formatting.interval(figure.get("low"), figure.get("high"))
    return formatting.change(figure.get("value")) + (
        f" ({inside})" if inside != formatting.NOTHING else ""
    )


def _order(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
    value = formatting.finite(row["against_nothing"]["value"])
    return row["hindsight"], row["method"] != UNTOUCHED, math.inf if value is None else value


def _interval(row: Mapping[str, Any], points: tuple[float, ...]) -> Interval:
    name = row["method"]
    figure = row["against_nothing"]
    if name == UNTOUCHED:
        return Interval(
            dot=0.0, class_="control", said=f"{name}: what the others are measured against"
        )
    return Interval(
        low=formatting.finite(figure["low"]),
        high=formatting.finite(figure["high"]),
        dot=formatting.finite(figure["value"]),
        points=points if len(points) <= POINTS else (),
        class_={-1: "good", 0: "", 1: "bad"}[clear(figure)],
        said=f"{name}: {told(figure)}, {formatting.counted(figure['pairs'], 'pair')}",
    )


def _numbers(row: Mapping[str, Any]) -> list[str]:
    """What stands beside the plot, in the order of `TITLES`."""
    change = row["against_nothing"]
    regret = row["regret"]
    lost = row["diverged"] + row["failed"]
    return [
        f"{formatting.change(change['value'])}<small>{_bounds(change)}</small>",
        f"{formatting.change(regret['value'])}<small>{_bounds(regret)}</small>",
        formatting.number(row["final_loss"]),
        formatting.whole(row["instability"]["value"]),
        formatting.whole(row["recovery"]["value"]),
        formatting.share(row["wasted"]["value"]),
        formatting.share(row["drafting"]["value"]),
        f"{lost}<small>of {row['cells']}</small>" if lost else formatting.NOTHING,
    ]


def _bounds(figure: Mapping[str, Any]) -> str:
    inside = formatting.interval(figure["low"], figure["high"])
    return "" if inside == formatting.NOTHING else inside
