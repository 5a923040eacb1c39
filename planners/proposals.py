"""Proposals: what to look at first, handed to planners as `PlanningProblem.proposals`.

The hypergradient (Baydin et al. 2018, arXiv:1703.04782; here of Adam's update) is the slope of the
loss in the learning rate: ∂loss/∂ln η = −η·⟨g_t, u_{t−1}⟩. Its scale-free form, the cosine of the
gradient and the last update, is in the telemetry. A positive cosine says that a larger learning
rate would have done better, by hypergradient descent on ln η:

    Δ ln η = gain · mean cosine                      over the last `window` steps in which it was
    measured

Where the mean is not at least `certainty` standard errors from 0, nothing is proposed. It looks one
step ahead, so it shares the short-horizon bias: it proposes, and decides nothing.
"""

from __future__ import annotations

import math

import numpy as np

from trainenv.interventions import PARTS
from trainenv.planners.hyperparameters import number, whole
from trainenv.planners.support.sequences import Sequenced, factor, values
from trainenv.types import ActionSpace, Masks, RunHistory

_LR = PARTS.index("lr_scale")


def hypergradient(
    history: RunHistory,
    codec: ActionSpace,
    masks: Masks,
    *,
    gain: float = 1.0,
    window: int = 64,
    certainty: float = 2.0,
    most: int = 2,
) -> list[Sequenced]:
    """Changes of the learning rate that the hypergradient points to, the nearest to what it asks for first.

    Args:
        history: whose telemetry is looked at.
        codec: the action space.
        masks: what is legal now.
        gain: Δ ln η for a cosine of 1.
        window: steps.
        certainty: standard errors, as if steps were independent of one another.
        most: proposals.

    Raises:
        UserError: a number is out of range.
    """
    number("gain", gain, above=0)
    number("certainty", certainty, least=0)
    whole("window", window, least=2)
    whole("most", most, least=0)
    cosines = np.array(
        [t.hypergradient_cosine for t in history.telemetry[-window:]], dtype=np.float64
    )
    cosines = cosines[np.isfinite(cosines)]
    if len(cosines) < 2:
        return []
    mean = float(cosines.mean())
    error = float(cosines.std(ddof=1)) / math.sqrt(len(cosines))
    if mean == 0 or abs(mean) < certainty * error:
        return []
    wanted = gain * mean
    changes: list[tuple[float, int]] = []
    for value in values(masks)[_LR].tolist():
        log = math.log(factor(codec, _LR, value))
        if log * wanted > 0:
            changes.append((abs(log - wanted), value))
    vectors = [
        [value if part == _LR else 0 for part in range(len(masks))]
        for _, value in sorted(changes)[:most]
    ]
    return [(codec.decode(vector),) for vector in vectors]
