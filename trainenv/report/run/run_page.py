"""The HTML report of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainenv.records.decision_files import accepted_branch
from trainenv.records.faults import each_once
from trainenv.report.drawing import formatting
from trainenv.report.drawing.downsampling import floats, smoothed
from trainenv.report.drawing.intervals import key
from trainenv.report.drawing.page import page, section
from trainenv.report.drawing.svg import details, element, escaped
from trainenv.report.run.calibration_panel import calibration, pairs
from trainenv.report.run.decision_card import decision_card, outcome
from trainenv.report.run.event_words import describe_event
from trainenv.report.run.glossary import glossary
from trainenv.report.run.ledger_bar import ledger_bar
from trainenv.report.run.left_alone import side_by_side
from trainenv.report.run.run_figure import index_figure, run_figure
from trainenv.report.run.run_record import RunRecord
from trainenv.report.run.run_summary import Facts
from trainenv.report.run.timeline import Story, timeline
from trainenv.report.run.verdict import Verdict, verdict_box

FEWEST = 20  # branches with forecast and measurement for which calibration is shown
CARDS = 100  # most cards; more would make the file too large, so the rest goes into a table
ROWS = 1000

DECISIONS = (
    "Change of the validation loss against no intervention, after the verified steps: the forecast "
    "of the world model, and the measurement in real training steps."
)
CALIBRATION = (
    "Forecasts are calibrated if nine of ten measurements lie in their 90 % intervals. All values "
    "are changes of the validation loss against no intervention."
)
INDEX = (
    "Volatility, entropy and disagreement are z-scores against their own history; the uncertainty "
    "index is their weighted sum. An alarm is raised above the threshold."
)
ALONE = "A run of the same configuration and data, next to this one, that nothing has steered."
COMPUTE = (
    "All training steps are counted, also those of branches and those that were rolled back. The "
    "steps of an accepted branch count as kept steps."
)
RUN_KEY = [
    ("smooth", "training loss, smoothed"),
    ("dot", "training loss of single steps (a selection)"),
    ("validation", "validation loss"),
    ("lost", "rolled back"),
    ("alarm", "alarm"),
    ("beyond-axis", "training loss above the axis, with its value"),
]
TREE_KEY = [
    ("accepted", "accepted branch"),
    ("passed", "other branches"),
    ("failed", "failed branch"),
]
CARD_KEY = [
    ("interval", "forecast: median and 90 % interval"),
    ("measured", "measured"),
    ("measured outside", "measured, outside the interval"),
]


def run_page(record: RunRecord) -> str:
    """Make the whole HTML document."""
    facts = Facts.of(record)
    story = Story.of(record)
    body = [
        _head(record, Verdict.of(record, story)),
        _run(record, story),
    ]
    if record.left_alone is not None:
        table = side_by_side(record, record.left_alone)
        body.append(section("Against the run left alone", table, about=ALONE, name="alone"))
    if record.decisions:
        body.append(_decisions(record))
        if len(pairs(record.decisions)) >= FEWEST:
            body.append(section("Calibration", calibration(record.decisions), about=CALIBRATION))
    body.append(_index(record))
    body.append(section("Compute", ledger_bar(facts.flops), about=COMPUTE))
    if record.events:
        body.append(section("Events", _events(each_once(record.events))))
    body.append(section("Words", glossary(), name="words"))
    return page(f"{record.name} · trainenv", "".join(body), _data(record))


def _head(record: RunRecord, verdict: Verdict) -> str:
    """Make the head: name, verdict and the answers that a person on call needs first."""
    return element(
        "header",
        element("p", "Training run", class_="kind"),
        element("h1", escaped(record.name)),
        verdict_box(verdict),
    )


def _run(record: RunRecord, story: Story) -> str:
    shown = RUN_KEY[:3]
    if record.left_alone is not None:
        shown = [*shown, ("alone", "the same run left alone, training loss, smoothed")]
    if not record.steps["kept"].all():
        shown = [*shown, RUN_KEY[3]]
    if any(event["kind"] == "fired" for event in record.events):
        shown = [*shown, RUN_KEY[4]]
    shown = [*shown, RUN_KEY[5]]
    if record.decisions:
        shown = [*shown, *TREE_KEY]
    parts = [key(shown), element("figure", run_figure(record), class_="wide")]
    if story.entries:
        parts += [element("h3", "What happened, step by step"), timeline(story.entries)]
    return section("The run", *parts, name="run")


def _index(record: RunRecord) -> str:
    keys = key(
        [
            ("axis-line index", "mean of neighbouring steps"),
            ("dot axis-dot", "single steps (a selection)"),
            ("threshold", "alarm threshold"),
        ]
    )
    return section(
        "Uncertainty index and its parts",
        keys,
        element("figure", index_figure(record), class_="wide"),
        about=INDEX,
    )


def _decisions(record: RunRecord) -> str:
    shown = _with_card(record.decisions)
    parts = [decision_card(decision, opened=len(record.decisions) <= 6) for decision in shown]
    with_card = {id(decision) for decision in shown}
    others = [decision for decision in record.decisions if id(decision) not in with_card]
    if others:
        count = formatting.counted(len(others), "more decision")
        parts += [element("p", f"{count}, in short:", class_="quiet"), _in_short(others)]
    return section("Decisions", key(CARD_KEY), *parts, about=DECISIONS, name="decisions")


def _with_card(decisions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Choose at most `CARDS` decisions: those that changed the run, then the newest; in order."""
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
    top = (
        "<thead><tr><th class='n'>No.</th><th class='n'>Step</th><th>Outcome</th><th>Reason</th>"
        "</tr></thead>"
    )
    return element("div", element("table", top, element("tbody", *rows)), class_="box tall")


def _events(events: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        element(
            "tr",
            element("td", formatting.whole(event["step"]), class_="n"),
            element("td", escaped(describe_event(event))),
        )
        for event in events[:ROWS]
    ]
    top = "<thead><tr><th class='n'>Step</th><th>Event</th></tr></thead>"
    parts = [element("div", element("table", top, element("tbody", *rows)), class_="box tall")]
    if len(events) > ROWS:
        parts.append(element("p", f"The first {ROWS} of {len(events)}.", class_="quiet"))
    return details(
        formatting.counted(len(events), "event"), *parts, opened=len(events) <= 12, class_=None
    )


def _data(record: RunRecord) -> dict[str, Any]:
    """Return the values that are shown under the pointer: about 600 kept steps."""
    kept = record.kept
    kept = kept.assign(smooth=kept["loss"])
    if len(kept):
        kept = kept.assign(smooth=smoothed(kept["loss"]))
    shown = kept.iloc[:: max(math.ceil(len(kept) / 600), 1)]
    data: dict[str, Any] = {"step": shown["step"].astype(int).tolist()}
    for name, column, digits in (("loss", "smooth", 4), ("index", "index", 2), ("LR", "lr", 8)):
        data[name] = [_rounded(value, digits) for value in floats(shown[column]).tolist()]
    return data


def _rounded(value: float, digits: int) -> float | None:
    if not math.isfinite(value):
        return None
    return round(value, digits)
