"""Evaluation of all strategies and general policies on held-out texts, pairs and corpora.

    found = evaluate(sources, Plan(seeds=3), Path("runs/decoding"))

A cell is a source (a pair on a corpus), a seed, and a method. The seed splits the texts into those
that methods measure settings on and those that they are evaluated on. Cells are appended to
`cells.jsonl` in the folder, so an interrupted evaluation resumes. The lessons of all sources are
written to `lessons.json`, for `trainenv decode recommend`.

General policies are trained on all texts of other pairs (`…, other pairs`) or of other corpora
(`…, other corpora`). They see the context of a few texts of the task, and spend no evaluations:

| method | is |
|---|---|
| `fixed` | the same settings for all tasks, the best on average |
| `general` | kernel regression from contexts to landscapes |
| `ppo policy` | PPO, trained over the tasks |
| `adaptive` | the schedule `Adaptive` with the memory and threshold that are best for other tasks |
| `recommend` | the faster on the few texts: `adaptive`, or `general` with their landscape |
| `shuffled` | `general`, trained with contexts exchanged at random: its gain must be lost |

Regret is the share of the oracle's score that is missing; it may be below 0 for methods that are
no fixed settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trainenv.agents.thresholds.adaptive_choice import AdaptiveChoice, best_choice, speeds_of
from trainenv.agents.thresholds.contract import Floats
from trainenv.agents.thresholds.controls import (
    DraftControl,
    FixedThresholds,
    ReplayedSchedule,
)
from trainenv.agents.thresholds.experience import Experience, save_experience
from trainenv.agents.thresholds.meta import (
    Fixed,
    GeneralPolicy,
    Kernel,
    Lesson,
    fit_ppo,
    learn,
    shuffled,
)
from trainenv.agents.thresholds.pictures import picture
from trainenv.agents.thresholds.plan import Plan
from trainenv.agents.thresholds.ppo import PPO
from trainenv.agents.thresholds.recommend import Recommender
from trainenv.agents.thresholds.sources import Source
from trainenv.agents.thresholds.strategies import STRATEGIES
from trainenv.agents.thresholds.tasks import DecodingTask, split
from trainenv.compare.bootstrap import Figure, figure
from trainenv.tools.json_lines import append_line, read_lines
from trainenv.types import UserError

PARTS = {"pair": "other pairs", "corpus": "other corpora"}
MEASURES = ("speedup", "acceptance", "distance", "regret", "evaluations")
CELLS = "cells.jsonl"
LESSONS = "lessons.json"
_FACTORS = (0.5, 1.0, 2.0)  # on the draft's time, of the training tasks
_TAUGHT = 8  # texts of a task that the schedule is chosen on
_PPO = PPO(rollout=32, batch=128, lr=2e-3)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one source with one seed.

    Attributes:
        source: Index of the source.
        seed: Random seed.
        method: Name of the strategy or general policy.
        part: `pair` or `corpus`, whichever is left out of the training of a general policy; empty
            for strategies.
    """

    source: int
    seed: int
    method: str
    part: str = ""

    @property
    def label(self) -> str:
        """Name of the method in tables."""
        if self.part:
            return f"{self.method}, {PARTS[self.part]}"
        return self.method


