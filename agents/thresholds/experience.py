"""Experience with earlier pairs, in a file: their lessons, and the best choice of a schedule.

    save_experience(Experience(lessons=lessons), Path("lessons.json"), rule="exact", k=16)
    policy = Kernel.fit(load_experience(None, "exact", 16).lessons)     # what the package ships

The shipped experience is that of the pairs of small GPT-2s of `configs/pairs/own.yaml`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from trainenv.agents.thresholds.adaptive_choice import AdaptiveChoice
from trainenv.agents.thresholds.meta import LATTICE, Lesson
from trainenv.agents.thresholds.tasks import CONTEXT, space_of
from trainenv.tools.atomic_files import write_json
from trainenv.types import UserError

FORMAT = "trainenv decoding lessons 2"
_SHIPPED = "lessons.json"


@dataclass(frozen=True, kw_only=True)
class Experience:
    """Results of earlier pairs with one rule and draft length.

    Attributes:
        lessons: Landscapes of the earlier tasks; empty if they are of another rule or length.
        choice: Hyperparameters of the schedule `Adaptive` that were best for them.
    """

    lessons: tuple[Lesson, ...] = field(default=(), repr=False)
    choice: AdaptiveChoice = field(default_factory=AdaptiveChoice)


def save_experience(experience: Experience, path: Path, *, rule: str, k: int) -> None:
    """Write the experience with one rule and draft length."""
    write_json(
        path,
        {
            "format": FORMAT,
            "rule": rule,
            "k": k,
            "context": list(CONTEXT),
            "lattice": LATTICE,
            "adaptive": asdict(experience.choice),
            "lessons": [
                {
                    "pair": lesson.pair,
                    "corpus": lesson.corpus,
                    "context": [round(float(value), 6) for value in lesson.context],
                    "shares": [round(float(share), 4) for share in lesson.shares],
                    "best": round(lesson.best, 6),
                }
                for lesson in experience.lessons
            ],
        },
        indent=0,
    )


def load_experience(path: Path | None, rule: str, k: int) -> Experience:
    """Read experience; it has no lessons where the file is of another rule or draft length.

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
        choice = AdaptiveChoice(**found["adaptive"])
        if (found["rule"], found["k"]) != (rule, k):
            return Experience(choice=choice)
        space = space_of(rule, k)
        points = len(space.lattice(LATTICE))
        lessons = tuple(
            Lesson(
                pair=str(one["pair"]),
                corpus=str(one["corpus"]),
                context=np.array(one["context"], dtype=np.float64),
                shares=np.array(one["shares"], dtype=np.float64),
                best=float(one["best"]),
                space=space,
            )
            for one in found["lessons"]
        )
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
    return Experience(lessons=lessons, choice=choice)
