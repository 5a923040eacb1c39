"""Change of the run's factor on the learning rate, for callbacks that set it to a value."""

from __future__ import annotations

import math

from trainenv.agents.branching.standing_rules import apply
from trainenv.types import Event, Intervention, Run

_SAME = 1e-12  # relative change of the factor that counts as none


def change_rate(run: Run, factor: float) -> list[Event]:
    """Set the factor on the learning rate from the next step on, and return the events.

    Args:
        run: Run.
        factor: Wanted factor on the base rate; the nearest one within the configured bounds is set.
    """
    low, high = run.config.interventions.lr_bounds
    change = min(max(factor, low), high) / run.lr_scale
    if math.isclose(change, 1.0, rel_tol=_SAME):
        return []
    return [apply(run, Intervention(lr_scale=change))]