class Evaluator:
    """Evaluation of a plan on some sources.

    Args:
        sources: Recorded traces, each of another pair or corpus.
        plan: Choices of the evaluation.

    Raises:
        UserError: Two sources have the same pair and corpus, or a draft length does not fit.
    """

    def __init__(self, sources: Sequence[Source], plan: Plan) -> None:
        names = [source.name for source in sources]
        if not names or len(set(names)) < len(names):
            raise UserError(
                f"an evaluation needs traces of different pairs or corpora, found {names}; "
                "give each pair and corpus once"
            )
        self.sources = tuple(sources)
        self.plan = plan
        for source in sources:
            plan.task(source, source.trace, source.trace)  # an error here comes before any work
        self._policies: dict[tuple[str, str, str], GeneralPolicy] = {}
        self._oracles: dict[tuple[int, int], DraftControl] = {}

    def cells(self) -> list[Cell]:
        """Return all cells in the order of their evaluation."""
        found = []
        for seed in range(self.plan.seeds):
            for place, source in enumerate(self.sources):
                for method in self.plan.methods:
                    found.append(Cell(source=place, seed=seed, method=method))
                for part in PARTS:
                    if any(getattr(source, part) != getattr(o, part) for o in self.sources):
                        for method in self.plan.general:
                            found.append(Cell(source=place, seed=seed, method=method, part=part))
        return found

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Evaluate one cell, and return its row."""
        source = self.sources[cell.source]
        first, second = split(source.trace, cell.seed)
        task = self.plan.task(source, first, second)
        evaluations = 0
        if cell.part:
            control = self._general(cell, task)
        elif cell.method == "oracle":
            control = self._oracle(cell, task)
        else:
            control = STRATEGIES[cell.method](task, self.plan.budget, self._seed(cell))
            if cell.method in SEARCHING:
                evaluations = self.plan.budget
        found = task.evaluate(control)
        bound = task.evaluate(self._oracle(cell, task))["score"]
        settings = {}
        if isinstance(control, FixedThresholds):
            settings = asdict(control.settings)
        return {
            **asdict(cell),
            "pair": source.pair,
            "corpus": source.corpus,
            "clock": source.clock,
            "label": cell.label,
            **found,
            "regret": 1 - found["score"] / bound,
            "evaluations": evaluations,
            "settings": settings,
        }

    @cached_property
    def lessons(self) -> list[list[Lesson]]:
        """The lessons of each source on all of its texts."""
        return [
            learn(self.plan.task(source, source.trace, source.trace), _FACTORS)
            for source in self.sources
        ]

    def _seed(self, cell: Cell) -> int:
        """Return the seed of a cell: the luck of one draw must not be that of all tasks."""
        return cell.seed * len(self.sources) + cell.source

    def _oracle(self, cell: Cell, task: DecodingTask) -> DraftControl:
        """Return the best fixed settings of the held-out texts of a cell."""
        key = (cell.source, cell.seed)
        if key not in self._oracles:
            self._oracles[key] = STRATEGIES["oracle"](task, 1, cell.seed)
        return self._oracles[key]

    def _general(self, cell: Cell, task: DecodingTask) -> DraftControl:
        """Return the control of a general policy that was not trained on a part of the task."""
        few = np.arange(min(self.plan.context_texts, task.trace.rows))
        seen = self.plan.task(self.sources[cell.source], task.trace.select(few), task.held_out)
        if cell.method == "adaptive":
            schedule = self._choice(cell).schedule(
                seen.costs, start=seen.trace.acceptance, most=self.plan.k
            )
            return ReplayedSchedule(schedule=schedule, seed=self._seed(cell))
        if cell.method == "recommend":
            kernel = self._policy("general", cell)
            assert isinstance(kernel, Kernel)
            found = Recommender(policy=kernel, choice=self._choice(cell)).recommend(seen)
            if found.schedule is not None:
                return ReplayedSchedule(schedule=found.schedule, seed=self._seed(cell))
            return seen.control(found.values, 1.0 if found.drafts else 0.0)
        point: Floats = self._policy(cell.method, cell).settle(seen.context())
        values = task.space.values(point)
        return seen.control(values, seen.measure(values)["score"])

    @cached_property
    def speeds(self) -> Floats:
        """Speed-up of each choice of the schedule `Adaptive` on each source, [S, C]."""
        found = []
        for source in self.sources:
            trace = source.trace.select(np.arange(min(_TAUGHT, source.trace.rows)))
            found.append(speeds_of(trace, source.costs, self.plan.k))
        return np.stack(found)

    def _choice(self, cell: Cell) -> AdaptiveChoice:
        """Return the choice that is best without the pair or the corpus of a cell."""
        left_out = getattr(self.sources[cell.source], cell.part)
        others = [getattr(source, cell.part) != left_out for source in self.sources]
        return best_choice(self.speeds[np.array(others)])

    def _policy(self, method: str, cell: Cell) -> GeneralPolicy:
        """Return a general policy without the pair or the corpus of a cell, trained once."""
        left_out = getattr(self.sources[cell.source], cell.part)
        key = (method, cell.part, left_out)
        if key not in self._policies:
            taught = [
                lesson
                for source, lessons in zip(self.sources, self.lessons, strict=True)
                if getattr(source, cell.part) != left_out
                for lesson in lessons
            ]
            self._policies[key] = _trained(method, taught, self.plan.moves)
        return self._policies[key]


SEARCHING = ("grid", "random", "cma-es", "ucb", "tpe", "ppo", "specdec")
"""Strategies that spend the budget."""


def _trained(method: str, lessons: Sequence[Lesson], moves: int) -> GeneralPolicy:
    if method == "fixed":
        return Fixed.fit(lessons)
    if method == "ppo policy":
        return fit_ppo(lessons, _PPO, moves)
    if method == "shuffled":
        return Kernel.fit(shuffled(lessons, 0))
    return Kernel.fit(lessons)


def evaluate(
    sources: Sequence[Source],
    plan: Plan,
    folder: Path,
    *,
    progress: Callable[[int, int, str], None] = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Evaluate the cells that are not in the folder yet, and return all results.

    Args:
        sources: Recorded traces.
        plan: Choices of the evaluation.
        folder: Folder of the cells; an interrupted evaluation resumes there.
        progress: Function of the cells done, their number, and the name of the next.
        stop: Function to call before each cell; True ends the evaluation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    evaluator = Evaluator(sources, plan)
    stamp = _stamp(evaluator)
    log = folder / CELLS
    done = {_key(row): row for row in read_lines(log) if row.get("stamp") == stamp}
    cells = evaluator.cells()
    for place, cell in enumerate(cells):
        if stop():
            break
        key = _key(asdict(cell))
        progress(place, len(cells), f"{cell.label}: {sources[cell.source].name}")
        if key not in done:
            done[key] = {**evaluator.measure(cell), "stamp": stamp}
            append_line(log, done[key])
    if plan.general and len(sources) > 1 and not stop():
        experience = Experience(
            lessons=tuple(lesson for lessons in evaluator.lessons for lesson in lessons),
            choice=best_choice(evaluator.speeds),
        )
        save_experience(experience, folder / LESSONS, rule=plan.rule, k=plan.k)
    rows = [done[key] for cell in cells if (key := _key(asdict(cell))) in done]
    return {
        "finished": len(rows) == len(cells),
        "plan": asdict(plan),
        "tasks": [picture(source, plan) for source in sources],
        "methods": list(summaries(rows)),
        "rows": rows,
    }


def summaries(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each method with its measures: means over all rows, with intervals over traces."""
    for label in dict.fromkeys(row["label"] for row in rows):
        mine = [row for row in rows if row["label"] == label]
        traces = [_trace(row) for row in mine]
        yield {
            "method": label,
            **{name: figure([row[name] for row in mine], traces).to_json() for name in MEASURES},
        }


