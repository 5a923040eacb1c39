"""Samples in the style of CodeContests: a problem, a solution, and if the solution is right.

CodeContests: Li et al. 2022 (AlphaCode), `deepmind/code_contests` on the hub. A row is a problem
with its `solutions` and `incorrect_solutions`, or a sample with `prompt`, `solution` and
`is_correct` (true, false or null), and optionally `task` and `difficulty`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from trainenv.data.tasks import rows
from trainenv.data.tasks.rows import Row
from trainenv.data.tasks.task import Sample
from trainenv.types import UserError

HUB = "deepmind/code_contests"
LANGUAGES = {"python2": 1, "cpp": 2, "python3": 3, "java": 4}
"""Programming language → its number in the data set."""

_SPLITS = {"train": "train", "validation": "valid", "test": "test"}
_OF_A_TASK = 16  # most right, and most wrong, samples of one problem
_SHARES = 20  # a single file gives 1/20 of its tasks to each held-out part


def read(path: Path | None, language: str, count: int, held_out: int) -> dict[str, list[Sample]]:
    """Return the samples of each part: train, validation, probe and test.

    A single file is split by the names of its tasks. Otherwise the validation split is shared by
    validation and probe.

    Args:
        path: Local copy; None for the hub.
        language: Programming language of the solutions.
        count: Number of right, and of wrong, training samples after which reading stops.
        held_out: The same for each held-out part.

    Raises:
        UserError: Samples can't be read, or the language is unknown.
    """
    if language not in LANGUAGES:
        raise UserError(
            f"tasks.language must be one of {', '.join(LANGUAGES)}, found {language!r}; "
            "choose one of them"
        )
    parts: dict[str, list[Sample]] = {"train": [], "validation": [], "probe": [], "test": []}
    if path is not None and rows.is_single_file(path):
        for sample in _samples(rows.local_rows(path, ""), language):
            parts[_part(sample.task)].append(sample)
        return parts
    for part, split in _SPLITS.items():
        limit = held_out
        if part == "train":
            limit = count
        found = problems(path, split)
        parts[part] = _until(_samples(found, language), 2 * limit)
    apart = parts["validation"]
    parts["validation"] = [sample for sample in apart if _share(sample.task) % 2]
    parts["probe"] = [sample for sample in apart if not _share(sample.task) % 2]
    return parts


def problems(path: Path | None, split: str) -> Iterator[Row]:
    """Yield the rows of a split (train, valid or test), from a local copy or the hub."""
    if path is None:
        return rows.hub_rows(HUB, None, split)
    return rows.local_rows(path, split)


def _samples(found: Iterable[Row], language: str) -> Iterator[Sample]:
    for row in found:
        if "prompt" in row:
            yield _sample(row)
        elif "description" in row:
            yield from _of_problem(row, LANGUAGES[language])
        else:
            raise UserError(
                "expected rows with prompt, solution and is_correct, or with description and "
                f"solutions, found the keys {', '.join(row) or 'none'}; rename them"
            )


def _sample(row: Row) -> Sample:
    correct = row.get("is_correct")
    if not isinstance(row.get("solution"), str) or correct not in (True, False, None):
        raise UserError(
            "expected a sample with the text `solution`, and `is_correct` as true, false or null, "
            f"found {type(row.get('solution')).__name__} and {correct!r}; correct the row"
        )
    prompt = str(row["prompt"])
    return Sample(
        task=str(row.get("task", prompt)),
        prompt=prompt,
        solution=row["solution"],
        is_correct=None if correct is None else bool(correct),
        difficulty=float(row.get("difficulty") or 0),
    )


def _of_problem(row: Row, language: int) -> Iterator[Sample]:
    """Yield the samples of a problem in one language."""
    prompt = f"{str(row['description']).strip()}\n\n"
    difficulty = float(row.get("cf_rating") or row.get("difficulty") or 0)
    name = str(row.get("name", prompt))
    for key, correct in (("solutions", True), ("incorrect_solutions", False)):
        for text in in_language(row.get(key) or [], language)[:_OF_A_TASK]:
            yield Sample(name, prompt, text, correct, difficulty)


def in_language(solutions: Any, language: int) -> list[str]:
    """Return the texts in a language; columns and lists of records are both in use."""
    if isinstance(solutions, Mapping):
        pairs = list(zip(solutions.get("language", ()), solutions.get("solution", ())))
    else:
        pairs = [(one.get("language"), one.get("solution")) for one in solutions]
    return [str(text) for number, text in pairs if number == language]


def _until(samples: Iterable[Sample], limit: int) -> list[Sample]:
    """Return samples until there are `limit` right and as many wrong ones."""
    found: list[Sample] = []
    counts = {True: 0, False: 0}
    for sample in samples:
        if sample.is_correct is None or counts[sample.is_correct] < limit:
            found.append(sample)
        if sample.is_correct is not None:
            counts[sample.is_correct] += 1
        if min(counts.values()) >= limit:
            break
    return found


def _share(task: str) -> int:
    return xxhash.xxh3_64_intdigest(task.encode()) % _SHARES


def _part(task: str) -> str:
    """Return the part of a task in a single file."""
    return {0: "test", 1: "validation", 2: "probe"}.get(_share(task), "train")
