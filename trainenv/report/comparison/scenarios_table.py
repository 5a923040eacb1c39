"""Table of methods by scenario: mean change of the final loss, tinted where clearly not 0."""

from __future__ import annotations

from trainenv.compare.paired_rows import UNTOUCHED
from trainenv.report.comparison.comparison_record import Comparison
from trainenv.report.comparison.forest_plot import clear, row_class
from trainenv.report.drawing import formatting
from trainenv.report.drawing.svg import element, escaped

TINTS = {-1: "n good-cell", 0: "n", 1: "n bad-cell"}


def scenarios_table(comparison: Comparison) -> str:
    """Make a table with one row a method and one column a scenario."""
    faults = {scenario.name: scenario.fault for scenario in comparison.suite.scenarios}
    top = [
        element("th", escaped(t), f"<small>{escaped(faults[t] or 'calm')}</small>", class_="n")
        for t in comparison.scenarios
    ]
    rows = [_row(comparison, name) for name in comparison.methods if name != UNTOUCHED]
    table = element(
        "table",
        element("thead", element("tr", "<th>Method</th>", *top)),
        element("tbody", *rows),
        class_="matrix stack",
    )
    return element("div", table, class_="box")


def _row(comparison: Comparison, name: str) -> str:
    cells = []
    for scenario in comparison.scenarios:
        figure = comparison.table.difference([scenario], name, UNTOUCHED).to_json()
        inside = formatting.interval(figure["low"], figure["high"])
        about = f"{inside}, {formatting.counted(figure['pairs'], 'pair')}"
        change = formatting.change(figure["value"])
        tint = TINTS[clear(figure)]
        cells.append(element("td", change, class_=tint, title=about, data_name=scenario))
    head = element("th", escaped(name), scope="row")
    return element("tr", head, *cells, class_=row_class(name))