def compared(rows: Sequence[Mapping[str, Any]], one: str, other: str) -> Figure:
    """Return by which factor a method is faster than another on the same tasks and seeds.

    Args:
        rows: Rows of an evaluation.
        one: Label of the method.
        other: Label of the method that it is compared with.
    """
    by_label = {
        label: {(row["source"], row["seed"]): row for row in rows if row["label"] == label}
        for label in (one, other)
    }
    shared = [key for key in by_label[one] if key in by_label[other]]
    traces = [_trace(by_label[one][key]) for key in shared]
    logs = [math.log(by_label[one][key]["score"] / by_label[other][key]["score"]) for key in shared]
    return figure(logs, traces, of=lambda means: np.exp(means[:, 0]))


def _trace(row: Mapping[str, Any]) -> str:
    """Return the name of a row's trace: clocks and seeds of one trace are not independent."""
    return f"{row['pair']} on {row['corpus']}"


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("source", "seed", "method", "part"))


def _stamp(evaluator: Evaluator) -> str:
    """Return a digest of plan and traces: cells of another plan are not taken over."""
    from hashlib import sha256

    parts = [
        repr({**asdict(evaluator.plan), "methods": "", "general": "", "seeds": 0}),
        *(repr((one.pair, one.corpus, one.costs, one.trace.origin)) for one in evaluator.sources),
    ]
    return sha256("\n".join(parts).encode()).hexdigest()[:16]
