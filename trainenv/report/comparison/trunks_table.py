"""Methods against trunks: the mean change of the final loss, tinted by whether it is clear of 0."""

from __future__ import annotations

from trainenv.compare.paired_rows import SUBJECT, UNTOUCHED
from trainenv.report.comparison.comparison_record import Comparison
from trainenv.report.comparison.forest_plot import clear
from trainenv.report.drawing import formatting
from trainenv.report.drawing.svg import element, escaped

TINTS = {-1: "n good-cell", 0: "n", 1: "n bad-cell"}


def trunks_table(comparison: Comparison) -> str:
    """A row a method, a column a trunk."""
    faults = {trunk.name: trunk.fault for trunk in comparison.suite.trunks}
    top = [
        element("th", escaped(t), f"<small>{escaped(faults[t] or 'calm')}</small>", class_="n")
        for t in comparison.trunks
    ]
    rows = [_row(comparison, name) for name in comparison.methods if name != UNTOUCHED]
    table = element(
        "table",
        element("thead", element("tr", "<th>Method</th>", *top)),
        element("tbody", *rows),
        class_="matrix",
    )
    return element("div", table, class_="box")


def _row(comparison: Comparison, name: str) -> str:
    cells = []
    for trunk in comparison.trunks:
        figure = comparison.table.difference([trunk], name, UNTOUCHED).to_json()
        said = f"{formatting.interval(figure['low'], figure['high'])}, {formatting.counted(figure['pairs'], 'pair')}"
        cells.append(
            element(
                "td", formatting.change(figure["value"]), class_=TINTS[clear(figure)], title=said
            )
        )
    return element(
        "tr",
        element("th", escaped(name), scope="row"),
        *cells,
        class_="us" if name.startswith(SUBJECT) else None,
    )
