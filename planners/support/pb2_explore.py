"""PB2's explore step: a Gaussian-process bandit over what the population has seen (Parker-Holder et al. 2020, arXiv:2002.02518).

The process models the improvement of a member in one generation, y = (last score − score)/Δt, as a
function of the time t, the last score and the hyperparameters x, with the kernel

    k((t, x), (t', x')) = SE(x, x') · (1 − ε)^{|t − t'|/2}                ε = 0.1

and chooses the x that maximises mean + √β·std, β = 0.2 + max(0, ln(0.4·n)) of n observations, as in
the authors' code. Copies that are chosen in the same generation count as seen at their mean, which
shrinks the uncertainty around them.

Deviations: actions are few, so the maximum is found by trying them all; the clip policy is a
coordinate a policy (0 or 1), where the paper handles numbers only; inputs are standardised over the
data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trainenv.planners.support.gaussian_process import Floats, fit, squared_exponential
from trainenv.planners.support.sequences import Sequenced
from trainenv.types import CLIP_NAMES, Intervention

_EPSILON = 0.1


@dataclass
class Improvements:
    """What members gained in each generation so far.

    Attributes:
        points: [n] of `features` at the start of the generation.
        gains: [n] fall of the score a decision, nats.
    """

    points: list[list[float]] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)

    def add(
        self,
        time: int,
        decisions: int,
        starts: Sequence[float],
        scores: Sequence[float],
        members: Sequence[Sequenced],
    ) -> None:
        """Note a generation.

        Args:
            time: decisions taken before it.
            decisions: that it took.
            starts: [P] score of each member before it.
            scores: [P] score after it; those that are not finite teach nothing.
            members: [P] what each of them did, up to the end of it.
        """
        for start, score, member in zip(starts, scores, members, strict=True):
            if math.isfinite(score) and math.isfinite(start):
                self.points.append(features(time, start, member))
                self.gains.append((start - score) / decisions)


def features(time: int, start: float, member: Sequence[Intervention]) -> list[float]:
    """Time in decisions, the last score, ln of both multipliers in force, and whether each clip policy was put in force."""
    clip = next((done.clip for done in reversed(member) if done.clip is not None), None)
    multipliers = [
        sum(math.log(done.lr_scale) for done in member),
        sum(math.log(done.weight_decay_scale) for done in member),
    ]
    return [float(time), start, *multipliers, *(float(name == clip) for name in CLIP_NAMES)]


def chosen(
    seen: Improvements,
    time: int,
    start: float,
    source: Sequenced,
    legal: Sequence[Intervention],
    pending: Sequence[tuple[float, Sequenced]],
) -> Intervention:
    """The change that promises the greatest improvement, by UCB; the first of equals.

    Args:
        seen: improvements so far.
        time: decisions taken.
        start: score of the member that is copied.
        source: what that member did.
        legal: changes to choose from, doing nothing first.
        pending: score at the start and sequence of the copies already chosen in this generation.
    """
    if not seen.gains:
        return legal[0]
    points = np.array(seen.points)
    gains = np.array(seen.gains)
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
        believed = np.concatenate([gains, process.at(copies)[0]])
        std = fit(
            np.concatenate([points, copies]), believed, time_varying, widths=(process.width,)
        ).at(asked)[1]
    beta = 0.2 + max(0.0, math.log(0.4 * len(gains)))
    return legal[int(np.argmax(mean + math.sqrt(beta) * std))]


def time_varying(a: Floats, b: Floats, width: float) -> Floats:
    """SE over all columns but the first, which is the time: [n, d] and [m, d] to [n, m]."""
    apart = np.abs(a[:, None, 0] - b[None, :, 0])
    kernel: Floats = squared_exponential(a[:, 1:], b[:, 1:], width) * (1 - _EPSILON) ** (apart / 2)
    return kernel
