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
from trainenv.report.drawing.page import head, page, section, tiles
from trainenv.report.drawing.svg import details, element, escaped
from trainenv.report.run.calibration_panel import calibration
from trainenv.report.run.decision_card import NO_REASON, decision_card, outcome
from trainenv.report.run.ledger_bar import ledger_bar
from trainenv.report.run.run_figure import index_figure, run_figure
from trainenv.report.run.run_record import RunRecord
from trainenv.report.run.run_summary import Facts

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
    body = [head("Training run", record.name, facts.verdict), tiles(_tiles(facts)), _run(record)]
    if record.decisions:
        body.append(_decisions(record))
        body.append(section("Calibration", calibration(record.decisions), about=CALIBRATION))
    body.append(_index(record))
    body.append(section("Compute", ledger_bar(facts.flops), about=COMPUTE))
    if record.events:
        body.append(section("Events", _events(each_once(record.events))))
    return page(f"{record.name} · trainenv", "".join(body), _data(record))


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    ended = facts.ended
    if facts.budget:
        ended = f"of {formatting.whole(facts.budget)}; {ended}"
    losses = {"Full validation loss": facts.full_loss, "Test loss": facts.test_loss}
    numbers = [
        ("Validation loss", formatting.number(facts.loss), "nats per token"),
        *(
            (name, formatting.number(loss), "nats per token")
            for name, loss in losses.items()
            if loss is not None
        ),
        ("Steps", formatting.whole(facts.steps), ended),
        ("Alarms", str(facts.alarms), formatting.counted(facts.rewinds, "rollback")),
    ]
    if facts.verified:
        numbers.append(("Accepted", f"{facts.accepted} of {facts.verified}", "verified decisions"))
    if facts.total_flops:
        compute = f"of {formatting.flops(facts.total_flops)}"
        numbers.append(("Wasted", formatting.share(facts.wasted), "rolled back or discarded"))
        numbers.append(("Planning", formatting.share(facts.drafting), compute))
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


def _alarm(detail: Mapping[str, Any]) -> str:
    """Describe an alarm; the layer is named whose gradient is the oddest."""
    index = formatting.number(detail.get("index"), 1)
    text = f"alarm: uncertainty index {index}, loss {formatting.number(detail.get('loss'))}"
    if layer := detail.get("layer"):
        text += f"; gradient norm {formatting.number(detail['layers'].get(layer))} in {layer}"
        if (ratio := formatting.finite(detail.get("layer_ratio"))) is not None:
            text += f", {formatting.number(ratio, 1)} times the usual"
    if (logit := formatting.finite(detail.get("attention_logit"))) is not None:
        block = detail.get("attention_block")
        text += f"; largest attention logit {formatting.number(logit, 1)}, in block {block}"
    return text


def describe_event(event: Mapping[str, Any]) -> str:
    """Describe an event in words."""
    detail = event.get("detail") or {}
    reason = detail.get("reason")
    match event["kind"]:
        case "fired":
            return _alarm(detail)
        case "replay":
            return f"replayed: {reason or NO_REASON}"
        case "rewind":
            return _rollback(detail)
        case "intervention":
            text = f"intervention: {formatting.intervention(detail)}"
            if detail.get("pending"):
                text += " (later part of an accepted plan)"
            if plan := detail.get("plan"):
                text += (
                    f" (plan to the end: {formatting.change(plan.get('forecast'))} in final loss)"
                )
            return text
        case "decision":
            outcome = "the run continued unchanged"
            if detail.get("accepted"):
                outcome = "a branch was accepted"
            return _joined(f"decision {detail.get('number')}: {outcome}", "; ", reason)
        case "skipped":
            return f"skipped decision: {reason or NO_REASON}{_often(detail)}"
        case "fault":
            return f"fault: {detail['reason']}{_often(detail)}"
        case "gave_up":
            return f"planning was given up: {reason or NO_REASON}"
    return _joined(f"{event['kind']}", ": ", reason)


def _rollback(detail: Mapping[str, Any]) -> str:
    text = f"rolled back to step {formatting.whole(detail.get('to'))}"
    scale = formatting.finite(detail.get("lr_scale"))
    if scale is not None and scale != 1:
        text += f", LR now ×{scale:.3g}"
    return text


def _joined(text: str, separator: str, reason: object) -> str:
    if not reason:
        return text
    return f"{text}{separator}{reason}"


def _often(detail: Mapping[str, Any]) -> str:
    """Write the number of times, if it is more than one."""
    if detail.get("times", 1) <= 1:
        return ""
    return f" ({detail['times']} times)"


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
