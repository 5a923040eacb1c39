"""Experience of a general policy, in a file: the lessons of earlier pairs.

    save_lessons(lessons, Path("lessons.json"))
    policy = Kernel.fit(load_lessons(None, "exact", 16))     # of the pairs that the package ships

The shipped lessons are those of three pairs of small GPT-2s on the corpora of
`configs/pairs/own.yaml`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from trainenv.agents.thresholds.meta import LATTICE, Lesson
from trainenv.agents.thresholds.tasks import CONTEXT, space_of
from trainenv.tools.atomic_files import write_json
from trainenv.types import UserError

FORMAT = "trainenv decoding lessons 1"
_SHIPPED = "lessons.json"


def save_lessons(lessons: Sequence[Lesson], path: Path, *, rule: str, k: int) -> None:
    """Write lessons of one rule and draft length."""
    write_json(
        path,
        {
            "format": FORMAT,
            "rule": rule,
            "k": k,
            "context": list(CONTEXT),
            "lattice": LATTICE,
            "lessons": [
                {
                    "pair": lesson.pair,
                    "corpus": lesson.corpus,
                    "context": [round(float(value), 6) for value in lesson.context],
                    "shares": [round(float(share), 4) for share in lesson.shares],
                    "best": round(lesson.best, 6),
                }
                for lesson in lessons
            ],
        },
        indent=0,
    )


def load_lessons(path: Path | None, rule: str, k: int) -> list[Lesson]:
    """Read lessons; empty where the file has those of another rule or draft length.

    Args:
        path: Place of the file; None for the shipped lessons.
        rule: Rule of verification.
        k: Greatest draft length.

    Raises:
        UserError: The file can't be read.
    """
    try:
        if path is None:
            text = (files("trainenv.agents.thresholds") / _SHIPPED).read_text(encoding="utf-8")
        else:
            text = path.read_text(encoding="utf-8")
        found: dict[str, Any] = json.loads(text)
        if (found["format"], found["context"], found["lattice"]) != (
            FORMAT,
            list(CONTEXT),
            LATTICE,
        ):
            raise ValueError("another format")
        if (found["rule"], found["k"]) != (rule, k):
            return []
        space = space_of(rule, k)
        points = len(space.lattice(LATTICE))
        lessons = [
            Lesson(
                pair=str(one["pair"]),
                corpus=str(one["corpus"]),
                context=np.array(one["context"], dtype=np.float64),
                shares=np.array(one["shares"], dtype=np.float64),
                best=float(one["best"]),
                space=space,
            )
            for one in found["lessons"]
        ]
        if any(
            lesson.shares.shape != (points,) or lesson.context.shape != (len(CONTEXT),)
            for lesson in lessons
        ):
            raise ValueError("another lattice")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"expected the lessons of model pairs in {path or _SHIPPED}, found none that can be "
            f"read ({error!r:.80}); write them with trainenv decode evaluate"
        ) from None
    return lessons
