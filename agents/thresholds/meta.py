"""Meta-learning over tasks: settings for a model pair on a corpus that was never tried.

Each training task gives its context (see `CONTEXT`) and its landscape: the score at each point of
a lattice, as a share of the best. A general policy maps the context of a new task to a point:

- `Fixed`: the point with the best mean share; it ignores the context.
- `Kernel`: kernel ridge regression from contexts to landscapes, then the best point. A very wide
  kernel or a large ridge makes it `Fixed`; both are chosen by leaving pairs and corpora out.
- `PPO`: the policy of `train_policy`, which walks in the training tasks.

Landscapes of a trace under other costs are training tasks as well (`learn`): they teach what a
faster or slower draft changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from trainenv.agents.thresholds.contract import Floats, Measure, ThresholdSpace, TuningProblem
from trainenv.agents.thresholds.ppo import PPO, ThresholdPolicy, train_policy
from trainenv.agents.thresholds.tasks import DecodingTask
from trainenv.decoding.traces import blocks_of, score
from trainenv.types import UserError

LATTICE = 256
"""Largest number of points of a landscape."""
_WIDTHS = (0.5, 1.0, 2.0, 4.0)  # of the kernel, in standard deviations of the context
_RIDGES = (0.01, 0.1, 1.0, 10.0, 1000.0)
_SMALL = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """Landscape and context of a training task.

    Attributes:
        pair: Name of the model pair.
        corpus: Name of the corpus.
        context: Context, [C].
        shares: Score at each point of the lattice as a share of the best, [N].
        best: Best score of the lattice.
        space: Axes of the lattice.
    """

    pair: str
    corpus: str
    context: Floats = field(repr=False)
    shares: Floats = field(repr=False)
    best: float
    space: ThresholdSpace = field(repr=False)


class GeneralPolicy(Protocol):
    """Policy for tasks that were never tried."""

    def settle(self, context: Floats, /) -> Floats:
        """Return the point [D] for the context [C] of a task."""
        ...


def learn(task: DecodingTask, factors: Sequence[float] = (1.0,)) -> list[Lesson]:
    """Return the lessons of a task: its landscape on the rows for methods, for each cost.

    Args:
        task: Training task.
        factors: Factors on the time of a draft step, one lesson each.
    """
    points = task.space.lattice(LATTICE)
    costed = [with_slower_draft(task, factor) for factor in factors]
    scores = np.empty((len(factors), len(points)))
    for place, point in enumerate(points):
        blocks = blocks_of(task.trace, task.settings(task.space.values(point)), task.rule)
        for row, each in enumerate(costed):
            scores[row, place] = each.worth(score(blocks, each.costs))
    return [
        Lesson(
            pair=task.pair,
            corpus=task.corpus,
            context=each.context(),
            shares=found / found.max(),
            best=float(found.max()),
            space=task.space,
        )
        for each, found in zip(costed, scores, strict=True)
    ]


def with_slower_draft(task: DecodingTask, factor: float) -> DecodingTask:
    """Return the task with a draft step that takes `factor` times as long."""
    step = task.costs.draft_step * factor
    return replace(task, costs=replace(task.costs, draft_step=step))


@dataclass(frozen=True, kw_only=True, eq=False)
class StandardPolicy:
    """Policy of PPO that sees contexts in standard deviations.

    Attributes:
        policy: Policy.
        centre: Mean of the contexts, [C].
        scale: Standard deviation of the contexts, [C].
    """

    policy: ThresholdPolicy = field(repr=False)
    centre: Floats = field(repr=False)
    scale: Floats = field(repr=False)

    def settle(self, context: Floats, /) -> Floats:
        """Return the point where the mean moves of the policy end, [D]."""
        return self.policy.settle((context - self.centre) / self.scale)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fixed:
    """The same point for every task.

    Attributes:
        point: Point with the best mean share, [D].
    """

    point: Floats

    @classmethod
    def fit(cls, lessons: Sequence[Lesson]) -> Fixed:
        """Return the policy of some lessons."""
        points, shares = _landscapes(lessons)
        return cls(point=points[int(shares.mean(axis=0).argmax())])

    def settle(self, context: Floats, /) -> Floats:
        """Return the point, whatever the context."""
        return self.point


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
    """Kernel ridge regression from contexts to landscapes.

    Attributes:
        points: Points of the lattice, [N, D].
        mean: Mean landscape of the lessons, [N].
        weights: Weights of the regression, [T, N].
        contexts: Contexts of the lessons in standard deviations, [T, C].
        centre: Mean of the contexts, [C].
        scale: Standard deviation of the contexts, [C].
        width: Width of the kernel.
        ridge: Ridge of the regression.
    """

    points: Floats = field(repr=False)
    mean: Floats = field(repr=False)
    weights: Floats = field(repr=False)
    contexts: Floats = field(repr=False)
    centre: Floats = field(repr=False)
    scale: Floats = field(repr=False)
    width: float
    ridge: float

    @classmethod
    def fit(cls, lessons: Sequence[Lesson]) -> Kernel:
        """Return the policy of some lessons.

        Width and ridge are chosen by leaving each pair out in turn, then each corpus.
        """
        chosen = max(
            ((width, ridge) for ridge in reversed(_RIDGES) for width in reversed(_WIDTHS)),
            key=lambda pair: _left_out(lessons, *pair),
        )
        return cls.of(lessons, *chosen)

    @classmethod
    def of(cls, lessons: Sequence[Lesson], width: float, ridge: float) -> Kernel:
        """Return the policy with a given width and ridge."""
        points, shares = _landscapes(lessons)
        centre, scale = _standards(lessons)
        contexts = np.stack([(lesson.context - centre) / scale for lesson in lessons])
        mean = shares.mean(axis=0)
        matrix = _kernel(contexts, contexts, width) + ridge * np.eye(len(lessons))
        return cls(
            points=points,
            mean=mean,
            weights=np.linalg.solve(matrix, shares - mean),
            contexts=contexts,
            centre=centre,
            scale=scale,
            width=width,
            ridge=ridge,
        )

    def landscape(self, context: Floats) -> Floats:
        """Return the expected share of the best at each point of the lattice, [N]."""
        known = (context - self.centre) / self.scale
        # A context far from all lessons is treated like the nearest edge.
        near = np.clip(known, self.contexts.min(axis=0), self.contexts.max(axis=0))
        expected: Floats = (
            self.mean + (_kernel(near[None], self.contexts, self.width) @ self.weights)[0]
        )
        return expected

    def settle(self, context: Floats, /) -> Floats:
        """Return the point with the highest expected share, [D]."""
        return np.asarray(self.points[int(self.landscape(context).argmax())])


def fit_ppo(lessons: Sequence[Lesson], learner: PPO, moves: int) -> StandardPolicy:
    """Train a policy of PPO over lessons; a move is scored by the nearest point of the lattice.

    Args:
        lessons: Lessons of the training tasks.
        learner: Hyperparameters.
        moves: Number of moves to learn from.
    """
    points, _ = _landscapes(lessons)
    centre, scale = _standards(lessons)
    problems = [
        TuningProblem(_looked_up(lesson, points), lesson.space, budget=2 * moves)
        for lesson in lessons
    ]
    contexts = np.stack([(lesson.context - centre) / scale for lesson in lessons])
    policy = train_policy(learner, problems, contexts, moves=moves)
    return StandardPolicy(policy=policy, centre=centre, scale=scale)


def _looked_up(lesson: Lesson, points: Floats) -> Measure:
    def measure(values: Mapping[str, float]) -> dict[str, float]:
        away = ((points - lesson.space.point(values)) ** 2).sum(axis=1)
        return {"score": float(lesson.shares[int(away.argmin())])}

    return measure


def share_at(lesson: Lesson, point: Floats) -> float:
    """Return the share of the best that a lesson has at the lattice point nearest to a point."""
    points = lesson.space.lattice(LATTICE)
    return float(lesson.shares[int(((points - point) ** 2).sum(axis=1).argmin())])


def shuffled(lessons: Sequence[Lesson], seed: int) -> list[Lesson]:
    """Return the lessons with their contexts exchanged at random: the control of a leak.

    Pairs and corpora stay with the landscapes. Whatever a policy then gains from the context over
    `Fixed` does not come from the context.
    """
    order = np.random.default_rng(seed).permutation(len(lessons))
    return [replace(lesson, context=lessons[i].context) for lesson, i in zip(lessons, order)]


def _landscapes(lessons: Sequence[Lesson]) -> tuple[Floats, Floats]:
    """Return the lattice [N, D] and all landscapes [T, N]."""
    if not lessons or any(lesson.space != lessons[0].space for lesson in lessons):
        raise UserError(
            f"a general policy needs tasks with the same rule and draft length, found "
            f"{len(lessons)} tasks; give at least one, and one rule"
        )
    return lessons[0].space.lattice(LATTICE), np.stack([lesson.shares for lesson in lessons])


def _standards(lessons: Sequence[Lesson]) -> tuple[Floats, Floats]:
    """Return mean and deviation of the contexts, [C] each; inf where a part is constant."""
    contexts = np.stack([lesson.context for lesson in lessons])
    spread = contexts.std(axis=0)
    return contexts.mean(axis=0), np.where(spread > _SMALL, spread, np.inf)


def _left_out(lessons: Sequence[Lesson], width: float, ridge: float) -> float:
    """Return the mean share of the best on pairs and corpora that were left out; 0 without any."""
    found = []
    for part in ("pair", "corpus"):
        for name in sorted({getattr(lesson, part) for lesson in lessons}):
            rest = [lesson for lesson in lessons if getattr(lesson, part) != name]
            if not rest:
                continue
            policy = Kernel.of(rest, width, ridge)
            for lesson in lessons:
                if getattr(lesson, part) == name:
                    found.append(lesson.shares[int(policy.landscape(lesson.context).argmax())])
    if not found:
        return 0.0
    return float(np.mean(found))


def _kernel(one: Floats, other: Floats, width: float) -> Floats:
    """Return exp(−|a − b|² / (2 C width²)) for contexts [A, C] and [B, C], [A, B]."""
    squares = ((one[:, None] - other[None]) ** 2).mean(axis=-1)
    kernel: Floats = np.exp(-squares / (2 * width**2))
    return kernel
