"""The explore step of PB2 (Parker-Holder et al. 2020, arXiv:2002.02518): a Gaussian-process bandit.

The process models the improvement of a member in one generation, y = (last score − score)/Δt, as a
function of the time t, the last score and the hyperparameters x, with the kernel

    k((t, x), (t', x')) = SE(x, x') · (1 − ε)^{|t − t'|/2}                ε = 0.1

and chooses the x that maximises mean + √β·std, with β = 0.2 + max(0, ln(0.4·n)) for n observations,
as in the authors' code. Copies already chosen in the same generation count as observed at their
mean, which reduces the uncertainty around them.

Deviations:
- There are few actions, so all are tried to find the maximum.
- Each clip policy is a coordinate (0 or 1); the paper handles numbers only.
- Inputs are standardised over the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trainenv.planners.support.sequences import Interventions
from trainenv.tools.gaussian_process import Floats, fit, squared_exponential
from trainenv.types import CLIP_NAMES, Intervention

_EPSILON = 0.1


@dataclass
class Improvements:
    """The improvement of each member in each generation so far.

    Attributes:
        points: `features` of the member at the start of the generation, [n].
        gains: Fall of its score a decision, nats, [n].
    """

    points: list[list[float]] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)

    def add(
        self,
        time: int,
        decisions: int,
        starts: Sequence[float],
        scores: Sequence[float],
        members: Sequence[Interventions],
    ) -> None:
        """Add a generation.

        Args:
            time: Decisions before the generation.
            decisions: Decisions that the generation took.
            starts: Score of each member before it, [P].
            scores: Score of each member after it, [P]; those that are not finite are left out.
            members: Interventions of each member up to the end of it, [P].
        """
        for start, score, member in zip(starts, scores, members, strict=True):
            if math.isfinite(score) and math.isfinite(start):
                self.points.append(features(time, start, member))
                self.gains.append((start - score) / decisions)


def features(time: int, start: float, member: Sequence[Intervention]) -> list[float]:
    """Return the inputs of the process for a member.

    They are the time in decisions, the last score, the ln of the learning-rate and weight-decay
    multipliers in force, and for each clip policy 1 if a member put it in force last, otherwise 0.
    """
    clip = next((done.clip for done in reversed(member) if done.clip is not None), None)
    multipliers = [
        sum(math.log(done.lr_scale) for done in member),
        sum(math.log(done.weight_decay_scale) for done in member),
    ]
    return [float(time), start, *multipliers, *(float(name == clip) for name in CLIP_NAMES)]


def choose_change(
    seen: Improvements,
    time: int,
    start: float,
    source: Interventions,
    legal: Sequence[Intervention],
    pending: Sequence[tuple[float, Interventions]],
) -> Intervention:
    """Choose the change with the greatest improvement by UCB; the first of equals.

    Args:
        seen: Improvements so far.
        time: Decisions taken.
        start: Score of the member that is copied.
        source: Interventions of that member.
        legal: Changes to choose from, doing nothing first.
        pending: Score at the start and interventions of each copy chosen in this generation so far.
    """
    if not seen.gains:
        return legal[0]
    points = np.array(seen.points)  # [n, d]
    gains = np.array(seen.gains)  # [n]
    asked = np.array([features(time, start, (*source, change)) for change in legal])  # [A, d]
    copies = np.array([features(time, *copy) for copy in pending]).reshape(
        len(pending), points.shape[1]
    )
    centre = points[:, 1:].mean(0)
    spread = points[:, 1:].std(0)
    spread[spread < 1e-9] = 1.0
    for rows in (points, asked, copies):
        rows[:, 1:] = (rows[:, 1:] - centre) / spread
    process = fit(points, gains, time_varying)
    mean, std = process.at(asked)
    if len(copies):
        observed = np.concatenate([points, copies])
        expected = np.concatenate([gains, process.at(copies)[0]])
        std = fit(observed, expected, time_varying, widths=(process.width,)).at(asked)[1]
    beta = 0.2 + max(0.0, math.log(0.4 * len(gains)))
    return legal[int(np.argmax(mean + math.sqrt(beta) * std))]


def time_varying(a: Floats, b: Floats, width: float) -> Floats:
    """Return the kernel of PB2, whose first column is the time: [n, d] and [m, d] → [n, m]."""
    apart = np.abs(a[:, None, 0] - b[None, :, 0])
    kernel: Floats = squared_exponential(a[:, 1:], b[:, 1:], width) * (1 - _EPSILON) ** (apart / 2)
    return kernel
