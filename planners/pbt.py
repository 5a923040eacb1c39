"""Population Based Training (Jaderberg et al. 2017, arXiv:1711.09846) of forks of the run, and PB2.

A population of forks trains for real on the same batches. After every `interval` decisions their
scores are compared:

    exploit    each member of the bottom 25 % becomes a copy of a random member of the top 25 %:
               weights and hyperparameters
    explore    each hyperparameter of the copy is drawn anew with probability 0.25,
               otherwise moved to a neighbour, within bounds

A member is a sequence of interventions, so to copy a member is to copy its sequence. All steps of
all members are charged. The hyperparameters are the learning-rate multiplier, the weight-decay
multiplier and the clip policy. With `explore="pb2"` a Gaussian process over the improvements so far
chooses the changes of the copies (`trainenv.planners.support.pb2_explore`).

Deviations:
- Interventions are bounded changes. *Drawn anew* is a legal factor on the value in force, and *a
  neighbour* is the next smaller or larger factor from 1 (the paper: × 0.8 or × 1.2).
- Clip policies have no order, so they are drawn anew or kept.
- Members of the first generation differ from doing nothing by one intervention instead of a fresh
  draw of all hyperparameters, and the first of them does nothing.
- Replaced members are recorded as dropped: their short runs cannot be compared with longer ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from trainenv.interventions import PARTS
from trainenv.planners.support.pb2_explore import Improvements, choose_change
from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.sequences import (
    NOTHING,
    Interventions,
    canonical,
    even,
    exhaustive,
    factor,
    some,
    values,
)
from trainenv.tools.checks import choice, number, whole
from trainenv.types import Intervention, Masks, Plan, PlanningProblem

Explore = Literal["perturb", "pb2"]

_TUNED = ("lr_scale", "weight_decay_scale", "clip")


@dataclass(frozen=True, kw_only=True)
class PBT:
    """Evolve a population of real forks and rank its members.

    Args:
        population: Number of members, doing nothing included.
        generations: Rounds of training, each but the last followed by exploit and explore; fewer at
            the end of the run.
        interval: Decisions in a generation.
        quantile: Share of the population that is replaced, and share that copies are taken from;
            above 0, at most 0.5.
        resample: Probability that a hyperparameter is drawn anew.
        explore: Explore step: `perturb` or `pb2`.

    Raises:
        UserError: A hyperparameter is out of range.
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
        """Train and evolve the population, and rank its last members."""
        builder = PlanBuilder(problem, "pbt")
        ahead = max(1, len(problem.history.lrs_ahead))
        _ = builder.executor  # an error here comes before anything is spent
        members = self._begin(builder)
        starts = [0.0] * self.population
        seen = Improvements()
        for generation in range(self.generations):
            decisions = (generation + 1) * self.interval
            steps = min(decisions * problem.history.decision_steps, ahead)
            if builder.over or (generation and not builder.affords(members, steps)):
                break
            measured = np.array(builder.run(members, steps))
            scores = np.where(np.isfinite(measured), measured, math.inf).tolist()
            if min(scores) == math.inf:
                break
            seen.add(decisions - self.interval, self.interval, starts, scores, members)
            if generation + 1 == self.generations or builder.exhausted or steps == ahead:
                break
            members, starts = self._evolve(builder, members, scores, decisions, seen)
        return builder.plan()

    def _begin(self, builder: PlanBuilder) -> list[Interventions]:
        """Return doing nothing, the proposals, and an even choice of single changes."""
        problem = builder.problem
        tuned = replace(problem, masks=tuned_only(problem.masks))
        changes = some(tuned, self.population, 1, even)
        members = list(dict.fromkeys([NOTHING, *builder.proposals, *changes]))[: self.population]
        return members + [NOTHING] * (self.population - len(members))

    def _evolve(
        self,
        builder: PlanBuilder,
        members: list[Interventions],
        scores: list[float],
        decisions: int,
        seen: Improvements,
    ) -> tuple[list[Interventions], list[float]]:
        """Exploit, then explore.

        Args:
            builder: Builder of the plan.
            members: Members of the last generation, [P].
            scores: Their scores, [P].
            decisions: Decisions taken so far.
            seen: Improvements so far.

        Returns:
            Members of the next generation and the scores that they start with, [P] each.
        """
        problem = builder.problem
        order = np.argsort(scores, kind="stable")
        size = max(1, round(self.quantile * len(members)))
        after = list(members)
        starts = list(scores)
        pending = list[tuple[float, Interventions]]()
        for place in order[len(order) - size :]:
            parent = int(order[problem.generator.integers(size)])
            source = members[parent] + (Intervention(),) * (decisions - len(members[parent]))
            masks = problem.masks
            if problem.masks_after is not None:
                masks = problem.masks_after(source)
            masks = tuned_only(masks)
            if self.explore == "pb2":
                legal = [problem.codec.decode(vector) for vector in exhaustive(masks)]
                change = choose_change(seen, decisions, scores[parent], source, legal, pending)
            else:
                change = perturbed(problem, masks, self.resample)
            after[place] = canonical([*source, change])
            starts[place] = scores[parent]
            pending.append((scores[parent], (*source, change)))
        for one in members:
            if one not in after:
                builder.drop(one, f"replaced after decision {decisions}")
        return after, starts


def perturbed(problem: PlanningProblem, masks: Masks, resample: float) -> Intervention:
    """Draw a change of the hyperparameters: the explore step of PBT.

    Each is drawn anew with probability `resample`, otherwise moved to a neighbour, up or down.
    """
    generator = problem.generator
    codec = problem.codec
    vector = np.zeros(len(masks), dtype=np.int64)
    for part, legal in enumerate(values(masks)):
        if generator.random() < resample:
            vector[part] = generator.choice(legal)
        elif PARTS[part] in ("lr_scale", "weight_decay_scale"):
            sign = -1
            if generator.random() < 0.5:
                sign = 1
            logs = {int(value): math.log(factor(codec, part, int(value))) for value in legal}
            beyond = [value for value, log in logs.items() if sign * log > 0]
            vector[part] = min(beyond, key=lambda value: abs(logs[value]), default=0)
    return codec.decode(vector)


def tuned_only(masks: Masks) -> Masks:
    """Return masks that allow changes of hyperparameters only, and no single events.

    A momentum reset, for instance, happens once and is no hyperparameter.
    """
    return tuple(
        mask if PARTS[part] in _TUNED else np.arange(len(mask)) == 0
        for part, mask in enumerate(masks)
    )
