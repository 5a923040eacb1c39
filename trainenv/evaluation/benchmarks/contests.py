"""CodeContests: programs that read an input and write an output (Li et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from trainenv.data.tasks.code_contests import in_language, problems
from trainenv.data.tasks.rows import Row
from trainenv.evaluation.problems import ProgramProblem
from trainenv.evaluation.sandbox import InputOutput
from trainenv.types import UserError

_KINDS = ("public_tests", "private_tests", "generated_tests")
_PYTHON3 = 3


def code_contests(
    path: Path | None = None, *, most: int | None = None, tests: int = 20
) -> list[ProgramProblem]:
    """Return problems of the test split that have tests.

    Args:
        path: Local copy: JSON lines or parquet; None for the hub.
        most: Number of problems to read; all by default.
        tests: Most tests of a problem: public ones first, then private, then generated ones.

    Raises:
        UserError: The problems can't be read.
    """
    found = (_problem(row, tests) for row in problems(path, "test"))
    return list(islice((problem for problem in found if problem.tests), most))


def _problem(row: Row, most: int) -> ProgramProblem:
    if "description" not in row:
        raise UserError(
            "expected problems of CodeContests with a description, found the keys "
            f"{', '.join(row) or 'none'}; give a copy of CodeContests"
        )
    pairs = [pair for kind in _KINDS for pair in _pairs(row.get(kind))]
    solutions = in_language(row.get("solutions") or [], _PYTHON3)
    return ProgramProblem(
        name=str(row.get("name", "")),
        prompt=f"{str(row['description']).strip()}\n\n",
        tests=tuple(InputOutput(given, expected) for given, expected in pairs[:most]),
        solution=next(iter(solutions), ""),
    )


def _pairs(tests: Any) -> list[tuple[str, str]]:
    """Return input and output of each test; columns and lists of records are both in use."""
    if not tests:
        return []
    if isinstance(tests, Mapping):
        return list(zip(tests.get("input", ()), tests.get("output", ())))
    return [(str(one["input"]), str(one["output"])) for one in tests]
