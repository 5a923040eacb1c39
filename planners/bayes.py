"""Bayesian optimisation with Optuna's ask and tell: TPE by default, or a Gaussian process.

TPE (Bergstra et al. 2011; Watanabe 2023, arXiv:2304.11127) keeps a density l(x) of the better
results and a density g(x) of the others, and asks next where l/g is greatest, here jointly over the
parts of the action. The learning-rate and the weight-decay scale are ordered; the other parts are
categories. Only legal values are in the space.

Results of Optuna's trials (`tell(nan)` would fail with a warning, `tell(inf)` would be a result):

- A divergence has a finite score, since the criterion has a cost for it.
- A candidate without a score (pruned, dropped, a failed branch) is a failed trial; the sampler
  learns nothing from it.
- Doing nothing and the proposals are added as results first.
- A repeated question is answered from memory. It costs nothing, but counts as an ask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from trainenv.interventions import PARTS
from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.scoring import SCORERS, Scorer, score
from trainenv.planners.support.sequences import NOTHING, Interventions, canonical, factor, values
from trainenv.tools.checks import choice, whole
from trainenv.tools.optional import require
from trainenv.tools.optuna_studies import Sampler, quiet_study, tell
from trainenv.types import Intervention, Plan, PlanningProblem

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

_ORDERED = ("lr_scale", "weight_decay_scale")


@dataclass(frozen=True, kw_only=True)
class Bayes:
    """Ask the sampler for candidates, score them, tell it the scores, and rank all candidates.

    Args:
        sampler: Sampler: `tpe`, or `gp` (better asks, each about ten times slower).
        candidates: Number of asks, doing nothing and proposals included.
        decisions: Number of decisions that a candidate spans; 1 to 4, as the model forecasts.
        batch: Number of asks before the next tell; the executor runs them together.
        startup: Number of random asks before the sampler learns.
        judge: Source of scores: `model`, `executor`, or `either` (the model where there is one).
        steps: Real steps of a branch if the executor is the scorer; None for `decisions` decisions.

    Raises:
        UserError: A hyperparameter is out of range, or optuna is not installed.
    """

    sampler: Sampler = "tpe"
    candidates: int = 64
    decisions: int = 1
    batch: int = 1
    startup: int = 10
    judge: Scorer = "either"
    steps: int | None = None

    def __post_init__(self) -> None:
        choice("sampler", self.sampler, get_args(Sampler))
        choice("judge", self.judge, SCORERS)
        for name in ("candidates", "decisions", "batch", "startup"):
            whole(name, getattr(self, name), least=1)
        if self.steps is not None:
            whole("steps", self.steps, least=1)
        # Optuna would raise an error only at the first ask after the startup.
        require("optuna", "the planner bayes")

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Score the candidates that the sampler asks for, and rank them."""
        builder = PlanBuilder(problem, "bayes")
        decisions = min(self.decisions, problem.decisions_left)
        space = Space(problem, decisions)

        def scored(sequences: list[Interventions]) -> list[float]:
            return score(builder, sequences, self.judge, self.steps, decisions)

        study = quiet_study(self.sampler, self.startup, int(problem.generator.integers(2**31)))
        first = list(dict.fromkeys([NOTHING, *builder.proposals]))[: self.candidates]
        _add(study, space, first, scored(first))
        left = self.candidates - len(first)
        while space.distributions and left > 0 and not builder.over and not builder.exhausted:
            trials = [study.ask(space.distributions) for _ in range(min(self.batch, left))]
            left -= len(trials)
            scores = scored([space.sequence(trial.params) for trial in trials])
            for trial, found in zip(trials, scores, strict=True):
                tell(study, trial, found)
        return builder.plan()


class Space:
    """The legal values of each part of each decision as Optuna's distributions.

    Attributes:
        distributions: Distributions by name, over indices into the legal values.
    """

    def __init__(self, problem: PlanningProblem, decisions: int) -> None:
        self._codec = problem.codec
        self._decisions = decisions
        self._legal = [
            _sorted(problem, part, legal.tolist())
            for part, legal in enumerate(values(problem.masks))
        ]
        self.distributions: dict[str, BaseDistribution] = {
            f"{PARTS[part]} {decision}": _distribution(part, len(legal))
            for decision in range(decisions)
            for part, legal in enumerate(self._legal)
            if len(legal) > 1
        }

    def sequence(self, parameters: dict[str, Any]) -> Interventions:
        """Return the sequence of some parameters, which are indices into the legal values."""
        rows = [
            [
                legal[parameters.get(f"{PARTS[part]} {decision}", 0)]
                for part, legal in enumerate(self._legal)
            ]
            for decision in range(self._decisions)
        ]
        return canonical([self._codec.decode(row) for row in rows])

    def parameters(self, sequence: Interventions) -> dict[str, int] | None:
        """Return the parameters of a sequence; None if it is not in the space."""
        padded = [*sequence, *(Intervention() for _ in range(self._decisions - len(sequence)))]
        if len(padded) > self._decisions:
            return None
        found: dict[str, int] = {}
        for decision, intervention in enumerate(padded):
            vector = self._codec.encode(intervention).tolist()
            for part, (value, legal) in enumerate(zip(vector, self._legal, strict=True)):
                if value not in legal:
                    return None
                name = f"{PARTS[part]} {decision}"
                if name in self.distributions:
                    found[name] = legal.index(value)
        return found


def _sorted(problem: PlanningProblem, part: int, legal: list[int]) -> list[int]:
    """Return the legal values of a part, those of an ordered part by their factor."""
    if PARTS[part] in _ORDERED:
        return sorted(legal, key=partial(factor, problem.codec, part))
    return legal


def _distribution(part: int, size: int) -> BaseDistribution:
    """Return the distribution over the indices of the legal values of a part."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if PARTS[part] in _ORDERED:
        return IntDistribution(0, size - 1)
    return CategoricalDistribution(list(range(size)))


def _add(
    study: Study, space: Space, sequences: Sequence[Interventions], scores: Sequence[float]
) -> None:
    """Add the scores of sequences that the sampler did not ask for."""
    from optuna.trial import create_trial

    for sequence, found in zip(sequences, scores, strict=True):
        parameters = space.parameters(sequence)
        if parameters is not None and math.isfinite(found):
            study.add_trial(
                create_trial(params=parameters, distributions=space.distributions, value=found)
            )
