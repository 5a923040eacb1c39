"""Prior forecast of an intervention's Δ ln loss by the multi-power law, anchored at the loss now.

The networks correct this forecast. The law sees learning rates only: an intervention multiplies
those of the steps to come; a momentum reset or another clip policy changes nothing.

The parameters of the law are the default belief of `curves`, scaled to the run: its sum of learning
rates so far, its greatest learning rate and its loss. They are not fitted to the run, because a fit
takes a hundred times as long as the rest of a forecast.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainenv.types import DECISIONS
from trainenv.worldmodel.curves import History, Law
from trainenv.worldmodel.curves.history import LARGEST_LOSS
from trainenv.worldmodel.curves.law import gain, gather, loss
from trainenv.worldmodel.curves.law_fit import CENTRE, Curve, Scale, curve, to_law
from trainenv.worldmodel.features import Columns, Context, Floats

COOLDOWN_SHARE = 0.1  # length of the reference cool-down, as a share of the budget
_SEGMENTS = 4  # segments in a decision
_REST = 12  # segments from the horizon to the end of the run
_COOLING = 8  # segments of the cool-down; the learning rate is constant in each
_LARGEST_LN_SCALE = 20.0  # ln of a factor on the learning rate is clipped to ±this
_LOWEST_LR = 1e-30
_HIGHEST_LR = 1e30  # learning rates outside these bounds would overflow
_LEAST = 0.2  # forecast losses are clipped to this share of the loss now, and to its inverse

Stops = NDArray[np.int64]


class _Path(NamedTuple):
    """A future in H segments.

    Attributes:
        stops: [H] steps ahead at which the segments end.
        factors: [H] factors on the scheduled learning rates.
        asked: Indices of the segments at whose ends the loss is forecast.
    """

    stops: Stops
    factors: Floats
    asked: list[int]


def prior(columns: Columns, context: Context, ln_lr: Floats) -> Floats:
    """Forecast Δ ln loss by the law at the horizon, after the cool-down and at the end of the run.

    Args:
        columns: Telemetry so far.
        context: Context of the history.
        ln_lr: [K, 4] ln of each decision's factor on the learning rate.

    Returns:
        [K, 3] Δ ln loss; 0 where no learning rate changes, and while the law has no scale.
    """
    known = _scaled_law(columns)
    if known is None or context.lrs_ahead.max() > _HIGHEST_LR:
        return np.zeros((len(ln_lr), 3))
    law, behind, level = known
    seen: dict[bytes, int] = {}  # most candidates share their learning rates with many others
    place = [
        seen.setdefault(row.tobytes(), len(seen))
        for row in np.ascontiguousarray(ln_lr, dtype=np.float64)
    ]
    different = np.frombuffer(b"".join(seen), dtype=np.float64).reshape(-1, DECISIONS)
    nothing = np.zeros((1, DECISIONS))
    ln_scales = np.cumsum(np.concatenate([nothing, different]), axis=1)  # [D + 1, 4]
    scales = np.exp(np.clip(ln_scales, -_LARGEST_LN_SCALE, _LARGEST_LN_SCALE))
    start = loss(law, np.array([behind.last_sum]), behind.changes)  # [1]
    logs = []
    for stops, factors, asked in _paths(context):
        decision = np.minimum((stops - 1) // context.decision, DECISIONS - 1)
        rates = _rates(context.lrs_ahead, stops) * factors * scales[:, decision]  # [D + 1, H]
        gaps = np.diff(stops, prepend=0).astype(np.float64)
        changes, sums = gather(
            np.full(len(rates), behind.last_lr),
            np.zeros(len(rates)),
            gaps,
            rates,
            np.arange(len(stops)),
        )
        reached = sums[:, asked]
        change = (
            loss(law, behind.last_sum + reached, behind.changes)
            - gain(law, reached, changes)
            - start
        )
        logs.append(np.log(np.clip(1 + change / level, _LEAST, 1 / _LEAST)))
    horizon_and_end, annealed = logs
    horizon = horizon_and_end[:, :1]
    end = horizon_and_end[:, 1:]
    whole = np.concatenate([horizon, annealed, end], axis=1)  # [D + 1, 3]
    delta: Floats = (whole[1:] - whole[:1])[place]
    return delta


def _scaled_law(columns: Columns) -> tuple[Law, Curve, float] | None:
    """Scale the law to a run.

    Returns:
        The law, the curve of the run so far and the loss now; None while the run has no finite loss
        or no usable learning rate.
    """
    steps = columns["step"]
    losses = columns["loss"]
    lrs = columns["lr"]
    finite = losses[(losses > 0) & (losses < LARGEST_LOSS)]
    known = np.isfinite(lrs).all() and lrs.min() >= 0 and _LOWEST_LR < lrs.max() < _HIGHEST_LR
    if not known or not len(finite):
        return None
    # Steps before the first known one are taken to have had the mean of the known learning rates.
    history = History(
        steps=steps,
        losses=losses,
        lrs=lrs,
        first_lr_sum=float(lrs.mean()) * (steps[0] - 1) + float(lrs[0]),
    )
    behind = curve(history)
    level = float(finite[-8:].mean())
    return to_law(CENTRE, Scale(behind.last_sum, behind.greatest_lr, level)), behind, level


def _paths(context: Context) -> tuple[_Path, _Path]:
    """Return the path to the end of the run, and the path to the horizon with a cool-down after."""
    left = len(context.lrs_ahead)
    horizon = DECISIONS * context.decision
    near = _whole(np.arange(1, DECISIONS * _SEGMENTS + 1) * context.decision / _SEGMENTS)
    far = _whole(np.linspace(horizon, max(left, horizon + 1), _REST + 1)[1:])
    cooling = max(_COOLING, round(COOLDOWN_SHARE * (context.done + left)))
    stairs = _whole(np.linspace(0, cooling, _COOLING + 1)[1:])
    line = 1 - (stairs + np.concatenate([[0], stairs[:-1]])) / (2 * cooling)
    whole = np.union1d(near, far)  # the two overlap where the run ends near the horizon
    to_end = _Path(whole, np.ones(len(whole)), [int(np.searchsorted(whole, near[-1])), -1])
    cooled = _Path(
        np.concatenate([near, horizon + stairs]),
        np.concatenate([np.ones(len(near)), line]),
        [-1],
    )
    return to_end, cooled


def _whole(stops: Floats) -> Stops:
    """Round to distinct whole steps, at least 1."""
    return np.unique(np.maximum(1, np.round(stops)).astype(np.int64))


def _rates(ahead: Floats, stops: Stops) -> Floats:
    """Return the mean learning rate of each segment; the schedule ends at its last value."""
    sums = np.concatenate([[0.0], np.cumsum(ahead)])
    inside = np.minimum(stops, len(ahead))
    total = np.concatenate([[0.0], sums[inside] + ahead[-1] * (stops - inside)])
    rates: Floats = np.diff(total) / np.diff(stops, prepend=0)
    return rates
