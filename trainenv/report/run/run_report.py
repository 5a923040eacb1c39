"""The branch tree of a run as text for the terminal, and a fragment of HTML for notebooks.

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
from trainenv.report import write_report
from trainenv.report.drawing import formatting
from trainenv.report.drawing.intervals import key
from trainenv.report.drawing.page import style
from trainenv.report.drawing.svg import element, escaped
from trainenv.report.run.run_figure import run_figure
from trainenv.report.run.run_page import RUN_KEY, TREE_KEY, told
from trainenv.report.run.run_record import RunRecord, read_run
from trainenv.report.run.run_summary import Facts

MARKS = {"accepted": ("✔", "bold green"), "failed": ("✘", "red"), "control": ("·", "dim")}
SIGNS = {"fired": ("▲", "red"), "rewind": ("↶", "yellow"), "fault": ("✘", "red")}
SHOWN = {
    "fired",
    "rewind",
    "skipped",
    "gave_up",
    "fault",
    "diverged",
    "interrupted",
}  # decisions tell of themselves


@dataclass(frozen=True)
class RunReport:
    """What became of a run, read from its folder when it is first looked at.

    Raises:
        UserError: no run records in the folder (when it is read).
    """

    folder: Path

    @cached_property
    def record(self) -> RunRecord:
        return read_run(Path(self.folder))

    @property
    def summary(self) -> dict[str, Any]:
        """The summary that the run ended with, or what is known of it so far."""
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
        """The branch tree as plain text, lines of at most `width` characters."""
        page = io.StringIO()
        Console(file=page, width=width, color_system=None, highlight=False).print(self.__rich__())
        return page.getvalue()

    def html(self, path: str | Path | None = None) -> Path:
        """Write the report (see `write_report`); `report.html` in the folder by default."""
        return write_report(Path(self.folder), None if path is None else Path(path))

    def __rich__(self) -> Tree:
        """The same with colours, for a rich console."""
        facts = Facts.of(self.record)
        tree = Tree(
            Text.assemble((self.record.name, "bold"), "  ", facts.verdict), guide_style="dim"
        )
        for step, _, entry in sorted(_entries(self.record), key=lambda found: found[:2]):
            if isinstance(entry, Text):
                tree.add(Text.assemble((f"{formatting.whole(step):>7}  ", "cyan"), entry))
            else:
                _decision(tree, entry)
        loss = (
            f", validation loss {formatting.number(facts.loss)}" if facts.loss is not None else ""
        )
        tree.add(
            Text.assemble(
                (f"{formatting.whole(facts.steps):>7}  ", "cyan"),
                ("● ", "bold"),
                f"{facts.ended}{loss}",
            )
        )
        return tree

    def _repr_html_(self) -> str:
        """Name, verdict, loss and branch tree: what a notebook shows."""
        keys = key([*RUN_KEY[:3], *(TREE_KEY if self.record.decisions else [])])
        head = element("h3", escaped(self.record.name)) + element(
            "p", escaped(Facts.of(self.record).verdict)
        )
        figure = element("figure", run_figure(self.record), class_="wide")
        return element(
            "div",
            element("style", style("style", "charts")),
            head,
            keys,
            figure,
            class_="trainenv fragment",
        )


def _entries(record: RunRecord) -> list[tuple[int, int, Text | Mapping[str, Any]]]:
    """What stands in the tree: the step where it happened, its place among what happened there, and itself."""
    found: list[tuple[int, int, Text | Mapping[str, Any]]] = []
    for place, event in enumerate(each_once(record.events)):
        if event["kind"] in SHOWN:
            sign, colour = SIGNS.get(event["kind"], ("○", "dim"))
            found.append((event["step"], place, Text.assemble((f"{sign} ", colour), told(event))))
    count = len(record.events)
    found += [
        (d.get("at") or d["step"], count + place, d) for place, d in enumerate(record.decisions)
    ]
    return found


def _decision(tree: Tree, decision: Mapping[str, Any]) -> None:
    """A decision and its branches below it."""
    became = accepted_branch(decision) is not None
    why = formatting.WHY.get(str(decision.get("why")), str(decision.get("why")))
    known = formatting.finite(decision.get("harm")) or 0.0
    harm = f", harm {formatting.number(known)} nats" if known > 0 else ""
    sign = ("◆ ", "bold green") if became else ("◇ ", "bold")
    title = Text.assemble(
        (f"{formatting.whole(decision['step']):>7}  ", "cyan"),
        sign,
        (f"decision {decision['number']}", "bold"),
    )
    node = tree.add(
        title.append(f": {why}{harm}; {decision.get('reason') or 'no reason was noted'}")
    )
    names = formatting.branches(decision)
    widest = min(max(map(len, names), default=0), 30)
    for name, branch in zip(names, decision["branches"]):
        fate = str(branch.get("fate"))
        mark, colour = MARKS.get(fate, ("–", "dim"))
        expected = {} if branch.get("control") else branch.get("expected") or {}
        drafted = (
            f" draft {formatting.interval(expected.get('low'), expected.get('high'))}"
            if expected
            else ""
        )
        measured = "" if branch.get("control") else formatting.change(branch.get("delta"))
        node.add(
            Text.assemble(
                (f"{mark} {name:<{widest}}", colour),
                f" {measured:>8} ",
                (f" {fate:<8}", colour),
                (drafted, "dim"),
            )
        )
