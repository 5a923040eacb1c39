"""Tables of methods: over all tasks with intervals, and on one task with its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainenv.report.decoding.decoding_record import BOUND
from trainenv.report.drawing import formatting
from trainenv.report.drawing.intervals import (
    Interval,
    interval_head,
    interval_row,
    scale_of,
    zero_line,
)
from trainenv.report.drawing.svg import element, escaped

_TITLES = ("Regret", "Speed-up", "Acceptance", "Distance", "Evaluations")
_ALONE = ("Speed-up", "Regret", "Acceptance", "Distance", "Evaluations", "Settings")


def methods_table(methods: Sequence[Mapping[str, Any]]) -> str:
    """Draw one row a method with its regret to the oracle, the smallest first."""
    ordered = sorted(methods, key=lambda one: (one["method"] == BOUND, one["regret"]["value"]))
    rows = [(one, _interval(one)) for one in ordered]
    scale = scale_of(interval for _, interval in rows)
    about = "Axis: regret to the oracle in percent, left is better"
    top = f"<th>Method</th><th class='plot'>{interval_head(scale, about)}</th>" + "".join(
        f"<th class='n'>{title}</th>" for title in _TITLES
    )
    body = []
    for one, interval in rows:
        name = escaped(one["method"])
        if one["method"] == BOUND:
            name += "<small>reference</small>"
        plot = element("td", interval_row(interval, scale), class_="plot", style=zero_line(scale))
        cells = [element("td", text, class_="n") for text in _numbers(one)]
        body.append(element("tr", element("th", name, scope="row"), plot, *cells))
    table = element(
        "table",
        element("thead", f"<tr>{top}</tr>"),
        element("tbody", *body),
        class_="forest methods",
    )
    return element("div", table, class_="box")


def task_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Make the table of the methods on one task."""
    top = "<th>Method</th>" + "".join(f"<th class='n'>{title}</th>" for title in _ALONE)
    body = []
    for row in rows:
        texts = (
            f"{formatting.number(row['speedup'], 2)} ×",
            formatting.share(row["regret"]),
            formatting.share(row["acceptance"]),
            formatting.number(row["distance"]),
            formatting.whole(row["evaluations"]),
            escaped(settings_text(row["settings"])),
        )
        cells = [element("td", text, class_="n") for text in texts]
        body.append(element("tr", element("th", escaped(row["label"]), scope="row"), *cells))
    return element(
        "div",
        element("table", element("thead", f"<tr>{top}</tr>"), element("tbody", *body)),
        class_="box",
    )


def settings_text(settings: Mapping[str, Any]) -> str:
    """Write settings in words; a dash for rules that have none."""
    if not settings:
        return formatting.MISSING
    words = [f"fall-back {formatting.number(settings['fallback_threshold'], 2)}"]
    words.append(f"{formatting.whole(settings['k'])} tokens")
    return ", ".join(words)


def _interval(one: Mapping[str, Any]) -> Interval:
    regret = one["regret"]
    low = formatting.finite(regret["low"])
    high = formatting.finite(regret["high"])
    class_ = "control" if one["method"] == BOUND else ""
    if high is not None and high <= 0.05 and not class_:
        class_ = "good"
    if low is not None and low > 0.05:
        class_ = "bad"
    return Interval(
        low=low,
        high=high,
        dot=formatting.finite(regret["value"]),
        class_=class_,
        about=f"{one['method']}: regret {formatting.share(regret['value'])}",
    )


def _numbers(one: Mapping[str, Any]) -> list[str]:
    """Write the numbers to the right of the plot, in the order of `_TITLES`."""
    speedup = one["speedup"]
    regret = one["regret"]
    return [
        f"{formatting.share(regret['value'])}<small>{_bounds(regret, formatting.share)}</small>",
        f"{formatting.number(speedup['value'], 2)} ×<small>{_bounds(speedup, _times)}</small>",
        formatting.share(one["acceptance"]["value"]),
        formatting.number(one["distance"]["value"]),
        formatting.whole(one["evaluations"]["value"]),
    ]


def _times(value: Any) -> str:
    return formatting.number(value, 2)


def _bounds(figure: Mapping[str, Any], written: Any) -> str:
    """Write the interval of a figure; empty if it is unknown."""
    if formatting.finite(figure["low"]) is None:
        return ""
    return f"{written(figure['low'])} to {written(figure['high'])}"
