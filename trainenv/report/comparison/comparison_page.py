"""The HTML report of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainenv.compare.paired_rows import SUBJECT, UNTOUCHED
from trainenv.report.comparison.comparison_record import Comparison
from trainenv.report.comparison.comparison_text import headroom, measured_on, measurement
from trainenv.report.comparison.forest_plot import forest, with_interval
from trainenv.report.comparison.scenarios_table import scenarios_table
from trainenv.report.drawing import formatting
from trainenv.report.drawing.intervals import key
from trainenv.report.drawing.page import head, page, section, tiles
from trainenv.report.drawing.svg import element, escaped

METHODS = (
    "Change of the final loss against no intervention, in the same scenario with the same seed; "
    "left of 0 is better. {part} A run that diverged counts as a uniform guess; a run that failed "
    "is left out. Events are events of instability. Regret is the change against the best static "
    "setting of the scenario, chosen in hindsight."
)
CLOSED = (
    " Headroom closed is a method's gain over no intervention as a share of the gain of the best "
    "open-loop setting, chosen on other seeds."
)
SCENARIOS = (
    "Mean change of the final loss against no intervention in each scenario; tinted where the "
    "whole interval is below or above 0."
)
DECISIONS = "Methods that try branches before they decide, over all scenarios."
KEY = [
    ("interval", "95 % bootstrap interval of the mean"),
    ("measured good", "clearly better"),
    ("measured bad", "clearly worse"),
    ("measured", "no clear difference"),
    ("pair", "one scenario and seed"),
]
BAD = 500  # most rows of the table of failures


def comparison_page(comparison: Comparison) -> str:
    """Make the whole HTML document."""
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
    parts = [element("h3", "All scenarios") + forest(comparison, "all", comparison.scenarios)]
    for group, scenarios in comparison.groups.items():
        title = f"{group.capitalize()} scenarios: {', '.join(scenarios)}"
        parts.append(element("h3", escaped(title)) + forest(comparison, group, scenarios))
    body.append(section("Methods", key(KEY), *parts, about=_about_methods(comparison)))
    if len(comparison.scenarios) > 1:
        body.append(section("By scenario", scenarios_table(comparison), about=SCENARIOS))
    if decisions := [row for row in comparison.found["decisions"] if row["group"] == "all"]:
        body.append(section("Decisions", _decisions(decisions), about=DECISIONS))
    if failures := _failures(comparison):
        body.append(section("Failures", failures))
    return page(f"{name} · trainenv", "".join(body))


def _about_methods(comparison: Comparison) -> str:
    """Explain the columns of the table of methods."""
    about = METHODS.format(part=measured_on(comparison))
    if gains := headroom(comparison):
        about += f"{CLOSED} {gains}"
    return about


def verdict(comparison: Comparison) -> str:
    """Name the best method and, if that is another, the result of the loop."""
    known = {
        row["method"]: row["against_nothing"]
        for row in comparison.rows("all")
        if row["method"] != UNTOUCHED
        and not row["hindsight"]
        and formatting.finite(row["against_nothing"]["value"]) is not None
    }
    if not known:
        return "No method can be compared with no intervention yet."
    best = min(known, key=lambda name: float(known[name]["value"]))
    text = (
        f"Of {formatting.counted(len(known), 'method')}, {best} has the lowest final loss: "
        f"{with_interval(known[best])} against no intervention, over "
        f"{formatting.counted(known[best]['pairs'], 'pair')} of scenario and seed."
    )
    if SUBJECT in known and best != SUBJECT:
        text += f" {SUBJECT.capitalize()} reaches {with_interval(known[SUBJECT])}."
    missed = sum(goal["met"] is False for goal in comparison.found["goals"])
    if SUBJECT in known:
        text += f" {formatting.counted(missed, 'goal').capitalize()} missed."
    return text


def _tiles(comparison: Comparison) -> list[tuple[str, str, str]]:
    cells = comparison.found["cells"]
    goals = comparison.found["goals"]
    seeds = len({seed for seeds in comparison.table.rows.values() for seed in seeds})
    progress = f"{formatting.duration(cells['seconds'])} of computing"
    if cells["wanted"] > cells["there"]:
        progress = f"{cells['wanted'] - cells['there']} still to run"
    failures = f"{cells['diverged']} diverged, {cells['failed']} failed"
    numbers = [
        ("Methods", str(len(comparison.methods)), "at equal compute"),
        ("Scenarios", str(len(comparison.scenarios)), formatting.counted(seeds, "seed")),
        ("Runs", formatting.whole(cells["there"]), progress),
        ("Failures", str(cells["diverged"] + cells["failed"]), failures),
    ]
    if SUBJECT in comparison.methods:
        met = sum(goal["met"] is True for goal in goals)
        missed = sum(goal["met"] is False for goal in goals)
        others = f"{missed} missed, {len(goals) - met - missed} open"
        numbers.append(("Goals met", f"{met} of {len(goals)}", others))
    return numbers


def _missed_first(goal: Mapping[str, Any]) -> int:
    return {False: 0, None: 1}.get(goal["met"], 2)


def _goal(goal: Mapping[str, Any]) -> str:
    """Show a goal with its status and the measured value."""
    name, class_ = {True: ("met", "met"), False: ("missed", "missed")}.get(
        goal["met"], ("open", "off")
    )
    measured = measurement(goal)
    low, high = goal["interval"] or (None, None)
    if formatting.finite(low) is not None:
        measured += f" ({formatting.number(low, 4)} to {formatting.number(high, 4)})"
    text = element(
        "div",
        escaped(goal["what"]),
        element("small", escaped(f"Goal: {goal['goal']}; {measured}.")),
    )
    return element("li", element("span", name, class_=f"badge {class_}"), text)


def _decisions(found: list[dict[str, Any]]) -> str:
    """Make the table about decisions."""
    titles = (
        "Decisions per 1000 steps",
        "Accepted",
        "Forecast error",
        "Coverage of 90 % intervals",
        "Steps per verification",
        "Compute for verification",
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
                *(
                    element("td", text, class_="n", data_name=title)
                    for title, text in zip(titles, texts)
                ),
            )
        )
    return element(
        "div",
        element(
            "table",
            element("thead", f"<tr>{top}</tr>"),
            element("tbody", *rows),
            class_="stack",
        ),
        class_="box",
    )


def _failures(comparison: Comparison) -> str:
    """List the runs that failed or diverged; empty if there are none."""
    bad = [row for row in comparison.found["rows"] if row["ended"] in ("failed", "diverged")]
    if not bad:
        return ""
    texts = [
        (row["method"], row["scenario"], row["seed"], row["ended"], row["error"] or "")
        for row in bad[:BAD]
    ]
    titles = ("Method", "Scenario", "Seed", "Ended", "Error")
    rows = [
        element(
            "tr",
            *(element("td", escaped(text), data_name=name) for name, text in zip(titles, row)),
        )
        for row in texts
    ]
    top = element("thead", element("tr", *(element("th", title) for title in titles)))
    return element(
        "div", element("table", top, element("tbody", *rows), class_="stack"), class_="box tall"
    )
