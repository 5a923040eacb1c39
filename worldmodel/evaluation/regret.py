"""What a decision costs against the best branch there was.

At a snapshot a rule chooses among doing nothing and the candidates; its *regret* is the true Δ of
what it chose less the lowest true Δ, in nats of ln loss, at the horizon, annealed, or at the end of
the run. The oracle has none.

    horizon, annealed, final     the model's lowest median of that target; doing nothing unless
    something is lower nothing, random              do nothing; any of them, all alike best_look
    the lowest *true* loss at the horizon: a perfect look at +N, which is what lies (see the method)
    best_annealed                the lowest *true* annealed loss: a perfect forecast of what
    planners rank by
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from trainenv.worldmodel.evaluation.choices import Choice
from trainenv.worldmodel.evaluation.ranking import pick
from trainenv.worldmodel.evaluation.statistics import Floats

Rule = Callable[[Choice, Mapping[str, Floats], Mapping[str, Floats]], Floats]
"""Of a choice, medians by target [n] and true Δ's by target [n]: the chance of each option, [m]."""

RULES: Mapping[str, Rule] = {
    "horizon": lambda choice, medians, truth: pick(choice.values(medians["horizon"])),
    "annealed": lambda choice, medians, truth: pick(choice.values(medians["annealed"])),
    "final": lambda choice, medians, truth: pick(choice.values(medians["final"])),
    "nothing": lambda choice, medians, truth: np.eye(1, len(choice))[0],
    "random": lambda choice, medians, truth: np.full(len(choice), 1 / len(choice)),
    "best_look": lambda choice, medians, truth: pick(choice.values(truth["horizon"])),
    "best_annealed": lambda choice, medians, truth: pick(choice.values(truth["annealed"])),
}
DEFAULT = "annealed"  # the model's rule: what planners rank by


def regrets(
    found: list[Choice], medians: Mapping[str, Floats], truth: Mapping[str, Floats], target: str
) -> tuple[list[Choice], dict[str, Floats]]:
    """The choices whose outcomes are all known, and at them the regret of each rule by name, [choices]."""
    known = [choice for choice in found if not np.isnan(choice.values(truth[target])).any()]
    outcomes = [choice.values(truth[target]) for choice in known]
    return known, {
        name: np.array(
            [
                float(rule(choice, medians, truth) @ outcome - outcome.min())
                for choice, outcome in zip(known, outcomes)
            ]
        )
        for name, rule in RULES.items()
    }
