"""A comparison as read from its folder: the suite, the finished cells and their statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainenv.compare.cells import Cell, Row, read
from trainenv.compare.paired_rows import Table
from trainenv.compare.results import groups_of, results
from trainenv.compare.scenarios import Scenario
from trainenv.compare.suite import Suite, noted_scenarios
from trainenv.types import UserError


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods on the same scenarios and seeds.

    Attributes:
        path: Folder of the comparison.
        suite: Suite as recorded, with all methods that have cells.
        table: Finished cells.
        found: Statistics; see `trainenv.compare.results`.
    """

    path: Path
    suite: Suite
    table: Table = field(repr=False)
    found: Mapping[str, Any] = field(repr=False)

    @property
    def methods(self) -> list[str]:
        """The methods with at least one cell, in the order of the suite."""
        return [row["method"] for row in self.rows("all") if row["cells"]]

    @property
    def scenarios(self) -> list[str]:
        """The scenarios with at least one cell."""
        there = {scenario for scenario, _ in self.table.rows}
        return [scenario.name for scenario in self.suite.scenarios if scenario.name in there]

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The groups `stressed` and `calm` with their scenarios; empty unless there are both."""
        groups = {
            name: scenarios
            for name, scenarios in groups_of(self.suite).items()
            if name in ("stressed", "calm")
        }
        if len(groups) < 2:
            return {}
        return dict(sorted(groups.items(), reverse=True))

    def rows(self, group: str) -> list[dict[str, Any]]:
        """Return the statistics of each method on a group of scenarios."""
        return [row for row in self.found["methods"] if row["group"] == group and row["cells"]]


def is_comparison(folder: Path) -> bool:
    """Tell if a folder is that of a comparison."""
    return (folder / "suite.json").is_file() or (folder / "cells").is_dir()


def read_comparison(folder: Path) -> Comparison:
    """Read the comparison in `folder`; torn cells are skipped.

    Raises:
        UserError: The suite can't be read, or no cell is finished yet.
    """
    cells = [
        (path, path.relative_to(folder / "cells").parts)
        for path in sorted((folder / "cells").glob("*/*/*.json"))
    ]
    named = [
        Cell(scenario=scenario, seed=int(seed), method=Path(file).stem)
        for _, (scenario, seed, file) in cells
        if seed.isdigit()
    ]
    rows = [row for cell in named if (row := read(folder, cell)) is not None]
    if not rows:
        raise UserError(
            f"the comparison in {folder} has no cell that ended yet; wait for the first run, or "
            "resume it"
        )
    suite = _suite(folder, rows)
    return Comparison(path=folder, suite=suite, table=Table.of(rows), found=results(suite, rows))


def _suite(folder: Path, rows: list[Row]) -> Suite:
    """Read the suite, and add methods of an earlier suite that have cells."""
    try:
        asked = json.loads((folder / "suite.json").read_text(encoding="utf-8"))
        lists = {name: tuple(asked[name]) for name in ("methods", "hindsight")}
        lists["open_loop"] = tuple(asked.get("open_loop", ()))  # earlier versions had none
        scenarios = tuple(Scenario(**scenario) for scenario in noted_scenarios(asked))
        suite = Suite(name=asked["name"], seeds=asked["seeds"], scenarios=scenarios, **lists)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"expected the suite in {folder / 'suite.json'}, found none that can be read; "
            "run the comparison again"
        ) from None
    others = dict.fromkeys(row["method"] for row in rows if row["method"] not in suite.played)
    return replace(suite, methods=(*suite.methods, *others))
