"""What is asked of a planner: the run's history, what is legal now and later, and what to look at first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainenv.interventions import PARTS, ActionCodec
from trainenv.types import (
    DECISIONS,
    Budget,
    InForce,
    Intervention,
    Masks,
    PlanningProblem,
    Pruner,
    RunHistory,
    WorldModel,
)

Sequenced = tuple[Intervention, ...]
Propose = Callable[[RunHistory, ActionCodec, Masks], Sequence[Sequence[Intervention]]]
Allow = Callable[[RunHistory, WorldModel | None], Budget]
"""How much a draft may look at: wider where risk is high."""


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """What goes into a planning problem beside the run.

    Args:
        propose: sequences to look at first, beside `ramps`; None for none.
        pruner: drops hopeless candidates before the model sees them; None for none.
        allow: the budget of a draft; None for the default of `Budget`.
        parts: of an intervention that drafts may change; the others stay as they are.
        highest: factor on the base learning rate that drafts may raise it to.
    """

    propose: Propose | None = None
    pruner: Pruner | None = None
    allow: Allow | None = None
    parts: tuple[str, ...] = PARTS
    highest: float = math.inf

    def problem(
        self,
        run: InForce,
        history: RunHistory,
        codec: ActionCodec,
        model: WorldModel | None,
        generator: np.random.Generator,
    ) -> PlanningProblem:
        """The planning problem of a run that is where its history ends."""
        masks = self._masks(codec, run)
        proposed = (
            []
            if self.propose is None
            else [tuple(one) for one in self.propose(history, codec, masks)]
        )
        return PlanningProblem(
            history=history,
            codec=codec,
            masks=masks,
            generator=generator,
            model=model,
            budget=Budget() if self.allow is None else self.allow(history, model),
            masks_after=lambda sequence: self._masks(codec, after(run, sequence)),
            proposals=[*proposed, *ramps(codec, masks)],
            pruner=self.pruner,
        )

    def _masks(self, codec: ActionCodec, run: InForce) -> Masks:
        legal = dict(zip(PARTS, codec.masks(run)))
        scales = np.array(codec.config.lr_scales)
        legal["lr_scale"] = legal["lr_scale"] & (
            (scales <= 1) | (run.lr_scale * scales <= self.highest)
        )
        return tuple(
            mask if part in self.parts else np.arange(len(mask)) == 0
            for part, mask in legal.items()
        )


@dataclass(frozen=True)
class _After:
    """A run as far as masks go, after interventions."""

    lr_scale: float
    weight_decay_scale: float
    clip: str
    flagged_ahead: tuple[int, ...]


def after(run: InForce, sequence: Sequence[Intervention]) -> InForce:
    """What would be in force after a sequence."""
    state = _After(run.lr_scale, run.weight_decay_scale, run.clip, run.flagged_ahead)
    for one in sequence:
        state = replace(
            state,
            lr_scale=state.lr_scale * one.lr_scale,
            weight_decay_scale=state.weight_decay_scale * one.weight_decay_scale,
            clip=one.clip or state.clip,
            flagged_ahead=() if one.skip_batch else state.flagged_ahead,
        )
    return state


def ramps(codec: ActionCodec, masks: Masks) -> list[Sequenced]:
    """Each legal change of the learning rate, alone and repeated at later decisions: how one that is far off is put right."""
    part = PARTS.index("lr_scale")
    found = []
    for value in np.flatnonzero(masks[part])[1:].tolist():
        vector = [value if place == part else 0 for place in range(len(masks))]
        change = codec.decode(vector)
        found += [(change,) * times for times in range(1, DECISIONS + 1)]
    return found
