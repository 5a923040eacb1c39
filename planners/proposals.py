"""Proposals: candidates that a planner evaluates first, given as `PlanningProblem.proposals`.

The hypergradient (Baydin et al. 2018, arXiv:1703.04782; here for Adam's update) is the slope of the
loss in ln of the learning rate: ∂loss/∂ln η = −η·⟨g_t, u_{t−1}⟩. Telemetry has its scale-free form,
the cosine of the gradient and the last update. A positive cosine means that a larger learning rate
would have done better, so hypergradient descent on ln η gives

    Δ ln η = gain · mean cosine        over the measured steps among the last `window`

There is no proposal if the mean is less than `certainty` standard errors from 0. The hypergradient
sees one step ahead, so it shares the short-horizon bias: it proposes, but decides nothing.
"""

from __future__ import annotations

import math

import numpy as np

from trainenv.interventions import PARTS
from trainenv.planners.support.sequences import Interventions, factor, values
from trainenv.tools.checks import number, whole
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
) -> list[Interventions]:
    """Propose legal changes of the learning rate in the direction of the hypergradient.

    The change nearest to Δ ln η comes first.

    Args:
        history: History of the run, with its telemetry.
        codec: Action space.
        masks: Masks of the actions that are legal now.
        gain: Δ ln η for a cosine of 1.
        window: Number of last steps whose cosines count.
        certainty: Standard errors from 0, computed as if steps were independent.
        most: Most proposals.

    Raises:
        UserError: A number is out of range.
    """
    number("gain", gain, above=0)
    number("certainty", certainty, least=0)
    whole("window", window, least=2)
    whole("most", most, least=0)
    recent = history.telemetry[-window:]
    cosines = np.array([t.hypergradient_cosine for t in recent], dtype=np.float64)
    cosines = cosines[np.isfinite(cosines)]
    if len(cosines) < 2:
        return []
    mean = float(cosines.mean())
    error = float(cosines.std(ddof=1)) / math.sqrt(len(cosines))
    if mean == 0 or abs(mean) < certainty * error:
        return []
    wanted = gain * mean
    changes: list[tuple[float, int]] = []  # distance to Δ ln η, and value of the part
    for value in values(masks)[_LR].tolist():
        log = math.log(factor(codec, _LR, value))
        if log * wanted > 0:
            changes.append((abs(log - wanted), value))
    vectors = []
    for _, value in sorted(changes)[:most]:
        vector = [0] * len(masks)
        vector[_LR] = value
        vectors.append(vector)
    return [(codec.decode(vector),) for vector in vectors]
