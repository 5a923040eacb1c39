"""Sample sets: right solutions only, or right and wrong ones in balance."""

from __future__ import annotations

from collections.abc import Sequence

from trainenv.config.tasks import SampleSet
from trainenv.data.stressors import philox
from trainenv.data.tasks.generator import right_sample, wrong_sample
from trainenv.data.tasks.task import Sample, Task
from trainenv.types import UserError

FULL_SIZES: dict[SampleSet, int] = {"right": 150_000, "balanced": 50_000, "curriculum": 150_000}
"""Sample set → number of samples at scale 1."""


def size(kind: SampleSet, scale: float) -> int:
    """Return the number of samples of a set; it is even."""
    return max(2, 2 * round(FULL_SIZES[kind] * scale / 2))


def of_tasks(tasks: Sequence[Task], kind: SampleSet) -> list[Sample]:
    """Return the samples of generated tasks.

    In a balanced set each task has a right and a wrong sample, which share the prompt.
    """
    if kind == "right":
        return [right_sample(task) for task in tasks]
    pairs = ((right_sample(task), wrong_sample(task, place)) for place, task in enumerate(tasks))
    return [sample for pair in pairs for sample in pair]


def chosen(samples: Sequence[Sample], kind: SampleSet, count: int, seed: int) -> list[Sample]:
    """Choose up to `count` of the samples that were read.

    A balanced set has as many right as wrong ones; samples without a label are left out.

    Raises:
        UserError: There is no right sample, or no wrong one where the set needs them.
    """
    right = [sample for sample in samples if sample.is_correct]
    wrong = [sample for sample in samples if sample.is_correct is False]
    if not right or (kind != "right" and not wrong):
        raise UserError(
            f"the sample set {kind} needs right samples, and wrong ones if it is balanced, found "
            f"{len(right)} right and {len(wrong)} wrong ones; give samples with is_correct, or set "
            "tasks.samples: right"
        )
    if kind == "right":
        return _some(right, count, seed, "right")
    half = min(len(right), len(wrong), count // 2)
    return _some(right, half, seed, "right") + _some(wrong, half, seed, "wrong")


def _some(samples: Sequence[Sample], count: int, seed: int, purpose: str) -> list[Sample]:
    order = philox(seed, f"samples/{purpose}", 0).permutation(len(samples))[:count]
    return [samples[place] for place in sorted(order)]
