"""Rows by scenario, method and seed, and the difference of two methods on the runs that both have trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainenv.compare.bootstrap import Figure, figure
from trainenv.compare.cells import Row

UNTOUCHED = "nothing"
SUBJECT = "branching"
"""The method that all are compared with, and the one that is compared with all."""


@dataclass(frozen=True)
class Table:
    """Rows, by scenario and method, then by seed."""

    rows: Mapping[tuple[str, str], Mapping[int, Row]]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Table:
        """Rows in any order."""
        sorted_in: dict[tuple[str, str], dict[int, Row]] = {}
        for row in sorted(rows, key=lambda row: int(row["seed"])):
            sorted_in.setdefault((row["scenario"], row["method"]), {})[row["seed"]] = row
        return cls(sorted_in)

    def cells(self, scenarios: Sequence[str], method: str) -> list[Row]:
        """Of a method on some scenarios, those that failed too."""
        return [
            row for scenario in scenarios for row in self.rows.get((scenario, method), {}).values()
        ]

    def sound(self, scenarios: Sequence[str], method: str) -> list[Row]:
        """Those that did not fail."""
        return [row for row in self.cells(scenarios, method) if row["ended"] != "failed"]

    def pairs(self, scenarios: Sequence[str], one: str, other: str) -> list[tuple[Row, Row]]:
        """Of two methods on the same scenario and seed; neither failed."""
        found = []
        for scenario in scenarios:
            theirs = {row["seed"]: row for row in self.sound([scenario], other)}
            found += [
                (row, theirs[row["seed"]])
                for row in self.sound([scenario], one)
                if row["seed"] in theirs
            ]
        return found

    def losses(self, scenario: str, method: str) -> dict[int, float]:
        """Of a method on a scenario, ln of the final loss by seed."""
        return {row["seed"]: row["log_final_loss"] for row in self.sound([scenario], method)}

    def difference(self, scenarios: Sequence[str], one: str, other: str) -> Figure:
        """Of ln final loss, `one` less `other`, run by run; nothing where they are the same method."""
        pairs = self.pairs(scenarios, one, other) if one != other else []
        return figure(
            [mine["log_final_loss"] - theirs["log_final_loss"] for mine, theirs in pairs],
            [mine["scenario"] for mine, _ in pairs],
        )


def number(value: Any) -> float:
    """A number from a row; NaN for null."""
    return math.nan if value is None else float(value)
