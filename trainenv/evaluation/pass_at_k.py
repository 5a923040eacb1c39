"""Pass@k: the chance that at least one of k samples of a task is right.

With n samples of which c are right, the unbiased estimate is 1 − C(n − c, k) / C(n, k), computed as
a product so that it stays exact for large n (Chen et al. 2021, "Evaluating Large Language Models
Trained on Code"). Intervals come from a bootstrap over tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainenv.types import UserError, as_whole

Floats = NDArray[np.float64]

RESAMPLES = 2000
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Share:
    """A mean over tasks with its 95 % interval.

    Attributes:
        value: Mean, from 0 to 1.
        low: Lower end of the interval.
        high: Upper end of the interval.
        tasks: Number of tasks.
    """

    value: float
    low: float
    high: float
    tasks: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Return the unbiased estimate of pass@k of one task.

    Args:
        samples: Number n of samples of the task.
        right: Number c of right ones, at most n.
        k: Number of samples that may be tried, from 1 to n.

    Raises:
        UserError: k is below 1 or above n, or c above n.
    """
    k = as_whole(k, "k of pass@k", least=1)
    right = as_whole(right, "the number of right samples", least=0)
    if k > samples:
        raise UserError(
            f"pass@{k} needs at least {k} samples of each task, found {samples}; "
            "generate more samples or choose a smaller k"
        )
    if right > samples:
        raise UserError(f"at most {samples} of {samples} samples can be right, found {right}")
    wrong = samples - right
    if wrong < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(wrong + 1, samples + 1)))


def mean_pass_at_k(
    counts: Sequence[tuple[int, int]], k: int, *, seed: int = 0, resamples: int = RESAMPLES
) -> Share:
    """Return the mean of pass@k over tasks.

    Args:
        counts: Samples and right samples of each task.
        k: Number of samples that may be tried.
        seed: Random seed of the bootstrap.
        resamples: Number of resamples.

    Raises:
        UserError: There is no task, or k does not fit one of them.
    """
    values = [pass_at_k(samples, right, k) for samples, right in counts]
    return bootstrapped(values, seed=seed, resamples=resamples)


def bootstrapped(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> Share:
    """Return the mean of values, one a task, with its percentile interval.

    Raises:
        UserError: There is no value.
    """
    if not len(values):
        raise UserError("an evaluation needs at least one task, found none; give some")
    array: Floats = np.asarray(values, np.float64)
    random = np.random.Generator(np.random.Philox(key=seed))
    draws = (random.integers(0, len(array), len(array)) for _ in range(resamples))
    means = [float(array[draw].mean()) for draw in draws]
    low, high = np.quantile(means, INTERVAL)
    return Share(float(array.mean()), float(low), float(high), len(array))
