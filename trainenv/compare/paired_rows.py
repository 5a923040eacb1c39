"""Rows by trunk, method and seed, and the difference of two methods on the runs that both have trained."""

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
    """Rows, by trunk and method, then by seed."""

    rows: Mapping[tuple[str, str], Mapping[int, Row]]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Table:
        """Rows in any order."""
        sorted_in: dict[tuple[str, str], dict[int, Row]] = {}
        for row in sorted(rows, key=lambda row: int(row["seed"])):
            sorted_in.setdefault((row["trunk"], row["method"]), {})[row["seed"]] = row
        return cls(sorted_in)

    def cells(self, trunks: Sequence[str], method: str) -> list[Row]:
        """Of a method on some trunks, those that failed too."""
        return [row for trunk in trunks for row in self.rows.get((trunk, method), {}).values()]

    def sound(self, trunks: Sequence[str], method: str) -> list[Row]:
        """Those that did not fail."""
        return [row for row in self.cells(trunks, method) if row["ended"] != "failed"]

    def pairs(self, trunks: Sequence[str], one: str, other: str) -> list[tuple[Row, Row]]:
        """Of two methods on the same trunk and seed; neither failed."""
        found = []
        for trunk in trunks:
            theirs = {row["seed"]: row for row in self.sound([trunk], other)}
            found += [
                (row, theirs[row["seed"]])
                for row in self.sound([trunk], one)
                if row["seed"] in theirs
            ]
        return found

    def losses(self, trunk: str, method: str) -> dict[int, float]:
        """Of a method on a trunk, ln of the final loss by seed."""
        return {row["seed"]: row["log_final_loss"] for row in self.sound([trunk], method)}

    def difference(self, trunks: Sequence[str], one: str, other: str) -> Figure:
        """Of ln final loss, `one` less `other`, run by run; nothing where they are the same method."""
        pairs = self.pairs(trunks, one, other) if one != other else []
        return figure(
            [mine["log_final_loss"] - theirs["log_final_loss"] for mine, theirs in pairs],
            [mine["trunk"] for mine, _ in pairs],
        )


def number(value: Any) -> float:
    """A number from a row; NaN for null."""
    return math.nan if value is None else float(value)
