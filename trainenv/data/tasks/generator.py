"""The embedded generator: small tasks with verified right and wrong solutions, from a seed.

tasks = generate(seed=0, count=100)
tasks[0].prompt, tasks[0].solution, tasks[0].wrong
"""

from __future__ import annotations

from collections.abc import Sequence

from trainenv.data.stressors import philox
from trainenv.data.tasks.kinds import HARDEST, KINDS, Draft
from trainenv.data.tasks.task import Sample, Task
from trainenv.types import UserError

_TRIES = 100  # drafts of one task; nearly all have a wrong solution at the first


def generate(
    *,
    seed: int,
    count: int,
    kinds: Sequence[str] = (),
    difficulties: tuple[int, int] = (1, 3),
    part: str = "train",
    start: int = 0,
) -> list[Task]:
    """Return tasks; each is a pure function of seed, part, place and the settings.

    Args:
        seed: Random seed.
        count: Number of tasks.
        kinds: Names of the kinds, which take turns; all of them if empty.
        difficulties: Least and greatest difficulty, from 1 to 4.
        part: Name of the part of the data; parts have independent random numbers.
        start: Place of the first task.

    Raises:
        UserError: A kind is unknown, or a difficulty is out of range.
    """
    names = tuple(kinds) or tuple(KINDS)
    if unknown := [name for name in names if name not in KINDS]:
        raise UserError(
            f"kinds of tasks are {', '.join(KINDS)}; found {', '.join(unknown)}; choose among them"
        )
    least, most = difficulties
    if not 1 <= least <= most <= HARDEST:
        raise UserError(
            f"difficulties must be two numbers from 1 to {HARDEST}, the least first, found "
            f"{least} and {most}; give such a range"
        )
    return [_task(seed, part, place, names, least, most) for place in range(start, start + count)]


def right_sample(task: Task) -> Sample:
    """Return the sample with the right solution."""
    return Sample(task.name, task.prompt, task.solution, True, task.difficulty)


def wrong_sample(task: Task, place: int) -> Sample:
    """Return a sample with a wrong solution; `place` chooses among them."""
    wrong = task.wrong[place % len(task.wrong)]
    return Sample(task.name, task.prompt, wrong, False, task.difficulty)


def _task(seed: int, part: str, place: int, names: tuple[str, ...], least: int, most: int) -> Task:
    random = philox(seed, f"tasks/{part}", place)
    name = names[place % len(names)]
    for _ in range(_TRIES):
        difficulty = int(random.integers(least, most + 1))
        draft = KINDS[name](random, difficulty)
        task = _verified(draft, f"{part}/{place}", name, difficulty)
        if task.wrong and task.solution:
            return task
    raise AssertionError(f"no wrong solution for a task of kind {name}")


def _verified(draft: Draft, name: str, kind: str, difficulty: int) -> Task:
    """Return the task of a draft with those candidates that are really wrong."""
    task = Task(name, kind, difficulty, draft.prompt, draft.solution, (), draft.cases)
    assert task.is_correct(draft.solution), f"{kind}: {draft.prompt!r} {draft.solution!r}"
    candidates = dict.fromkeys(text for text in draft.wrong if text.strip())
    wrong = tuple(text for text in candidates if not task.is_correct(text))
    return Task(name, kind, difficulty, draft.prompt, draft.solution, wrong, draft.cases)
