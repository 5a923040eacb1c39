"""Comparison of a steered run with the run of the same configuration that was left alone."""

from __future__ import annotations

from trainenv.report.drawing import formatting
from trainenv.report.drawing.svg import element, escaped
from trainenv.report.run.run_record import RunRecord
from trainenv.report.run.run_summary import Facts
from trainenv.report.run.timeline import Story

_SAME = 5e-4  # share of the loss below which two ends count as equal
_TOLERANCE = 0.01  # share by which the compute of two runs may differ and count as equal


def against(ours: Facts, alone: Facts) -> str:
    """Return a clause on how a run compares with the one left alone; empty if neither is known."""
    if alone.loss is None:
        if ours.loss is None:
            return ""
        return "the same run left alone diverged" if alone.diverged else ""
    if ours.loss is None:
        return f"the same run left alone has {formatting.number(alone.loss)}"
    change = ours.loss / alone.loss - 1
    level = f"the same run left alone ({formatting.number(alone.loss)})"
    if abs(change) < _SAME:
        return f"equal to {level}"
    direction = "lower" if change < 0 else "higher"
    return f"{100 * abs(change):.1f} % {direction} than {level}{_compute(ours, alone)}"


def _compute(ours: Facts, alone: Facts) -> str:
    if not (ours.total_flops and alone.total_flops):
        return ""
    ratio = ours.total_flops / alone.total_flops
    if abs(ratio - 1) <= _TOLERANCE:
        return " at the same compute"
    return f" with {ratio:.2f} times its compute"


def side_by_side(record: RunRecord, alone: RunRecord) -> str:
    """Draw a table of both runs."""
    pair = (record, alone)
    facts = [Facts.of(one) for one in pair]
    stories = [Story.of(one) for one in pair]
    rows: list[tuple[str, list[str]]] = [
        ("Validation loss", [formatting.number(one.loss) for one in facts])
    ]
    if any(one.test_loss is not None for one in facts):
        rows.append(("Test loss", [formatting.number(one.test_loss) for one in facts]))
    rows += [
        ("State", [one.ended for one in facts]),
        ("Steps", [formatting.whole(one.steps) for one in facts]),
        ("Incidents", [str(len(one.incidents)) for one in stories]),
        ("Longest until the loss was back, steps", [_longest(one) for one in stories]),
        ("Alarms", [str(one.alarms) for one in facts]),
        ("Rollbacks", [str(one.rewinds) for one in facts]),
        ("Compute", [formatting.flops(one.total_flops) for one in facts]),
        ("Wasted", [formatting.share(one.wasted) for one in facts]),
    ]
    head = element("tr", "<th></th>", *(element("th", name, class_="n") for name in _NAMES))
    body = [
        element(
            "tr",
            element("th", escaped(name), scope="row"),
            *(element("td", escaped(text), class_="n") for text in texts),
        )
        for name, texts in rows
    ]
    table = element("table", element("thead", head), element("tbody", *body), class_="pair-table")
    return element("div", table, class_="box")


_NAMES = ("this run", "left alone")


def _longest(story: Story) -> str:
    """Write the longest time that the training loss of the kept steps was above its level."""
    times = [one.over - one.first for one in story.incidents if one.rose and one.over is not None]
    if any(not one.is_over for one in story.incidents):
        return "not back yet"
    return formatting.whole(max(times)) if times else formatting.MISSING
