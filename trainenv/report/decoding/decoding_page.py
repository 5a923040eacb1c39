"""The HTML report of thresholds of speculative decoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainenv.report.decoding.decoding_record import BOUND, DecodingRecord
from trainenv.report.decoding.methods_table import methods_table, task_table
from trainenv.report.decoding.pareto_picture import pareto_picture
from trainenv.report.decoding.threshold_picture import threshold_picture
from trainenv.report.drawing import formatting
from trainenv.report.drawing.intervals import key
from trainenv.report.drawing.page import head, page, section, tiles
from trainenv.report.drawing.svg import element, escaped

NOTE = "Speed-ups are over the target alone, on the clock of the cost model."
METHODS = (
    "Means over pairs, corpora and seeds on texts that no method saw, with 95 % bootstrap "
    "intervals. Regret is the share of the oracle's score that is missing; the oracle is the best "
    "fixed setting in hindsight. Methods with “other pairs” or “other corpora” were trained "
    "without the pair or the corpus that they are evaluated on."
)
METHODS_KEY = [
    ("interval", "95 % bootstrap interval of the mean"),
    ("measured good", "within 5 % of the oracle"),
    ("measured bad", "clearly more than 5 % behind it"),
]
TASK_KEY = [
    ("heat", "faster than the target alone"),
    ("heat slower", "slower"),
    ("dot", "settings; those of the exact rule have distance 0"),
    ("front", "Pareto front"),
]
_LEFT = "Speed-up of the exact rule over fall-back threshold and draft length."
_RIGHT = "Speed-up against the total-variation distance to the target; left and up is better."


def decoding_page(record: DecodingRecord) -> str:
    """Make the whole HTML document."""
    body = [
        head("Thresholds of speculative decoding", record.path.name, verdict(record)),
        tiles(_tiles(record)),
    ]
    if record.methods:
        body.append(
            section("Methods", key(METHODS_KEY), methods_table(record.methods), about=METHODS)
        )
    parts = [_task(record, task) for task in record.tasks]
    body.append(section("Tasks", key(TASK_KEY), *parts))
    return page(f"{record.path.name} · trainenv", "".join(body), note=NOTE)


def verdict(record: DecodingRecord) -> str:
    """Name the method with the least regret and the speed of a general policy, or the result."""
    if not record.chosen:
        return _result(record)
    best = record.chosen[0]
    if max(float(one["speedup"]["value"]) for one in record.chosen) <= 1:
        return "No method is faster than the target alone: decode without a draft."
    text = (
        f"{_capital(best['method'])} is {_times(best)} as fast as the target alone, "
        f"{formatting.share(best['regret']['value'])} behind the oracle."
    )
    general = [one for one in record.chosen if one["method"].startswith("general")]
    if general and general[0] is not best:
        text += (
            f" {_capital(general[0]['method'])}, reaches {_times(general[0])} without an "
            "evaluation on the task."
        )
    if not record.finished:
        text += " Cells are still missing."
    return text


def _result(record: DecodingRecord) -> str:
    """Write the result of a search or a recommendation as a sentence."""
    if not record.summary:
        return "No method was evaluated."
    return f"{_capital(record.summary)}."


def _tiles(record: DecodingRecord) -> list[tuple[str, str, str]]:
    pairs = {task["pair"] for task in record.tasks}
    corpora = {task["corpus"] for task in record.tasks}
    numbers = [
        (
            "Pairs",
            str(len(pairs)),
            f"of models, on {formatting.counted(len(corpora), 'corpus', 'corpora')}",
        ),
        ("Rule", str(record.plan.get("rule", formatting.MISSING)), "of verification"),
    ]
    if "budget" in record.plan:
        numbers.append(("Budget", str(record.plan["budget"]), "evaluations a task"))
    bound = [one for one in record.methods if one["method"] == BOUND]
    if bound:
        numbers.append(("Oracle", _times(bound[0]), "best fixed settings in hindsight"))
    return numbers


def _task(record: DecodingRecord, task: Mapping[str, Any]) -> str:
    """Show one task: two pictures and a table."""
    figures = element(
        "div",
        element("figure", threshold_picture(task["points"]), element("figcaption", _LEFT)),
        element("figure", pareto_picture(task["points"]), element("figcaption", _RIGHT)),
        class_="split",
    )
    rows = record.of_task(task)
    table = task_table(rows) if rows else ""
    return element("h3", escaped(task["name"])) + figures + table


def _times(one: Mapping[str, Any]) -> str:
    return f"{formatting.number(one['speedup']['value'], 2)} ×"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
