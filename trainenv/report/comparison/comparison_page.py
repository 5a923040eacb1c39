"""The report of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainenv.compare.paired_rows import SUBJECT, UNTOUCHED
from trainenv.report.comparison.comparison_record import Comparison
from trainenv.report.comparison.forest_plot import forest, told
from trainenv.report.comparison.trunks_table import trunks_table
from trainenv.report.drawing import formatting
from trainenv.report.drawing.intervals import key
from trainenv.report.drawing.page import head, page, section, tiles
from trainenv.report.drawing.svg import element, escaped

METHODS = (
    "Final validation loss against doing nothing on the same trunk and seed; left of 0 is better. A run that diverged counts as "
    "a uniform guess; one that failed is left out. Events are of instability. Regret is against the best static setting of the "
    "trunk, chosen in hindsight."
)
TRUNKS = "Mean change of the final loss against doing nothing on each trunk; tinted where its interval is clear of 0."
DECISIONS = "Of the methods that look into the future, over all trunks."
KEY = [
    ("interval", "95 % bootstrap interval of the mean"),
    ("measured good", "clearly better"),
    ("measured bad", "clearly worse"),
    ("measured", "not told apart"),
    ("pair", "each trunk and seed"),
]
BAD = 500  # rows of what went wrong


def comparison_page(comparison: Comparison) -> str:
    """The whole document."""
    name = comparison.suite.name
    body = [
        head("Comparison at equal compute", name, verdict(comparison)),
        tiles(_tiles(comparison)),
    ]
    if SUBJECT in comparison.methods:
        body.append(
            section(
                "Goals",
                element(
                    "ul",
                    *map(_goal, sorted(comparison.found["goals"], key=_missed_first)),
                    class_="goals",
                ),
            )
        )
    parts = [element("h3", "All trunks") + forest(comparison, "all", comparison.trunks)]
    for group, trunks in comparison.groups.items():
        title = f"{group.capitalize()} trunks: {', '.join(trunks)}"
        parts.append(element("h3", escaped(title)) + forest(comparison, group, trunks))
    body.append(section("Methods", key(KEY), *parts, about=METHODS))
    if len(comparison.trunks) > 1:
        body.append(section("By trunk", trunks_table(comparison), about=TRUNKS))
    if decisions := [row for row in comparison.found["decisions"] if row["group"] == "all"]:
        body.append(section("Decisions", _decisions(decisions), about=DECISIONS))
    if failures := _failures(comparison):
        body.append(section("What went wrong", failures))
    return page(f"{name} · trainenv", "".join(body))


def verdict(comparison: Comparison) -> str:
    """Who did best, and how the loop did where that is another."""
    known = {
        row["method"]: row["against_nothing"]
        for row in comparison.rows("all")
        if row["method"] != UNTOUCHED
        and not row["hindsight"]
        and formatting.finite(row["against_nothing"]["value"]) is not None
    }
    if not known:
        return "No method can be set against doing nothing yet."
    best = min(known, key=lambda name: float(known[name]["value"]))
    said = f"Of {formatting.counted(len(known), 'method')}, {best} ends best: {told(known[best])} against doing nothing, "
    said += f"over {formatting.counted(known[best]['pairs'], 'pair')} of trunk and seed."
    if SUBJECT in known and best != SUBJECT:
        said += f" {SUBJECT.capitalize()} stands at {told(known[SUBJECT])}."
    missed = sum(goal["met"] is False for goal in comparison.found["goals"])
    if SUBJECT in known:
        said += f" {formatting.counted(missed, 'goal').capitalize()} missed."
    return said


def _tiles(comparison: Comparison) -> list[tuple[str, str, str]]:
    cells = comparison.found["cells"]
    goals = comparison.found["goals"]
    left = cells["wanted"] - cells["there"]
    seeds = len({seed for seeds in comparison.table.rows.values() for seed in seeds})
    numbers = [
        ("Methods", str(len(comparison.methods)), "at equal compute"),
        ("Trunks", str(len(comparison.trunks)), formatting.counted(seeds, "seed")),
        (
            "Runs",
            formatting.whole(cells["there"]),
            f"{left} to come" if left > 0 else formatting.duration(cells["seconds"]) + " of work",
        ),
        (
            "Lost",
            str(cells["diverged"] + cells["failed"]),
            f"{cells['diverged']} diverged, {cells['failed']} failed",
        ),
    ]
    if SUBJECT in comparison.methods:
        met, missed = (sum(goal["met"] is judged for goal in goals) for judged in (True, False))
        numbers.append(
            (
                "Goals met",
                f"{met} of {len(goals)}",
                f"{missed} missed, {len(goals) - met - missed} open",
            )
        )
    return numbers


def _missed_first(goal: Mapping[str, Any]) -> int:
    return {False: 0, None: 1}.get(goal["met"], 2)


def _goal(goal: Mapping[str, Any]) -> str:
    """A goal with the word that says whether it was met, and what was measured."""
    name, class_ = {True: ("met", "met"), False: ("missed", "missed")}.get(
        goal["met"], ("open", "off")
    )
    low, high = goal["interval"] or (None, None)
    measured = (
        f"measured {formatting.number(goal['measured'], 4)}"
        if goal["measured"] is not None
        else "nothing to judge by yet"
    )
    inside = (
        f" ({formatting.number(low, 4)} to {formatting.number(high, 4)})"
        if formatting.finite(low) is not None
        else ""
    )
    text = element(
        "div",
        escaped(goal["what"]),
        element("small", escaped(f"Goal: {goal['goal']}; {measured}{inside}.")),
    )
    return element("li", element("span", name, class_=f"badge {class_}"), text)


def _decisions(found: list[dict[str, Any]]) -> str:
    """The second table."""
    titles = (
        "Decisions per 1000 steps",
        "Accepted",
        "Draft-to-real gap",
        "Coverage of 90 %",
        "Steps a verification",
        "Its compute",
    )
    top = "<th>Method</th>" + "".join(f"<th class='n'>{title}</th>" for title in titles)
    rows = []
    for row in found:
        value = {
            name: figure["value"] for name, figure in row.items() if isinstance(figure, Mapping)
        }
        texts = (
            formatting.number(value["invoked"], 1),
            formatting.share(value["accepted"]),
            formatting.change(value["gap"]).lstrip("+"),
            formatting.share(value["coverage"]),
            formatting.whole(value["verify_steps"]),
            formatting.share(value["verify_cost"]),
        )
        rows.append(
            element(
                "tr",
                element("th", escaped(row["method"]), scope="row"),
                *(element("td", t, class_="n") for t in texts),
            )
        )
    return element(
        "div",
        element("table", element("thead", f"<tr>{top}</tr>"), element("tbody", *rows)),
        class_="box",
    )


def _failures(comparison: Comparison) -> str:
    """Cells that failed or diverged, one by one."""
    bad = [row for row in comparison.found["rows"] if row["ended"] in ("failed", "diverged")]
    texts = [
        (row["method"], row["trunk"], row["seed"], row["ended"], row["error"] or "")
        for row in bad[:BAD]
    ]
    rows = [element("tr", *(element("td", escaped(text)) for text in row)) for row in texts]
    top = "<thead><tr><th>Method</th><th>Trunk</th><th>Seed</th><th>Ended</th><th>Error</th></tr></thead>"
    return (
        element("div", element("table", top, element("tbody", *rows)), class_="box tall")
        if rows
        else ""
    )
