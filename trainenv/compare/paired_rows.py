"""Rows by scenario, method and seed; differences of two methods on the runs that both trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainenv.compare.bootstrap import Figure, figure
from trainenv.compare.cells import Row

UNTOUCHED = "nothing"
"""Method that does nothing; all others are compared with it."""
SUBJECT = "branching"
"""Method that a comparison is about; it is compared with all others."""


@dataclass(frozen=True)
class Table:
    """Rows of cells, by (scenario, method), then by seed.

    Attributes:
        rows: Row of each seed, for each pair of scenario and method.
    """

    rows: Mapping[tuple[str, str], Mapping[int, Row]]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Table:
        """Return the table of rows, which may be in any order."""
        by_pair: dict[tuple[str, str], dict[int, Row]] = {}
        for row in sorted(rows, key=lambda row: int(row["seed"])):
            by_pair.setdefault((row["scenario"], row["method"]), {})[row["seed"]] = row
        return cls(by_pair)

    def cells(self, scenarios: Sequence[str], method: str) -> list[Row]:
        """Return all rows of a method on some scenarios, failed ones included."""
        return [
            row for scenario in scenarios for row in self.rows.get((scenario, method), {}).values()
        ]

    def sound(self, scenarios: Sequence[str], method: str) -> list[Row]:
        """Return the rows of a method on some scenarios that did not fail."""
        return [row for row in self.cells(scenarios, method) if row["ended"] != "failed"]

    def pairs(self, scenarios: Sequence[str], one: str, other: str) -> list[tuple[Row, Row]]:
        """Return the rows of two methods on the same scenario and seed, where neither failed."""
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
        """Return the ln of the final loss of a method on a scenario, by seed."""
        return {row["seed"]: row["log_final_loss"] for row in self.sound([scenario], method)}

    def difference(self, scenarios: Sequence[str], one: str, other: str) -> Figure:
        """Return ln final loss of `one` less that of `other`, paired; NaN for the same method."""
        if one == other:
            return Figure()
        pairs = self.pairs(scenarios, one, other)
        return figure(
            [mine["log_final_loss"] - theirs["log_final_loss"] for mine, theirs in pairs],
            [mine["scenario"] for mine, _ in pairs],
        )
