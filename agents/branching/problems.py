"""Planning problems: history, legal actions now and later, and candidates to try first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainenv.interventions import PARTS, ActionCodec, after
from trainenv.types import (
    DECISIONS,
    ActionSpace,
    Budget,
    Criterion,
    InForce,
    Intervention,
    Learner,
    Masks,
    Plan,
    PlanningProblem,
    Pruner,
    RunHistory,
    WorldModel,
)

Sequenced = tuple[Intervention, ...]
Propose = Callable[[RunHistory, ActionCodec, Masks], Sequence[Sequence[Intervention]]]
Allow = Callable[[RunHistory, WorldModel | None], Budget]
"""Budget of a draft: larger where the risk is high."""

FEWEST = 8  # futures that a draft must be able to look at


@dataclass(frozen=True, kw_only=True)
class PlanningOptions:
    """Settings of a planning problem besides the run.

    Args:
        propose: Function that returns sequences to try first, before `ramps`; None for none.
        pruner: Filter that drops hopeless candidates before the model sees them; None for none.
        allow: Function that returns the budget of a draft; None for the default of `Budget`.
        parts: Names of the parts of an intervention that drafts may change.
        highest: Largest factor on the base learning rate that drafts may raise it to.
        criterion: Score that planners minimise; None for the default of the planners.
        to_the_end: Flag: the planner plans paths of the learning rate to the end of the run, which
            are followed without a trial; see `follow`.
    """

    propose: Propose | None = None
    pruner: Pruner | None = None
    allow: Allow | None = None
    parts: tuple[str, ...] = PARTS
    highest: float = math.inf
    criterion: Criterion | None = None
    to_the_end: bool = False

    def problem(
        self,
        run: InForce,
        history: RunHistory,
        codec: ActionCodec,
        model: WorldModel | None,
        generator: np.random.Generator,
    ) -> PlanningProblem:
        """Return the planning problem of a run at the end of its history."""
        masks = self._masks(codec, run)
        lowest, highest = codec.config.lr_bounds
        highest = max(min(self.highest, highest) / run.lr_scale, 1.0)
        rate_bounds = (min(lowest / run.lr_scale, 1.0), highest)
        if "lr_scale" not in self.parts:
            rate_bounds = (1.0, 1.0)
        proposals: list[Sequenced] = []
        if self.propose is not None:
            proposals = [tuple(one) for one in self.propose(history, codec, masks)]
        return PlanningProblem(
            history=history,
            codec=codec,
            masks=masks,
            generator=generator,
            model=model,
            budget=Budget() if self.allow is None else self.allow(history, model),
            masks_after=lambda sequence: self._masks(codec, after(run, *sequence)),
            proposals=[*proposals, *ramps(codec, masks)],
            pruner=self.pruner,
            criterion=self.criterion,
            rate_bounds=rate_bounds,
        )

    def _masks(self, codec: ActionCodec, run: InForce) -> Masks:
        legal = dict(zip(PARTS, codec.masks(run)))
        scales = np.array(codec.config.lr_scales)
        legal["lr_scale"] &= (scales <= 1) | (run.lr_scale * scales <= self.highest)
        for part in legal.keys() - set(self.parts):
            legal[part] = np.arange(len(legal[part])) == 0
        return tuple(legal.values())


def ramps(codec: ActionSpace, masks: Masks) -> list[Sequenced]:
    """Return each legal change of the learning rate, alone and repeated at later decisions.

    Repeated, a change corrects a rate that is far off.
    """
    part = PARTS.index("lr_scale")
    found = []
    for value in np.flatnonzero(masks[part])[1:].tolist():
        vector = [0] * len(masks)
        vector[part] = value
        change = codec.decode(vector)
        found += [(change,) * times for times in range(1, DECISIONS + 1)]
    return found


def world_model_of(model: WorldModel | Learner | None) -> WorldModel | None:
    """Return the world model itself, or that of a learner."""
    return model.model if isinstance(model, Learner) else model


def flops_per_future(model: WorldModel | None) -> float:
    """Return the FLOPs of one forecast; 0 without a model."""
    return float(getattr(model, "flops_per_future", 0.0))


def flops_of(plan: Plan, model: WorldModel | None) -> float:
    """Return the FLOPs that a model spent on a plan."""
    per_path = float(getattr(model, "flops_per_path", 0.0))
    return plan.cost.futures * flops_per_future(model) + plan.cost.paths * per_path


def within(budget: Budget, flops: float, per_future: float) -> Budget:
    """Return a planner's budget cut to FLOPs; without any future if fewer than `FEWEST` are left.

    Args:
        budget: Budget of the planner.
        flops: FLOPs that its forecasts may take.
        per_future: FLOPs of one forecast.
    """
    if not per_future or (budget.futures is not None and budget.futures * per_future <= flops):
        return budget
    futures = int(max(flops, 0.0) // per_future)
    return replace(budget, futures=futures if futures >= FEWEST else 0)
