"""Headroom: the gain that open-loop settings show to be there, and the share that a method reaches.

An open-loop method, such as a static learning rate or a fixed path of it, never looks at the run.
Doing nothing is one of them. For each scenario and seed there are two references:

- *honest*: the open-loop method with the lowest mean ln loss over the *other* seeds of the
  scenario. It could have been chosen before the run.
- *bound*: the best one on the same seed. Its choice profits from the noise of the seed.

Seeds on which an open-loop method has failed, or has not run yet, are left out for all of them. An
open-loop method without any result on a scenario is no candidate there.

    headroom closed = (nothing − method) ÷ (nothing − honest reference)

Both differences are means of ln final loss over the scenarios and seeds of a group. 1 is as good as
the honest reference, 0 as doing nothing. Where the headroom is at most 0.001 there is no figure:
nothing could be gained. Draws of the bootstrap without headroom are left out of the interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainenv.compare.bootstrap import Figure, Floats, figure
from trainenv.compare.paired_rows import UNTOUCHED, Table

LEAST = 0.001  # headroom in ln loss that can be closed; a share of less would be noise


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Open-loop references of one scenario and seed.

    Attributes:
        scenario: Name of the scenario.
        seed: Number of the run.
        honest: Open-loop method that was chosen on the other seeds.
        bound: Open-loop method that is best on this seed.
        untouched_loss: ln of the final loss of doing nothing.
        honest_loss: ln of the final loss of `honest`.
        bound_loss: ln of the final loss of `bound`.
    """

    scenario: str
    seed: int
    honest: str
    bound: str
    untouched_loss: float
    honest_loss: float
    bound_loss: float

    def to_json(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)


def references(
    table: Table, scenarios: Iterable[str], open_loop: Sequence[str]
) -> tuple[Reference, ...]:
    """Return the references of all scenarios and seeds that have them.

    Args:
        table: Rows of all cells.
        scenarios: Names of the scenarios.
        open_loop: Names of the open-loop methods, doing nothing aside.
    """
    if not open_loop:
        return ()
    return tuple(
        reference for name in scenarios for reference in _of_scenario(table, name, open_loop)
    )


def headroom_closed(
    table: Table, among: Iterable[Reference], scenarios: Sequence[str], method: str
) -> Figure:
    """Return the share of the headroom that a method closes on some scenarios.

    Args:
        table: Rows of all cells.
        among: References of the comparison.
        scenarios: Names of the scenarios.
        method: Name of the method.
    """
    losses = {scenario: table.losses(scenario, method) for scenario in scenarios}
    pairs = [one for one in among if one.seed in losses.get(one.scenario, ())]
    gains = [
        (
            one.untouched_loss - losses[one.scenario][one.seed],
            one.untouched_loss - one.honest_loss,
        )
        for one in pairs
    ]
    found = figure(gains, [one.scenario for one in pairs], _share)
    if math.isnan(found.value):
        return Figure()
    return found


def headroom_row(
    among: Iterable[Reference], group: str, scenarios: Sequence[str]
) -> dict[str, Any]:
    """Return the gains of the references on a group of scenarios.

    | key | is |
    |---|---|
    | `group` | name of the group |
    | `honest_gain` | figure: ln final loss of doing nothing less that of the honest reference |
    | `bound_gain` | figure: the same for the bound |
    """
    there = [one for one in among if one.scenario in scenarios]
    of = [one.scenario for one in there]
    honest = figure([one.untouched_loss - one.honest_loss for one in there], of)
    bound = figure([one.untouched_loss - one.bound_loss for one in there], of)
    return {"group": group, "honest_gain": honest.to_json(), "bound_gain": bound.to_json()}


def _of_scenario(table: Table, scenario: str, open_loop: Sequence[str]) -> list[Reference]:
    losses = {name: table.losses(scenario, name) for name in (UNTOUCHED, *open_loop)}
    if not losses[UNTOUCHED]:
        return []
    candidates = {name: by_seed for name, by_seed in losses.items() if by_seed}
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in candidates.values())))
    if len(seeds) < 2:  # no other seed to choose on
        return []
    found = []
    for seed in seeds:
        others = [other for other in seeds if other != seed]
        honest = _lowest(candidates, others)
        bound = _lowest(candidates, [seed])
        found.append(
            Reference(
                scenario=scenario,
                seed=seed,
                honest=honest,
                bound=bound,
                untouched_loss=candidates[UNTOUCHED][seed],
                honest_loss=candidates[honest][seed],
                bound_loss=candidates[bound][seed],
            )
        )
    return found


def _lowest(candidates: Mapping[str, Mapping[int, float]], seeds: Sequence[int]) -> str:
    """Return the candidate with the lowest mean over some seeds; the first of equal ones."""
    means = {
        name: sum(by_seed[seed] for seed in seeds) / len(seeds)
        for name, by_seed in candidates.items()
    }
    return min(means, key=lambda name: means[name])


def _share(means: Floats) -> Floats:
    return np.where(means[:, 1] > LEAST, means[:, 0] / means[:, 1], math.nan)
