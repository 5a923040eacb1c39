"""The compute ledger as one bar, with one piece for each purpose."""

from __future__ import annotations

from collections.abc import Mapping

from trainenv.report.drawing import formatting
from trainenv.report.drawing.svg import element, escaped
from trainenv.types import PURPOSES


def ledger_bar(flops: Mapping[str, float]) -> str:
    """Draw the bar and its table."""
    total = sum(flops.values())
    if not total:
        return element("p", "The compute is recorded when the run ends.", class_="quiet")
    names = [*PURPOSES, *(name for name in flops if name not in PURPOSES)]
    spent = [(name, flops.get(name, 0.0)) for name in names]
    pieces = [
        element(
            "i",
            class_=f"p-{_known(name)}",
            style=f"flex-grow:{amount / total:.5f}",
            title=f"{_named(name)}: {formatting.share(amount / total)}",
        )
        for name, amount in spent
        if amount
    ]
    rows = [
        element(
            "tr",
            element(
                "th", f'<i class="swatch p-{_known(name)}"></i>', escaped(_named(name)), scope="row"
            ),
            element("td", formatting.share(amount / total), class_="n"),
            element("td", formatting.flops(amount), class_="n"),
        )
        for name, amount in spent
    ]
    sum_row = element(
        "tr",
        element("th", "total", scope="row"),
        element("td", "100 %", class_="n"),
        element("td", formatting.flops(total), class_="n"),
    )
    return element(
        "div", *pieces, class_="bar", role="img", aria_label="Compute by purpose"
    ) + element(
        "div", element("table", element("tbody", *rows, sum_row), class_="ledger"), class_="box"
    )


def _named(name: str) -> str:
    return formatting.PURPOSES.get(name, name)


def _known(name: str) -> str:
    if name in PURPOSES:
        return name
    return "other"
