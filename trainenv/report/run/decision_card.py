"""A decision as a card: why, what was drafted, what the real steps measured, and what became of each branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainenv.records.decision_files import accepted_branch
from trainenv.report.drawing import formatting
from trainenv.report.drawing.intervals import (
    Interval,
    interval_head,
    interval_row,
    scale_of,
    zero_line,
)
from trainenv.report.drawing.svg import element, escaped
from trainenv.report.run.branch_losses import rollouts

FATES = {
    "control": "control",
    "accepted": "accepted",
    "passed": "passed",
    "rejected": "rejected",
    "stopped": "stopped early",
    "failed": "failed",
}


def decision_card(decision: Mapping[str, Any], *, opened: bool) -> str:
    """The card: a line that is always seen, and what opens below it."""
    head = element("summary", _head(decision))
    # its steps saw other batches
    picture = "" if formatting.recorded(decision) else rollouts(decision)
    caption = "<figcaption>Real steps: training loss less doing nothing’s on the same batches, running mean, nats</figcaption>"
    side = element("figure", picture, caption, class_="rollouts") if picture else ""
    told = element("div", element("div", _why(decision), class_="told"), side, class_="split")
    inside = told + element("div", _branches(decision), class_="box") + _settings(decision)
    return element(
        "details",
        head,
        inside,
        class_="card",
        open="open" if opened else None,
        id=f"decision-{decision['number']}",
    )


def outcome(decision: Mapping[str, Any]) -> str:
    """What was decided, in a few words."""
    branch = accepted_branch(decision)
    if branch is None:
        return "went on as it was"
    return f"{formatting.sequence(branch.get('interventions') or [])}, measured {formatting.change(branch.get('delta'))}"


def _head(decision: Mapping[str, Any]) -> str:
    became = accepted_branch(decision) is not None
    badge = element(
        "span", "accepted" if became else "kept", class_=f"badge {'on' if became else 'off'}"
    )
    title = element("b", f"Decision {decision['number']}")
    what = element("span", escaped(outcome(decision)), class_="what")
    return f"{title} <span>step {formatting.whole(decision['step'])}</span> {badge} {what}"


def _why(decision: Mapping[str, Any]) -> str:
    """Why, the draft, the verification and the verdict, a sentence or two each."""
    why = formatting.WHY.get(str(decision.get("why")), str(decision.get("why")))
    at = formatting.finite(decision.get("at"))
    place = f"At step {formatting.whole(decision['step'] if at is None else at)} {why}"
    if at is not None and at > decision["step"]:
        place += f"; the run was rewound to step {formatting.whole(decision['step'])}"
    harm = formatting.finite(decision.get("harm"))
    if harm is not None and harm > 0:
        place += f". Harm: the clean probe stood {formatting.number(harm)} nats above its level"
    said = [
        ("Why", f"{place}."),
        ("Draft", _draft(decision.get("planner") or {})),
        ("Verification", _verification(decision)),
    ]
    said.append(("Verdict", formatting.sentence(decision.get("reason") or "no reason was noted")))
    return element(
        "dl", *(element("dt", name) + element("dd", escaped(text)) for name, text in said)
    )


def _draft(planner: Mapping[str, Any]) -> str:
    dropped = (
        f" ({formatting.whole(planner['dropped'])} more dropped)" if planner.get("dropped") else ""
    )
    text = f"The planner “{planner.get('name', 'unknown')}” ranked {formatting.whole(planner.get('candidates'))} candidates{dropped}"
    text += f" by {formatting.whole(planner.get('futures'))} forecast futures in {formatting.duration(planner.get('seconds'))}."
    if planner.get("candidates") == 2 and not planner.get("futures"):
        text = f"“{planner.get('name', 'unknown')}” put forward one change, without a forecast."
    if planner.get("complete") is False:
        text += " It was cut short."
    faults = planner.get("faults") or []
    return f"{text} Faults: {'; '.join(map(str, faults))}." if faults else text


def _verification(decision: Mapping[str, Any]) -> str:
    verification = decision.get("verification") or {}
    cost = decision.get("cost") or {}
    run = formatting.counted(len(decision["branches"]), "branch", "branches")
    text = f"{run}, {formatting.whole(verification.get('verify_steps'))} real steps each"
    if verification.get("cooldown"):
        text += f" and {formatting.whole(verification['cooldown'])} of cool-down"
    text += f", judged by “{verification.get('rule', 'an unknown rule')}”. Cost: {formatting.whole(cost.get('steps'))} steps"
    wasted = (
        f"{formatting.whole(cost['wasted_steps'])} steps"
        if "wasted_steps" in cost
        else formatting.flops(cost.get("wasted_flops"))
    )
    return f"{text}, {formatting.flops(cost.get('flops'))}; {wasted} of them thrown away."


def _branches(decision: Mapping[str, Any]) -> str:
    rows = [
        (name, branch, _interval(name, branch))
        for name, branch in zip(formatting.branches(decision), decision["branches"])
    ]
    scale = scale_of(row for _, _, row in rows)
    numbers = "".join(
        f"<th class='n'>{name}</th>" for name in ("Drafted", "Measured", "Training loss")
    )
    head = f"<tr><th>Branch</th><th class='plot'>{interval_head(scale)}</th>{numbers}<th>Fate</th></tr>"
    body = [
        _row(name, branch, interval_row(row, scale), zero_line(scale)) for name, branch, row in rows
    ]
    return element("table", element("thead", head), element("tbody", *body), class_="forest")


def _row(name: str, branch: Mapping[str, Any], plot: str, zero: str) -> str:
    fate = str(branch.get("fate"))
    expected = _expected(branch)
    paired = branch.get("paired") or {}
    reason = formatting.reason(branch)
    drafted = f"{formatting.change(expected.get('median'))}<small>{formatting.interval(expected.get('low'), expected.get('high'))}</small>"
    training = f"{formatting.change(paired.get('mean'))}<small>± {formatting.change(paired.get('error')).lstrip('+')}</small>"
    cells = (
        element("th", escaped(name), scope="row"),
        element("td", plot, class_="plot", style=zero),
        element("td", drafted if expected else formatting.NOTHING, class_="n"),
        element(
            "td",
            "0" if branch.get("control") else formatting.change(branch.get("delta")),
            class_="n",
        ),
        element("td", training if paired else formatting.NOTHING, class_="n"),
        element(
            "td",
            element("b", escaped(FATES.get(fate, fate)), class_=f"fate {_class(fate)}"),
            f"<small>{escaped(reason)}</small>",
        ),
    )
    return element("tr", *cells, class_=_class(fate))


def _expected(branch: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the draft expected; of the control nothing, for it is 0 by definition."""
    return {} if branch.get("control") else branch.get("expected") or {}


def _interval(name: str, branch: Mapping[str, Any]) -> Interval:
    expected = _expected(branch)
    low, middle, high = (
        formatting.finite(expected.get(name)) for name in ("low", "median", "high")
    )
    delta = 0.0 if branch.get("control") else formatting.finite(branch.get("delta"))
    drafted = (
        f"drafted {formatting.change(middle)} ({formatting.interval(low, high)}), "
        if middle is not None
        else ""
    )
    said = f"{name}: {drafted}measured {formatting.change(delta)}"
    class_ = (
        "accepted"
        if branch.get("fate") == "accepted"
        else "control"
        if branch.get("control")
        else ""
    )
    return Interval(low=low, middle=middle, high=high, dot=delta, class_=class_, said=said)


def _class(fate: str) -> str:
    return fate if fate in FATES else "rejected"


def _settings(decision: Mapping[str, Any]) -> str:
    """Where the numbers are that this card leaves out."""
    start = str((decision.get("start") or {}).get("fingerprint") or "")[:12]
    end = str((decision.get("end") or {}).get("fingerprint") or "")[:12]
    if not start:
        return ""
    text = f"state before {start}, after {end}" if end else f"state before {start}"
    return element("p", escaped(text), class_="fine")
