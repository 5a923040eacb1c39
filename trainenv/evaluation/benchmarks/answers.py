r"""GSM8K (Cobbe et al. 2021) and MATH-500 (Hendrycks et al. 2021): problems with an answer.

The answer of GSM8K is the number after `####`, or else the last number. That of MATH is the content
of the last `\boxed{…}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from trainenv.data.tasks.rows import Row, hub_rows, local_rows
from trainenv.evaluation.problems import AnswerProblem
from trainenv.types import UserError

GSM8K = "openai/gsm8k"
MATH = "HuggingFaceH4/MATH-500"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_BOX = r"\boxed{"


def gsm8k(path: Path | None = None) -> list[AnswerProblem]:
    """Return the problems of the test split, from a local copy or the hub.

    Raises:
        UserError: The problems can't be read.
    """
    rows = _rows(path, GSM8K, "main", ("question", "answer"))
    return [
        AnswerProblem(
            name=f"GSM8K/{place}",
            prompt=f"Question: {row['question']}\nAnswer:",
            solution=str(row["answer"]),
            answer=last_number,
            stops=("\nQuestion:",),
        )
        for place, row in enumerate(rows)
    ]


def math500(path: Path | None = None) -> list[AnswerProblem]:
    """Return the problems of MATH-500, from a local copy or the hub.

    Raises:
        UserError: The problems can't be read.
    """
    rows = _rows(path, MATH, None, ("problem", "solution"))
    return [
        AnswerProblem(
            name=f"MATH/{place}",
            prompt=f"Problem: {row['problem']}\nSolution:",
            solution=str(row["solution"]),
            answer=boxed,
            stops=("\nProblem:",),
        )
        for place, row in enumerate(rows)
    ]


def last_number(text: str) -> str:
    """Return the number after `####`, or else the last number of a text, in one form."""
    _, mark, after = text.rpartition("####")
    found = _NUMBER.findall(after if mark else text)
    if not found:
        return ""
    number = found[0 if mark else -1].replace(",", "")
    whole, point, decimals = number.partition(".")
    decimals = decimals.rstrip("0")
    return f"{whole}{point}{decimals}".removesuffix(".")


def boxed(text: str) -> str:
    """Return the content of the last box of a text, without spaces."""
    start = text.rfind(_BOX)
    if start < 0:
        return ""
    depth = 1
    for place in range(start + len(_BOX), len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return re.sub(r"\s+", "", text[start + len(_BOX) : place])
    return ""


def _rows(
    path: Path | None, repository: str, config: str | None, keys: tuple[str, str]
) -> Iterable[Row]:
    found = local_rows(path, "test") if path is not None else hub_rows(repository, config, "test")
    for row in found:
        if not all(key in row for key in keys):
            raise UserError(
                f"expected rows with {' and '.join(keys)}, found the keys "
                f"{', '.join(row) or 'none'}; give a copy of {repository}"
            )
        yield row
