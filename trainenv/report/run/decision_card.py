"""A decision as a card: trigger, plan, verification, verdict, and the result of each branch."""

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
from trainenv.report.drawing.svg import details, element, escaped
from trainenv.report.run.branch_losses import rollouts
from trainenv.report.run.verdict_words import verdict_words

FATES = {
    "control": "control",
    "accepted": "accepted",
    "passed": "passed",
    "rejected": "rejected",
    "stopped": "stopped early",
    "failed": "failed",
}
_TITLES = ("Forecast", "Measured", "Training loss")
CAPTION = (
    "<figcaption>Training loss minus the loss without intervention on the same batches, running "
    "mean, nats</figcaption>"
)


def decision_card(decision: Mapping[str, Any], *, opened: bool) -> str:
    """Make the card: a line that is always visible, and details that open below it."""
    explanation = element("div", _explanation(decision), class_="told")
    return details(
        _head(decision),
        element("div", explanation, _curves(decision), class_="split"),
        element("div", _branches(decision), class_="box"),
        _fingerprints(decision),
        opened=opened,
        class_="card",
        id=f"decision-{decision['number']}",
    )


def outcome(decision: Mapping[str, Any]) -> str:
    """Describe the result of a decision in a few words."""
    branch = accepted_branch(decision)
    if branch is None:
        return "continued unchanged"
    name = formatting.sequence(branch.get("interventions") or [])
    return f"{name}, measured {formatting.change(branch.get('delta'))}"


