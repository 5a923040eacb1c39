"""MBPP: short functions from a sentence and tests (Austin et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trainenv.data.tasks.rows import Row, hub_rows, local_rows
from trainenv.evaluation.problems import ProgramProblem
from trainenv.evaluation.sandbox import FunctionTests
from trainenv.types import UserError

HUB = "google-research-datasets/mbpp"
STOPS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n```", "[DONE]")


def mbpp(path: Path | None = None) -> list[ProgramProblem]:
    """Return the problems of the test split.

    Tests that make objects of the program's own classes can't pass: only plain data goes between a
    program and its tests.

    Args:
        path: Local copy: JSON lines or parquet; None for the hub.

    Raises:
        UserError: The problems can't be read.
    """
    rows: Iterable[Row]
    if path is None:
        rows = hub_rows(HUB, "full", "test")
    else:
        rows = local_rows(path, "test")
    return [_problem(row) for row in rows]


def _problem(row: Row) -> ProgramProblem:
    text = row.get("text") or row.get("prompt")
    tests = row.get("test_list")
    if not text or not tests or "code" not in row:
        raise UserError(
            "expected rows of MBPP with text (or prompt), code and test_list, found the keys "
            f"{', '.join(row) or 'none'}; give a copy of MBPP"
        )
    listed = "\n".join(str(test) for test in tests)
    imports = "\n".join(row.get("test_imports") or [])
    return ProgramProblem(
        name=f"MBPP/{row.get('task_id', '')}",
        prompt=f'"""\n{text}\n{listed}\n"""\n',
        tests=FunctionTests(test=listed, setup=f"{imports}\n{row.get('test_setup_code') or ''}\n"),
        solution=str(row["code"]),
        stops=STOPS,
    )
