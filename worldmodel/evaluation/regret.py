"""The regret of decisions: their cost against the best branch.

At each snapshot a rule chooses among doing nothing and the candidates. Its *regret* is the true Δ
of its choice minus the lowest true Δ, in nats of ln loss, at the horizon, after the cool-down or at
the end of the run.

    horizon, annealed, final   the lowest median of this target by the model; doing nothing unless
                               another option is lower
    nothing                    doing nothing
    random                     any option, all with the same probability
    best_look                  the lowest *true* loss at the horizon: a perfect evaluation there,
                               although low loss at a short horizon can be misleading
    best_annealed              the lowest *true* annealed loss: a perfect forecast of the target
                               that planners rank by
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from trainenv.worldmodel.evaluation.choices import Choice
from trainenv.worldmodel.evaluation.ranking import pick
from trainenv.worldmodel.evaluation.statistics import Floats

Rule = Callable[[Choice, Mapping[str, Floats], Mapping[str, Floats]], Floats]
"""Choice, medians [n] by target and true Δ [n] by target → probability of each option, [m]."""

RULES: Mapping[str, Rule] = {
    "horizon": lambda choice, medians, truth: pick(choice.values(medians["horizon"])),
    "annealed": lambda choice, medians, truth: pick(choice.values(medians["annealed"])),
    "final": lambda choice, medians, truth: pick(choice.values(medians["final"])),
    "nothing": lambda choice, medians, truth: np.eye(1, len(choice))[0],
    "random": lambda choice, medians, truth: np.full(len(choice), 1 / len(choice)),
    "best_look": lambda choice, medians, truth: pick(choice.values(truth["horizon"])),
    "best_annealed": lambda choice, medians, truth: pick(choice.values(truth["annealed"])),
}
DEFAULT = "annealed"  # the rule of planners


def regrets(
    found: list[Choice], medians: Mapping[str, Floats], truth: Mapping[str, Floats], target: str
) -> tuple[list[Choice], dict[str, Floats]]:
    """Compute the regret of each rule at the choices whose outcomes are all known.

    Args:
        found: Choices to evaluate.
        medians: [n] forecast medians by target.
        truth: [n] true Δ by target.
        target: Target at which the regret is measured.

    Returns:
        The choices with known outcomes, and by rule the regret at each of them, [choices].
    """
    known = [choice for choice in found if not np.isnan(choice.values(truth[target])).any()]
    costs = {}
    for name, rule in RULES.items():
        regret = []
        for choice in known:
            outcome = choice.values(truth[target])
            regret.append(float(rule(choice, medians, truth) @ outcome - outcome.min()))
        costs[name] = np.array(regret)
    return known, costs
