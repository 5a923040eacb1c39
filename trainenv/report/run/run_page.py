"""The report of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainenv.records.decision_files import accepted_branch
from trainenv.records.faults import each_once
from trainenv.report.drawing import formatting
from trainenv.report.drawing.downsampling import floats, smoothed
from trainenv.report.drawing.intervals import key
from trainenv.report.drawing.page import head, page, section, tiles
from trainenv.report.drawing.svg import element, escaped
from trainenv.report.run.calibration_panel import calibration
from trainenv.report.run.decision_card import decision_card, outcome
from trainenv.report.run.ledger_bar import ledger_bar
from trainenv.report.run.run_figure import index_figure, run_figure
from trainenv.report.run.run_record import RunRecord
from trainenv.report.run.run_summary import Facts

CARDS = 100  # more would make the file too large to send; the others stand in a table
ROWS = 1000

DECISIONS = (
    "The change of the validation loss against doing nothing, after the verified steps: what the draft expected, and what "
    "real steps measured."
)
CALIBRATION = "A draft is honest when nine of ten measurements lie in its 90 % intervals. In change of the validation loss."
INDEX = "Each axis is a z-score against its own history; the index is their weighted sum. An alarm fires above the threshold."
COMPUTE = "Every step taken anywhere is charged. Branches that became the run count as kept steps."
RUN_KEY = [
    ("smooth", "training, smoothed"),
    ("dot", "each step, thinned"),
    ("validation", "validation"),
    ("lost", "rewound"),
    ("alarm", "alarm"),
]
TREE_KEY = [
    ("accepted", "branch that became the run"),
    ("passed", "other branches"),
    ("failed", "failed"),
]
CARD_KEY = [
    ("interval", "drafted: 90 % interval and median"),
    ("measured", "measured"),
    ("measured outside", "measured, outside of the interval"),
]


def run_page(record: RunRecord) -> str:
    """The whole document."""
    facts = Facts.of(record)
    body = [head("Training run", record.name, facts.verdict), tiles(_tiles(facts)), _run(record)]
    if record.decisions:
        body.append(_decisions(record))
        body.append(section("Calibration", calibration(record.decisions), about=CALIBRATION))
    body.append(_index(record))
    body.append(section("Compute", ledger_bar(facts.flops), about=COMPUTE))
    if record.events:
        body.append(section("What happened", _events(each_once(record.events))))
    return page(f"{record.name} · trainenv", "".join(body), _data(record))


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    budget = f"of {formatting.whole(facts.budget)}" if facts.budget else ""
    numbers = [
        ("Validation loss", formatting.number(facts.loss), "nats per token"),
        ("Steps", formatting.whole(facts.steps), f"{budget}{'; ' if budget else ''}{facts.ended}"),
        ("Triggers", str(facts.alarms), formatting.counted(facts.rewinds, "rewind")),
    ]
    if facts.verified:
        numbers.append(("Accepted", f"{facts.accepted} of {facts.verified}", "verified decisions"))
    if facts.total_flops:
        numbers.append(("Wasted", formatting.share(facts.wasted), "rewound or thrown away"))
        numbers.append(
            (
                "Drafting",
                formatting.share(facts.drafting),
                f"of {formatting.flops(facts.total_flops)}",
            )
        )
    return numbers


def _run(record: RunRecord) -> str:
    shown = RUN_KEY[:3]
    if not record.steps["kept"].all():
        shown = [*shown, RUN_KEY[3]]
    if any(event["kind"] == "fired" for event in record.events):
        shown = [*shown, RUN_KEY[4]]
    if record.decisions:
        shown = [*shown, *TREE_KEY]
    return section(
        "The run", key(shown), element("figure", run_figure(record), class_="wide"), name="run"
    )


def _index(record: RunRecord) -> str:
    keys = key(
        [
            ("axis-line index", "mean"),
            ("dot axis-dot", "each step, thinned"),
            ("threshold", "threshold"),
        ]
    )
    return section(
        "Uncertainty by axis",
        keys,
        element("figure", index_figure(record), class_="wide"),
        about=INDEX,
    )


def _decisions(record: RunRecord) -> str:
    shown = _most_telling(record.decisions)
    cards = [decision_card(decision, opened=len(record.decisions) <= 6) for decision in shown]
    with_card = {id(decision) for decision in shown}
    left = [decision for decision in record.decisions if id(decision) not in with_card]
    rest = (
        f"<p class='quiet'>{formatting.counted(len(left), 'more decision')}, in short:</p>{_in_short(left)}"
        if left
        else ""
    )
    return section("Decisions", key(CARD_KEY), *cards, rest, about=DECISIONS, name="decisions")


def _most_telling(decisions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All of them, or `CARDS`: first those that changed the run, then the newest; in the order they were made."""
    ranked = sorted(
        decisions, key=lambda decision: (accepted_branch(decision) is None, -decision["number"])
    )
    return sorted(ranked[:CARDS], key=lambda decision: int(decision["number"]))


