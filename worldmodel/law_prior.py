"""What physics says of an intervention: the multi-power law's Δ ln loss, anchored at the loss now; the networks only correct it.

The law sees learning rates alone: an intervention's multiplies those of the steps to come, a
momentum reset or another clip policy does nothing to it. Its numbers are the default belief of
`curves`, scaled to the run (sum of learning rates so far, greatest learning rate, loss); they are
not fitted to the run, which would take a hundred times as long as the rest of a forecast.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainenv.worldmodel.curves import History, Law
from trainenv.worldmodel.curves.history import LARGEST_LOSS
from trainenv.worldmodel.curves.law import gain, gather, loss
from trainenv.worldmodel.curves.law_fit import CENTRE, Curve, Scale, curve, to_law
from trainenv.worldmodel.features import DECISIONS, Columns, Floats, Now

COOLDOWN_SHARE = 0.1  # of the budget: the reference cool-down
_SEGMENTS = 4  # of a decision
_REST = 12  # segments from the horizon to the end of the run
_COOLING = 8  # stairs of the cool-down
_FARTHEST = 20.0  # ln of a factor on the learning rate
_SENSIBLE = 1e-30, 1e30  # learning rates that can be reckoned with
_LEAST = 0.2  # of the loss now: what the law may leave of it, and its inverse

Stops = NDArray[np.int64]


class _Path(NamedTuple):
    """A future in segments: the steps ahead that each ends at, factors on its learning rates, and which ends are asked for."""

    stops: Stops
    factors: Floats
    asked: list[int]


def prior(columns: Columns, now: Now, ln_lr: Floats) -> Floats:
    """Δ ln loss at the horizon, after the cool-down and at the end of the run, by the law.

    Args:
        columns: the telemetry so far.
        now: what stands beside it.
        ln_lr: [K, 4] ln of each decision's factor on the learning rate.

    Returns:
        [K, 3]; 0 where no learning rate changes, and where there is no law yet.
    """
    known = _known(columns)
    if known is None or now.lrs_ahead.max() > _SENSIBLE[1]:
        return np.zeros((len(ln_lr), 3))
    law, behind, level = known
    seen: dict[bytes, int] = {}  # most candidates share their learning rates with many others
    place = [
        seen.setdefault(row.tobytes(), len(seen))
        for row in np.ascontiguousarray(ln_lr, dtype=np.float64)
    ]
    different = np.frombuffer(b"".join(seen), dtype=np.float64).reshape(-1, DECISIONS)
    steps = np.cumsum(
        np.concatenate([np.zeros((1, DECISIONS)), different]), axis=1
    )  # [D + 1, 4]; nothing first
    scales = np.exp(np.clip(steps, -_FARTHEST, _FARTHEST))
    start = loss(law, np.array([behind.last_sum]), behind.changes)  # [1]
    logs = []
    for stops, factors, asked in _paths(now):
        decision = np.minimum((stops - 1) // now.decision, DECISIONS - 1)
        rates = _rates(now.lrs_ahead, stops) * factors * scales[:, decision]  # [D + 1, H]
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
    whole = np.concatenate(
        [horizon_and_end[:, :1], annealed, horizon_and_end[:, 1:]], axis=1
    )  # [D + 1, 3]
    delta: Floats = (whole[1:] - whole[:1])[place]
    return delta


def _known(columns: Columns) -> tuple[Law, Curve, float] | None:
    """The law scaled to a run, the run as it sees it and the loss now; None where there is nothing to scale by."""
    steps = columns["step"]
    losses = columns["loss"]
    lrs = columns["lr"]
    finite = losses[(losses > 0) & (losses < LARGEST_LOSS)]
    known = np.isfinite(lrs).all() and lrs.min() >= 0 and _SENSIBLE[0] < lrs.max() < _SENSIBLE[1]
    if not known or not len(finite):
        return None
    # Of steps before the first known, the learning rates are taken to have been as those that are
    # known.
    history = History(
        steps=steps,
        losses=losses,
        lrs=lrs,
        first_lr_sum=float(lrs.mean()) * (steps[0] - 1) + float(lrs[0]),
    )
    behind = curve(history)
    level = float(finite[-8:].mean())
    return to_law(CENTRE, Scale(behind.last_sum, behind.greatest_lr, level)), behind, level


def _paths(now: Now) -> tuple[_Path, _Path]:
    """On to the end of the run; and to the horizon, then down to a learning rate of 0."""
    left = len(now.lrs_ahead)
    horizon = DECISIONS * now.decision
    near = _whole(np.arange(1, DECISIONS * _SEGMENTS + 1) * now.decision / _SEGMENTS)
    far = _whole(np.linspace(horizon, max(left, horizon + 1), _REST + 1)[1:])
    cooling = max(_COOLING, round(COOLDOWN_SHARE * (now.done + left)))
    stairs = _whole(np.linspace(0, cooling, _COOLING + 1)[1:])
    line = 1 - (stairs + np.concatenate([[0], stairs[:-1]])) / (2 * cooling)
    whole = np.union1d(near, far)  # where the run ends at about the horizon, the two overlap
    return (
        _Path(whole, np.ones(len(whole)), [int(np.searchsorted(whole, near[-1])), -1]),
        _Path(
            np.concatenate([near, horizon + stairs]),
            np.concatenate([np.ones(len(near)), line]),
            [-1],
        ),
    )


def _whole(stops: Floats) -> Stops:
    return np.unique(np.maximum(1, np.round(stops)).astype(np.int64))


def _rates(ahead: Floats, stops: Stops) -> Floats:
    """Mean learning rate of each segment; past the end the schedule stays at its last value."""
    sums = np.concatenate([[0.0], np.cumsum(ahead)])
    inside = np.minimum(stops, len(ahead))
    total = np.concatenate([[0.0], sums[inside] + ahead[-1] * (stops - inside)])
    rates: Floats = np.diff(total) / np.diff(stops, prepend=0)
    return rates
