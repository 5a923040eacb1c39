"""Bayesian optimisation with Optuna's ask and tell: TPE by default, a Gaussian process as an option.

TPE (Bergstra et al. 2011; Watanabe 2023, arXiv:2304.11127) keeps a density l(x) of the better
tellings and g(x) of the others, and asks next where l/g is greatest, here jointly over the parts of
the action. The learning-rate and the weight-decay scale are ordered, the other parts are
categories; only legal values are in the space.

How results are told, which Optuna would otherwise decide by itself (`tell(nan)` fails with a
warning, `tell(inf)` is taken for a result): a divergence is a number, since the criterion prices
it; what has no score (pruned, dropped, a branch that failed) is told as FAIL, and teaches nothing.
Doing nothing and the proposals are told first. A question asked again is answered from
memory: it costs no look, but counts among the asks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from trainenv.interventions import PARTS
from trainenv.planners.hyperparameters import choice, whole
from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.scoring import JUDGES, Scorer, look
from trainenv.planners.support.sequences import NOTHING, Sequenced, canonical, factor, values
from trainenv.tools.optional import require
from trainenv.types import Intervention, Plan, PlanningProblem

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

Sampler = Literal["tpe", "gp"]

_ORDERED = ("lr_scale", "weight_decay_scale")


@dataclass(frozen=True, kw_only=True)
class Bayes:
    """Ask, look, tell, and rank what was looked at.

    Args:
        sampler: `tpe`, or `gp` (better asks, each some ten times slower).
        candidates: asks, doing nothing and proposals among them.
        decisions: how many decisions a candidate spans; from 1 to 4, as the model forecasts.
        batch: asks at a time, without knowing each other's answer: what the executor runs at once.
        startup: asks at random before the sampler learns.
        judge: `model`, `executor`, or `either`: the model where there is one.
        steps: real steps of a branch where the executor is the judge; None for one decision for
            each that the candidate spans.

    Raises:
        UserError: a hyperparameter is out of range, or optuna is not installed.
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
        choice("judge", self.judge, JUDGES)
        for name in ("candidates", "decisions", "batch", "startup"):
            whole(name, getattr(self, name), least=1)
        if self.steps is not None:
            whole("steps", self.steps, least=1)
        # Optuna itself would say so no sooner than at the first ask after the startup.
        require("optuna", "the planner bayes")

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Rank what was asked."""
        draft = PlanBuilder(problem, "bayes")
        decisions = min(self.decisions, problem.decisions_left)
        space = Space(problem, decisions)

        def judged(sequences: list[Sequenced]) -> list[float]:
            return look(draft, sequences, self.judge, self.steps, decisions)

        study = quiet_study(self.sampler, self.startup, int(problem.generator.integers(2**31)))
        first = list(dict.fromkeys([NOTHING, *draft.proposals]))[: self.candidates]
        _told_before(study, space, first, judged(first))
        asked = len(first)
        while (
            space.distributions
            and asked < self.candidates
            and not draft.over
            and not draft.exhausted
        ):
            trials = [
                study.ask(space.distributions)
                for _ in range(min(self.batch, self.candidates - asked))
            ]
            asked += len(trials)
            for trial, score in zip(
                trials, judged([space.sequence(trial.params) for trial in trials]), strict=True
            ):
                _tell(study, trial, score)
        return draft.plan()


class Space:
    """The legal values of each part of each decision, as Optuna's distributions, and the way back."""

    def __init__(self, problem: PlanningProblem, decisions: int) -> None:
        from optuna.distributions import CategoricalDistribution, IntDistribution

        self._codec = problem.codec
        self._decisions = decisions
        self._legal = [
            sorted(legal.tolist(), key=partial(factor, problem.codec, part))
            if PARTS[part] in _ORDERED
            else legal.tolist()
            for part, legal in enumerate(values(problem.masks))
        ]
        self.distributions: dict[str, BaseDistribution] = {}
        for decision in range(decisions):
            for part, legal in enumerate(self._legal):
                ordered = PARTS[part] in _ORDERED
                if len(legal) > 1:
                    places = range(len(legal))
                    found = (
                        IntDistribution(0, len(legal) - 1)
                        if ordered
                        else CategoricalDistribution(list(places))
                    )
                    self.distributions[f"{PARTS[part]} {decision}"] = found

    def sequence(self, parameters: dict[str, Any]) -> Sequenced:
        """The sequence that parameters, places among legal values, stand for."""
        rows = [
            [
                legal[parameters.get(f"{PARTS[part]} {decision}", 0)]
                for part, legal in enumerate(self._legal)
            ]
            for decision in range(self._decisions)
        ]
        return canonical([self._codec.decode(row) for row in rows])

    def parameters(self, sequence: Sequenced) -> dict[str, int] | None:
        """The parameters of a sequence; None where it has none here."""
        padded = [*sequence, *(Intervention() for _ in range(self._decisions - len(sequence)))]
        if len(padded) > self._decisions:
            return None
        rows = [self._codec.encode(intervention).tolist() for intervention in padded]
        if any(
            value not in legal
            for row in rows
            for value, legal in zip(row, self._legal, strict=True)
        ):
            return None
        places = {
            f"{PARTS[part]} {decision}": self._legal[part].index(value)
            for decision, row in enumerate(rows)
            for part, value in enumerate(row)
        }
        return {name: place for name, place in places.items() if name in self.distributions}


def quiet_study(sampler: Sampler, startup: int, seed: int) -> Study:
    """A study in memory that minimises; nothing is printed, and Optuna's log level is left as it was."""
    import optuna

    made: Callable[..., Any] = {"tpe": optuna.samplers.TPESampler, "gp": optuna.samplers.GPSampler}[
        sampler
    ]
    options: dict[str, Any] = {"multivariate": True} if sampler == "tpe" else {}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        with warnings.catch_warnings():
            # Before Optuna 5, of `multivariate` and of the Gaussian process.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            drawing = made(seed=seed, n_startup_trials=startup, **options)
        return optuna.create_study(sampler=drawing, direction="minimize")
    finally:
        optuna.logging.set_verbosity(before)


def _told_before(
    study: Study, space: Space, sequences: Sequence[Sequenced], scores: Sequence[float]
) -> None:
    """Tell what was looked at without being asked."""
    from optuna.trial import create_trial

    for sequence, score in zip(sequences, scores, strict=True):
        parameters = space.parameters(sequence)
        if parameters is not None and math.isfinite(score):
            study.add_trial(
                create_trial(params=parameters, distributions=space.distributions, value=score)
            )


def _tell(study: Study, trial: Trial, score: float) -> None:
    from optuna.trial import TrialState

    if math.isfinite(score):
        study.tell(trial, score)
    else:
        study.tell(trial, state=TrialState.FAIL)