def _in_short(decisions: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        element(
            "tr",
            element("td", str(d["number"]), class_="n"),
            element("td", formatting.whole(d["step"]), class_="n"),
            element("td", escaped(outcome(d))),
            element("td", escaped(d.get("reason") or "")),
        )
        for d in decisions[-ROWS:]
    ]
    top = "<thead><tr><th class='n'>No.</th><th class='n'>Step</th><th>Outcome</th><th>Reason</th></tr></thead>"
    return element("div", element("table", top, element("tbody", *rows)), class_="box tall")


def _events(events: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        element(
            "tr",
            element("td", formatting.whole(event["step"]), class_="n"),
            element("td", escaped(told(event))),
        )
        for event in events[:ROWS]
    ]
    more = f"<p class='quiet'>The first {ROWS} of {len(events)}.</p>" if len(events) > ROWS else ""
    top = "<thead><tr><th class='n'>Step</th><th>Event</th></tr></thead>"
    table = element("div", element("table", top, element("tbody", *rows)), class_="box tall")
    return element(
        "details",
        element("summary", formatting.counted(len(events), "event")),
        table,
        more,
        open="open" if len(events) <= 12 else None,
    )


def told(event: Mapping[str, Any]) -> str:
    """An event in words."""
    detail = event.get("detail") or {}
    match event["kind"]:
        case "fired":
            return f"alarm: index {formatting.number(detail.get('index'), 1)}, loss {formatting.number(detail.get('loss'))}"
        case "rewind":
            scale = formatting.finite(detail.get("lr_scale"))
            return f"rewound to step {formatting.whole(detail.get('to'))}" + (
                f", LR now ×{scale:.3g}" if scale is not None and scale != 1 else ""
            )
        case "intervention":
            later = " (a later part of what was accepted)" if detail.get("pending") else ""
            return f"intervened: {formatting.intervention(detail)}{later}"
        case "decision":
            became = (
                "a branch became the run" if detail.get("accepted") else "the run went on as it was"
            )
            return f"decision {detail.get('number')}: {became}" + (
                f"; {detail['reason']}" if detail.get("reason") else ""
            )
        case "skipped":
            return f"no decision: {detail.get('reason') or 'no reason was noted'}{_often(detail)}"
        case "fault":
            return f"fault: {detail['reason']}{_often(detail)}"
        case "gave_up":
            return f"gave up drafting: {detail.get('reason') or 'no reason was noted'}"
    return f"{event['kind']}" + (f": {detail['reason']}" if detail.get("reason") else "")


def _often(detail: Mapping[str, Any]) -> str:
    """The number of times, where it is more than one."""
    return f" ({detail['times']} times)" if detail.get("times", 1) > 1 else ""


def _data(record: RunRecord) -> dict[str, Any]:
    """What the pointer reads out: about 600 kept steps."""
    kept = record.kept.assign(smooth=smoothed(record.kept["loss"]) if len(record.kept) else [])
    shown = kept.iloc[:: max(math.ceil(len(kept) / 600), 1)]
    data: dict[str, Any] = {"step": shown["step"].astype(int).tolist()}
    for name, column, digits in (("loss", "smooth", 4), ("index", "index", 2), ("LR", "lr", 8)):
        values = floats(shown[column])
        data[name] = [round(v, digits) if math.isfinite(v) else None for v in values.tolist()]
    return data
