"""Population Based Training (Jaderberg et al.

2017, arXiv:1711.09846) of forks of the run, and PB2 as an option.

A population of forks trains for real, side by side on the same batches. After every `interval`
decisions they are compared, and

    exploit    each member of the bottom 25 % becomes a copy of a random member of the top 25 %:
    weights and hyperparameters explore    each hyperparameter of the copy is drawn anew with
    probability 0.25, else moved to a neighbour, within bounds

A member is a sequence of interventions, so a copy of another is a copy of its sequence. All steps
of all members are charged. Hyperparameters are the learning-rate and the weight-decay multiplier
and the clip policy. With `explore="pb2"` a Gaussian process over the improvements seen so far
chooses what the copies do (`trainenv.planners.support.pb2_explore`).

Deviations: interventions are bounded changes, so *drawn anew* is a legal factor on what is in
force, and *a neighbour* is the next smaller or larger factor beside 1 (the paper: × 0.8 or × 1.2);
clip policies have no order, so they are drawn anew or kept. Members of the first generation differ
from doing nothing by one intervention instead of a fresh draw, and the first of them does nothing.
What was replaced is recorded as dropped: its short run is not comparable with the others' long
ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from trainenv.interventions import PARTS
from trainenv.planners.hyperparameters import choice, number, whole
from trainenv.planners.support.pb2_explore import Improvements, chosen
from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.sequences import (
    NOTHING,
    Sequenced,
    canonical,
    even,
    exhaustive,
    factor,
    some,
    values,
)
from trainenv.types import Intervention, Masks, Plan, PlanningProblem

Explore = Literal["perturb", "pb2"]

_TUNED = ("lr_scale", "weight_decay_scale", "clip")


@dataclass(frozen=True, kw_only=True)
class PBT:
    """Evolve a population of real forks and rank its members.

    Args:
        population: members, doing nothing among them.
        generations: rounds of training, each followed by exploit and explore but the last; fewer
            where the run ends before.
        interval: decisions a generation.
        quantile: share of the population that is replaced, and from which copies are taken; above
            0, at most 0.5.
        resample: probability that a hyperparameter is drawn anew.
        explore: `perturb`, or `pb2`.

    Raises:
        UserError: a hyperparameter is out of range.
    """

    population: int = 8
    generations: int = 4
    interval: int = 1
    quantile: float = 0.25
    resample: float = 0.25
    explore: Explore = "perturb"

    def __post_init__(self) -> None:
        whole("population", self.population, least=2)
        whole("generations", self.generations, least=1)
        whole("interval", self.interval, least=1)
        number("quantile", self.quantile, above=0, most=0.5)
        number("resample", self.resample, least=0, most=1)
        choice("explore", self.explore, get_args(Explore))

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Rank the last population."""
        draft = PlanBuilder(problem, "pbt")
        ahead = max(1, len(problem.history.lrs_ahead))
        _ = draft.executor  # its absence is told before anything is spent
        members = self._first(draft)
        starts = [0.0] * self.population
        seen = Improvements()
        for generation in range(self.generations):
            decisions = (generation + 1) * self.interval
            steps = min(decisions * problem.history.decision_steps, ahead)
            if draft.over or (generation and not draft.affords(members, steps)):
                break
            scores = [
                score if math.isfinite(score) else math.inf for score in draft.run(members, steps)
            ]
            if min(scores) == math.inf:
                break
            seen.add(decisions - self.interval, self.interval, starts, scores, members)
            if generation + 1 == self.generations or draft.exhausted or steps == ahead:
                break
            members, starts = self._next(draft, members, scores, decisions, seen)
        return draft.plan()

    def _first(self, draft: PlanBuilder) -> list[Sequenced]:
        """Doing nothing, the proposals, and an even choice of single changes of hyperparameters."""
        problem = draft.problem
        tuned = replace(problem, masks=tuned_only(problem.masks))
        members = list(
            dict.fromkeys([NOTHING, *draft.proposals, *some(tuned, self.population, 1, even)])
        )[: self.population]
        return members + [NOTHING] * (self.population - len(members))

    def _next(
        self,
        draft: PlanBuilder,
        members: list[Sequenced],
        scores: list[float],
        decisions: int,
        seen: Improvements,
    ) -> tuple[list[Sequenced], list[float]]:
        """The members of the next generation and the scores that they start with: exploit, then explore."""
        problem = draft.problem
        order = np.argsort(scores, kind="stable")
        size = max(1, round(self.quantile * len(members)))
        after = list(members)
        starts = list(scores)
        pending = list[tuple[float, Sequenced]]()
        for place in order[len(order) - size :]:
            parent = int(order[problem.generator.integers(size)])
            source = members[parent] + (Intervention(),) * (decisions - len(members[parent]))
            masks = tuned_only(
                problem.masks if problem.masks_after is None else problem.masks_after(source)
            )
            if self.explore == "pb2":
                legal = [problem.codec.decode(vector) for vector in exhaustive(masks)]
                change = chosen(seen, decisions, scores[parent], source, legal, pending)
            else:
                change = perturbed(problem, masks, self.resample)
            after[place], starts[place] = canonical([*source, change]), scores[parent]
            pending.append((scores[parent], (*source, change)))
        for one in members:
            if one not in after:
                draft.drop(one, f"replaced after decision {decisions}")
        return after, starts


def perturbed(problem: PlanningProblem, masks: Masks, resample: float) -> Intervention:
    """Explore: each hyperparameter drawn anew with probability `resample`, else moved to a neighbour, up or down."""
    generator = problem.generator
    codec = problem.codec
    vector = np.zeros(len(masks), dtype=np.int64)
    for part, legal in enumerate(values(masks)):
        if generator.random() < resample:
            vector[part] = generator.choice(legal)
        elif PARTS[part] in ("lr_scale", "weight_decay_scale"):
            up = generator.random() < 0.5
            logs = {int(value): math.log(factor(codec, part, int(value))) for value in legal}
            beyond = [value for value, log in logs.items() if (log > 0 if up else log < 0)]
            vector[part] = min(beyond, key=lambda value: abs(logs[value]), default=0)
    return codec.decode(vector)


def tuned_only(masks: Masks) -> Masks:
    """Masks that leave only hyperparameters to change: what happens once, such as a momentum reset, is none."""
    return tuple(
        mask if PARTS[part] in _TUNED else np.arange(len(mask)) == 0
        for part, mask in enumerate(masks)
    )
