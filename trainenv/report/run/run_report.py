"""The branch tree of a run as text for the terminal, and as HTML for notebooks.

>>> report = RunReport(Path("runs/tiny"))    # doctest: +SKIP
>>> print(report.tree())                     # doctest: +SKIP
>>> report.html("tiny.html")                 # doctest: +SKIP
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from trainenv.records.decision_files import accepted_branch
from trainenv.records.faults import each_once
from trainenv.report.drawing import formatting
from trainenv.report.drawing.intervals import key
from trainenv.report.drawing.page import style
from trainenv.report.drawing.svg import element, escaped
from trainenv.report.html_file import write_report
from trainenv.report.run.decision_card import branch_forecast
from trainenv.report.run.event_words import describe_event
from trainenv.report.run.run_figure import run_figure
from trainenv.report.run.run_page import RUN_KEY, TREE_KEY
from trainenv.report.run.run_record import RunRecord, read_run
from trainenv.report.run.run_summary import Facts
from trainenv.report.run.verdict_words import NO_REASON

MARKS = {"accepted": ("✔", "bold green"), "failed": ("✘", "red"), "control": ("·", "dim")}
SIGNS = {
    "fired": ("▲", "red"),
    "rewind": ("↶", "yellow"),
    "fault": ("✘", "red"),
    "intervention": ("◆", "green"),
}
# Events in the tree, with interventions that a plan made; decisions have entries of their own.
SHOWN = {
    *("fired", "replay", "rewind", "skipped", "gave_up", "fault", "diverged", "interrupted"),
}


@dataclass(frozen=True)
class RunReport:
    """Report of a run; its folder is read when the report is first used.

    Args:
        folder: Folder of the run.

    Raises:
        UserError: The folder is not that of a run; raised when it is read.
    """

    folder: Path

    @cached_property
    def record(self) -> RunRecord:
        """The run as recorded."""
        return read_run(Path(self.folder))

    @property
    def summary(self) -> dict[str, Any]:
        """The final summary of the run, or the figures known so far."""
        if self.record.summary is not None:
            return dict(self.record.summary)
        facts = Facts.of(self.record)
        known = {
            "step": facts.steps,
            "final_validation_loss": facts.loss,
            "fired": facts.alarms,
            "rewinds": facts.rewinds,
        }
        return {
            "name": self.record.config.get("name"),
            "ended": facts.ended,
            **known,
            "folder": str(self.folder),
        }

    def tree(self, width: int = 110) -> str:
        """Return the branch tree as plain text, in lines of at most `width` characters."""
        page = io.StringIO()
        # In a notebook rich would display the tree and leave the text empty.
        console = Console(
            file=page, width=width, color_system=None, highlight=False, force_jupyter=False
        )
        console.print(self.__rich__())
        return page.getvalue()

    def html(self, path: str | Path | None = None) -> Path:
        """Write the HTML report, by default to `report.html` in the folder; return its path."""
        if path is not None:
            path = Path(path)
        return write_report(Path(self.folder), path)

    def __rich__(self) -> Tree:
        """Return the branch tree with colours, for a rich console."""
        facts = Facts.of(self.record)
        tree = Tree(
            Text.assemble((self.record.name, "bold"), "  ", facts.verdict), guide_style="dim"
        )
        for step, _, entry in sorted(_entries(self.record), key=lambda found: found[:2]):
            if isinstance(entry, Text):
                tree.add(Text.assemble(_step(step), entry))
            else:
                _decision(tree, entry)
        end = facts.ended
        if facts.loss is not None:
            end += f", validation loss {formatting.number(facts.loss)}"
        if facts.test_loss is not None:
            end += f", test loss {formatting.number(facts.test_loss)}"
        tree.add(Text.assemble(_step(facts.steps), ("● ", "bold"), end))
        return tree

    def _repr_html_(self) -> str:
        """Return name, verdict, loss and branch tree as HTML for a notebook."""
        entries = RUN_KEY[:3]
        if self.record.decisions:
            entries = [*entries, *TREE_KEY]
        return element(
            "div",
            element("style", style("style", "charts")),
            element("h3", escaped(self.record.name)),
            element("p", escaped(Facts.of(self.record).verdict)),
            key(entries),
            element("figure", run_figure(self.record), class_="wide"),
            class_="trainenv fragment",
        )


def _step(step: int) -> tuple[str, str]:
    """Write a step number in its column; also return the column's colour."""
    return f"{formatting.whole(step):>7}  ", "cyan"


def _entries(record: RunRecord) -> list[tuple[int, int, Text | Mapping[str, Any]]]:
    """List the entries of the tree, each with its step and its order within that step."""
    found: list[tuple[int, int, Text | Mapping[str, Any]]] = []
    for place, event in enumerate(each_once(record.events)):
        planned = event["kind"] == "intervention" and (event.get("detail") or {}).get("plan")
        if event["kind"] in SHOWN or planned:
            sign, colour = SIGNS.get(event["kind"], ("○", "dim"))
            text = Text.assemble((f"{sign} ", colour), describe_event(event))
            found.append((event["step"], place, text))
    count = len(record.events)
    found += [
        (d.get("at") or d["step"], count + place, d) for place, d in enumerate(record.decisions)
    ]
    return found


def _decision(tree: Tree, decision: Mapping[str, Any]) -> None:
    """Add a decision to the tree, with its branches below it."""
    sign = ("◇ ", "bold")
    if accepted_branch(decision) is not None:
        sign = ("◆ ", "bold green")
    title = Text.assemble(_step(decision["step"]), sign, (f"decision {decision['number']}", "bold"))
    title.append(f": {formatting.trigger(decision)}")
    harm = formatting.finite(decision.get("harm"))
    if harm is not None and harm > 0:
        title.append(f", harm {formatting.number(harm)} nats")
    title.append(f"; {decision.get('reason') or NO_REASON}")
    node = tree.add(title)
    names = formatting.branches(decision)
    widest = min(max(map(len, names), default=0), 30)
    for name, branch in zip(names, decision["branches"]):
        node.add(_branch(f"{name:<{widest}}", branch))


def _branch(name: str, branch: Mapping[str, Any]) -> Text:
    fate = str(branch.get("fate"))
    mark, colour = MARKS.get(fate, ("–", "dim"))
    measured = ""
    if not branch.get("control"):
        measured = formatting.change(branch.get("delta"))
    text = Text.assemble((f"{mark} {name}", colour), f" {measured:>8} ", (f" {fate:<8}", colour))
    if forecast := branch_forecast(branch):
        inside = formatting.interval(forecast.get("low"), forecast.get("high"))
        text.append(f" forecast {inside}", "dim")
    return text