def branch_forecast(branch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the forecast of a branch; empty for the control, whose change is 0 by definition."""
    if branch.get("control"):
        return {}
    return branch.get("expected") or {}


def _curves(decision: Mapping[str, Any]) -> str:
    """Draw the losses of the branches; nothing if the control saw other batches."""
    if formatting.recorded(decision):
        return ""
    picture = rollouts(decision)
    if not picture:
        return ""
    return element("figure", picture, CAPTION, class_="rollouts")


def _head(decision: Mapping[str, Any]) -> str:
    badge = element("span", "unchanged", class_="badge off")
    if accepted_branch(decision) is not None:
        badge = element("span", "accepted", class_="badge on")
    title = element("b", f"Decision {decision['number']}")
    what = element("span", escaped(outcome(decision)), class_="what")
    return f"{title} <span>step {formatting.whole(decision['step'])}</span> {badge} {what}"


def _explanation(decision: Mapping[str, Any]) -> str:
    """Explain trigger, plan, verification and verdict in a sentence or two each."""
    entries = [
        ("Trigger", _trigger(decision)),
        ("Plan", _plan(decision.get("planner") or {})),
        ("Verification", _verification(decision)),
        ("Verdict", formatting.sentence(verdict_words(decision))),
    ]
    return element(
        "dl", *(element("dt", name) + element("dd", escaped(text)) for name, text in entries)
    )


def _trigger(decision: Mapping[str, Any]) -> str:
    step = decision["step"]
    at = formatting.finite(decision.get("at"))
    if at is None:
        at = step
    text = f"At step {formatting.whole(at)} {formatting.trigger(decision)}"
    if at > step:
        text += f"; the run was rolled back to step {formatting.whole(step)}"
    harm = formatting.finite(decision.get("harm"))
    if harm is not None and harm > 0:
        excess = formatting.number(harm)
        text += f". Harm: the loss on the clean probe was {excess} nats above its usual level"
    return f"{text}."


def _plan(planner: Mapping[str, Any]) -> str:
    if planner.get("name") == "detour":  # as rollbacks are recorded
        return (
            "The rule for harm: back to before it, skip that data, a third of the rate meanwhile."
        )
    name = f"“{planner.get('name', 'unknown')}”"
    if planner.get("candidates") == 2 and not planner.get("futures"):
        text = f"{name} proposed one change, without a forecast."
    else:
        dropped = ""
        if planner.get("dropped"):
            dropped = f" ({formatting.whole(planner['dropped'])} more were dropped)"
        text = (
            f"The planner {name} ranked {formatting.whole(planner.get('candidates'))} "
            f"candidates{dropped} with {formatting.whole(planner.get('futures'))} forecasts in "
            f"{formatting.duration(planner.get('seconds'))}."
        )
    if planner.get("complete") is False:
        text += " Planning was stopped early."
    if faults := planner.get("faults"):
        text += f" Faults: {'; '.join(map(str, faults))}."
    return text


def _verification(decision: Mapping[str, Any]) -> str:
    verification = decision.get("verification") or {}
    cost = decision.get("cost") or {}
    text = formatting.counted(len(decision["branches"]), "branch", "branches")
    text += f", {formatting.whole(verification.get('verify_steps'))} real steps each"
    if verification.get("cooldown"):
        text += f" and {formatting.whole(verification['cooldown'])} of cool-down"
    text += f", judged by the rule “{verification.get('rule', 'unknown')}”. "
    wasted = formatting.flops(cost.get("wasted_flops"))
    if "wasted_steps" in cost:
        wasted = f"{formatting.whole(cost['wasted_steps'])} steps"
    text += f"Cost: {formatting.whole(cost.get('steps'))} steps, "
    text += formatting.flops(cost.get("flops"))
    return f"{text}; {wasted} of it did not become part of the run."


def _branches(decision: Mapping[str, Any]) -> str:
    rows = [
        (name, branch, _interval(name, branch))
        for name, branch in zip(formatting.branches(decision), decision["branches"])
    ]
    scale = scale_of(interval for _, _, interval in rows)
    head = element(
        "tr",
        element("th", "Branch"),
        element("th", interval_head(scale), class_="plot"),
        *(element("th", title, class_="n") for title in _TITLES),
        element("th", "Result"),
    )
    body = [
        _row(name, branch, interval_row(interval, scale), zero_line(scale))
        for name, branch, interval in rows
    ]
    return element("table", element("thead", head), element("tbody", *body), class_="forest stack")


def _row(name: str, branch: Mapping[str, Any], plot: str, zero: str) -> str:
    fate = str(branch.get("fate"))
    result = element("b", escaped(FATES.get(fate, fate)), class_=f"fate {_class(fate)}")
    reason = f"<small>{escaped(formatting.reason(branch))}</small>"
    measured = "0"
    if not branch.get("control"):
        measured = formatting.change(branch.get("delta"))
    numbers = (_written_forecast(branch), measured, _paired(branch))
    return element(
        "tr",
        element("th", escaped(name), scope="row"),
        element("td", plot, class_="plot", style=zero),
        *(
            element("td", number, class_="n", data_name=title)
            for title, number in zip(_TITLES, numbers)
        ),
        element("td", result, reason, data_name="Result"),
        class_=_class(fate),
    )


def _written_forecast(branch: Mapping[str, Any]) -> str:
    forecast = branch_forecast(branch)
    if not forecast:
        return formatting.MISSING
    inside = formatting.interval(forecast.get("low"), forecast.get("high"))
    return f"{formatting.change(forecast.get('median'))}<small>{inside}</small>"


def _paired(branch: Mapping[str, Any]) -> str:
    """Write the mean paired difference of the training loss with its standard error."""
    paired = branch.get("paired")
    if not paired:
        return formatting.MISSING
    error = formatting.change(paired.get("error")).lstrip("+")
    return f"{formatting.change(paired.get('mean'))}<small>± {error}</small>"


def _interval(name: str, branch: Mapping[str, Any]) -> Interval:
    forecast = branch_forecast(branch)
    low, middle, high = (formatting.finite(forecast.get(key)) for key in ("low", "median", "high"))
    delta = formatting.finite(branch.get("delta"))
    class_ = ""
    if branch.get("control"):
        delta = 0.0
        class_ = "control"
    if branch.get("fate") == "accepted":
        class_ = "accepted"
    about = f"{name}: "
    if middle is not None:
        inside = formatting.interval(low, high)
        about += f"forecast {formatting.change(middle)} ({inside}), "
    about += f"measured {formatting.change(delta)}"
    return Interval(low=low, middle=middle, high=high, dot=delta, class_=class_, about=about)


def _class(fate: str) -> str:
    if fate in FATES:
        return fate
    return "rejected"


def _fingerprints(decision: Mapping[str, Any]) -> str:
    """Show the fingerprints of the run, for a comparison with a replay."""
    start = str((decision.get("start") or {}).get("fingerprint") or "")[:12]
    end = str((decision.get("end") or {}).get("fingerprint") or "")[:12]
    if not start:
        return ""
    text = f"fingerprint of the run: {start} before the decision"
    if end:
        text += f", {end} after it"
    return element("p", escaped(text), class_="fine")
