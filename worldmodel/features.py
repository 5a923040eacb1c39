"""From the history of a run and the interventions tried on it to numbers that mean the same for every model size.

Ratios, logarithms, slopes and z-scores throughout, times in units of a decision, NaN where nothing
was measured. `GROUPS` says which feature belongs where, so that each group can be left out
(`benchmarks/worldmodel_quality.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from trainenv.types import CLIP_NAMES, Intervention, RunHistory, Telemetry, UserError

Floats = NDArray[np.float64]
Columns = Mapping[str, Floats]
"""Telemetry by column, oldest first, [n] each; `clip` as its place in `CLIP_NAMES`, flags as 0 and 1."""

COLUMNS = (
    "step", "loss", "grad_norm", "grad_norm_clipped", "lr", "lr_scale", "weight_decay", "weight_decay_scale",
    "steps_since_reset", "hypergradient_cosine", "update_ratio", "probe_loss", "attention_entropy", "activation_entropy",
    "embedding_rms", "shortcut_ratio", "volatility", "entropy", "disagreement", "index", "fired",
)  # fmt: skip
READINGS = ("volatility", "entropy", "disagreement", "index", "fired")

_ROW = attrgetter(
    *(f"reading.{name}" if name in READINGS else name for name in COLUMNS)
)  # of a step's telemetry

GROUPS: Mapping[str, tuple[str, ...]] = {
    "time": ("progress", "left", "past", "decision"),
    "rate": ("lr", "lr_next", "lr_rest", "lr_end", "lr_seen", "lr_sum", "decay"),
    "steering": (
        "lr_scale", "weight_decay_scale", *(f"clip_{name}" for name in CLIP_NAMES), "reset_recency", "flagged",
    ),
    "loss": (
        "level", "train_gap", "slope_1", "slope_4", "slope_16", "noise", "peak_1", "peak_4", "above_best",
        "probe_gap", "probe_change", "probe_slope", "probe_above_best",
    ),
    "gradient": (
        "gradient", "gradient_change", "gradient_slope", "gradient_spread", "gradient_peak", "clipped_1", "clipped_4",
        "clip_depth", "cosine_4", "cosine_16", "update_ratio", "update_change", "update_per_lr",
    ),
    "inside": tuple(
        f"{name}{what}" for name in ("attention", "activation", "embedding", "shortcut") for what in ("", "_change")
    ),
    "index": (
        *(f"{name}_{what}" for name in READINGS[:4] for what in ("most", "mean")), "fired_recency",
    ),
}  # fmt: skip
STATE: tuple[str, ...] = tuple(name for names in GROUPS.values() for name in names)

ACTION = (
    "ln_lr",
    "ln_weight_decay",
    *(f"set_{name}" for name in CLIP_NAMES),
    "reset",
    "reorder",
    "skip",
)
DECISIONS = 4
LEAST_STEPS = 16  # of telemetry
_MOST = 1e9  # of a feature: it fits into a float32
_RECENT = (
    512,
    40,
    # steps and decisions of a history that are looked at, the more of the two: no run learned from
    # had more
)


@dataclass(frozen=True, kw_only=True)
class Now:
    """What features need beside the telemetry. See `RunHistory`, whose fields these are.

    Attributes:
        lrs_ahead: [R] learning rate of each step still to come if nothing is done.
        base_lr: the optimizer's base learning rate.
        uniform_loss: nats.
        decision: steps.
        validation: nats per token, NaN where not measured.
        flagged_ahead: a count.
        done: steps completed.
    """

    lrs_ahead: Floats
    base_lr: float
    uniform_loss: float
    decision: int
    validation: float
    flagged_ahead: int
    done: int


def read(history: RunHistory) -> tuple[Columns, Now]:
    """The columns of a history and what stands beside them.

    Raises:
        UserError: fewer than 16 steps, steps that are not consecutive, a last loss or gradient norm
            that is not finite, or no learning rates ahead.
    """
    if history.decision_steps < 1:
        raise UserError(f"decision_steps must be at least 1, found {history.decision_steps!r}")
    steps, decisions = _RECENT
    telemetry = list(history.telemetry)[-max(steps, decisions * history.decision_steps) :]
    if len(telemetry) < LEAST_STEPS:
        raise UserError(
            f"a history needs the telemetry of at least {LEAST_STEPS} steps, found {len(telemetry)}; train on first"
        )
    columns = columns_of(telemetry)
    if not np.array_equal(np.diff(columns["step"]), np.ones(len(telemetry) - 1)):
        raise UserError(
            "a history needs the telemetry of consecutive steps, found gaps; leave rewound steps out"
        )
    if not (np.isfinite(columns["loss"][-1]) and np.isfinite(columns["grad_norm"][-1])):
        raise UserError(
            f"a history must end with a finite loss and gradient norm, found {columns['loss'][-1]} and "
            f"{columns['grad_norm'][-1]} at step {columns['step'][-1]:.0f}; rewind to before that"
        )
    ahead = np.asarray(history.lrs_ahead, dtype=np.float64)
    fits = ahead.ndim == 1 and len(ahead) > 0 and bool(np.all(np.isfinite(ahead) & (ahead >= 0)))
    if not fits:
        raise UserError(
            "lrs_ahead must be learning rates of the steps to come, at least one, finite and 0 or more"
        )
    for name in ("base_lr", "uniform_loss"):
        if not 0 < getattr(history, name) < math.inf:
            raise UserError(
                f"{name} of a history must be a finite number above 0, found {getattr(history, name)!r}"
            )
    now = Now(
        lrs_ahead=ahead,
        base_lr=history.base_lr,
        uniform_loss=history.uniform_loss,
        decision=history.decision_steps,
        validation=history.validation if history.validation > 0 else math.nan,
        flagged_ahead=history.flagged_ahead,
        done=telemetry[-1].step,
    )
    return columns, now


def columns_of(telemetry: Sequence[Telemetry]) -> Columns:
    """Telemetry by column."""
    rows = np.array([_ROW(t) for t in telemetry], dtype=np.float64).reshape(-1, len(COLUMNS))
    columns = {name: np.ascontiguousarray(column) for name, column in zip(COLUMNS, rows.T)}
    columns["clip"] = np.array(
        [CLIP_NAMES.index(t.clip) if t.clip in CLIP_NAMES else -1 for t in telemetry],
        dtype=np.float64,
    )
    return columns


def state(columns: Columns, now: Now) -> Floats:
    """The features of a state, [len(STATE)], in the order of `STATE`; NaN where nothing was measured."""
    parts = (_time, _rates, _steering, _losses, _gradients, _inside, _readings)
    values: dict[str, float] = {}
    with np.errstate(all="ignore"):  # what overflows was not measured
        for part in parts:
            values |= part(columns, now)
    found = np.array([values[name] for name in STATE], dtype=np.float64)
    return np.where(np.isfinite(found), np.clip(found, -_MOST, _MOST), math.nan)


@lru_cache(maxsize=4096)
def action(intervention: Intervention) -> tuple[float, ...]:
    """The features of an intervention, in the order of `ACTION`; all 0 for doing nothing."""
    return (
        math.log(intervention.lr_scale),
        math.log(intervention.weight_decay_scale),
        *(float(intervention.clip == name) for name in CLIP_NAMES),
        float(intervention.momentum_reset),
        float(intervention.data_reorder),
        float(intervention.skip_batch),
    )


def _time(columns: Columns, now: Now) -> dict[str, float]:
    done = columns["step"][-1]
    left = len(now.lrs_ahead)
    return {
        "progress": done / (done + left),
        "left": math.log(left / now.decision),
        "past": math.log(done / now.decision),
        "decision": math.log(now.decision),
    }


def _rates(columns: Columns, now: Now) -> dict[str, float]:
    ahead = now.lrs_ahead
    lr = columns["lr"]
    horizon = DECISIONS * now.decision
    first = max(float(ahead[0]), 1e-12 * now.base_lr)
    behind = float(lr.mean()) * columns["step"][-1]
    return {
        "lr": _log(first / now.base_lr),
        "lr_next": _log(ahead[:horizon].mean() / first),
        "lr_rest": _log(ahead[horizon:].mean() / first) if len(ahead) > horizon else math.nan,
        "lr_end": float(ahead[-1]) / first,
        "lr_seen": _log(float(lr[-1]) / first),
        "lr_sum": _log(ahead.sum() / max(behind, 1e-30)),
        "decay": _log(float(columns["weight_decay"][-1]) * first * len(ahead)),
    }


def _steering(columns: Columns, now: Now) -> dict[str, float]:
    since = columns["steps_since_reset"][-1]
    return {
        "lr_scale": _log(columns["lr_scale"][-1]),
        "weight_decay_scale": _log(columns["weight_decay_scale"][-1]),
        **{
            f"clip_{name}": float(columns["clip"][-1] == place)
            for place, name in enumerate(CLIP_NAMES)
        },
        "reset_recency": math.exp(-since / now.decision) if since >= 0 else 0.0,
        "flagged": math.log1p(now.flagged_ahead),
    }


def _losses(columns: Columns, now: Now) -> dict[str, float]:
    d = now.decision
    loss = _logs(columns["loss"])
    probe = _logs(columns["probe_loss"])
    seen = probe[np.isfinite(probe)]
    blocks = _blocks(loss, d)
    level = (
        math.log(now.validation)
        if math.isfinite(now.validation)
        else _mean(probe[-d:] if len(seen) else loss[-d:])
    )
    slopes = {f"slope_{n}": 10 * _line(loss[-n * d :])[0] for n in (1, 4, 16)}
    recent = _known(probe[-d:])
    before = _known(probe[-8 * d : -d])
    return {
        "level": level - math.log(now.uniform_loss),
        "train_gap": _mean(loss[-d:]) - level,
        **slopes,
        "noise": 10 * _line(loss[-4 * d :])[1],
        "peak_1": _most(loss[-d:]) - _mean(loss[-d:]),
        "peak_4": _most(loss[-4 * d :]) - _mean(loss[-4 * d :]),
        "above_best": float(blocks[-1] - np.nanmin(blocks))
        if len(blocks) and np.isfinite(blocks[-1])
        else math.nan,
        "probe_gap": (recent[-1] if len(recent) else math.nan) - _mean(loss[-d:]),
        "probe_change": 10 * (_mean(recent) - _mean(before)),
        "probe_slope": 10 * _line(_known(probe[-4 * d :]))[0],
        "probe_above_best": float(recent[-1] - seen.min()) if len(recent) else math.nan,
    }


def _gradients(columns: Columns, now: Now) -> dict[str, float]:
    d = now.decision
    raw = _logs(columns["grad_norm"])
    kept = _logs(columns["grad_norm_clipped"])
    depth = np.maximum(raw - kept, 0.0)  # 0 where nothing was clipped
    clipped = np.where(np.isfinite(depth), depth > 1e-6, True).astype(np.float64)
    cosine = columns["hypergradient_cosine"]
    update = _logs(columns["update_ratio"]) / math.log(10) + 3
    recent = _mean(update[-2 * d :])
    before = _mean(update[: -2 * d])
    lr = _logs(columns["lr"])
    with_update = np.isfinite(update)
    return {
        "gradient": _mean(raw[-d:]),
        "gradient_change": _mean(raw[-d:]) - _mean(raw[: -4 * d]),
        "gradient_slope": _line(raw[-4 * d :])[0],
        "gradient_spread": _line(raw[-4 * d :])[1],
        "gradient_peak": _most(raw[-d:]) - _mean(raw[-d:]),
        "clipped_1": float(clipped[-d:].mean()),
        "clipped_4": float(clipped[-4 * d :].mean()),
        "clip_depth": _mean(depth[-4 * d :]),
        "cosine_4": 10 * _mean(cosine[-4 * d :]),
        "cosine_16": 10 * _mean(cosine[-16 * d :]),
        "update_ratio": recent,
        "update_change": recent - before,
        "update_per_lr": float((update - lr / math.log(10))[with_update][-1])
        if with_update.any()
        else math.nan,
    }


def _inside(columns: Columns, now: Now) -> dict[str, float]:
    d = now.decision
    values = {}
    scaled = {
        "attention": 4 * (columns["attention_entropy"] - 0.5),
        "activation": 4 * (columns["activation_entropy"] - 0.5),
        "embedding": _logs(columns["embedding_rms"]),
        "shortcut": _logs(columns["shortcut_ratio"]),
    }
    for name, column in scaled.items():
        recent = _mean(column[-2 * d :])
        values[name], values[f"{name}_change"] = recent, recent - _mean(column[-16 * d : -2 * d])
    return values


def _readings(columns: Columns, now: Now) -> dict[str, float]:
    d = now.decision
    values = {}
    for name in READINGS[:4]:
        column = np.minimum(columns[name], 20.0) / 2.5
        values[f"{name}_most"], values[f"{name}_mean"] = (
            float(column[-d:].max()),
            float(column[-4 * d :].mean()),
        )
    fired = np.flatnonzero(columns["fired"])
    ago = len(columns["fired"]) - 1 - fired[-1] if len(fired) else math.inf
    values["fired_recency"] = math.exp(-ago / d)
    return values


def _log(value: float) -> float:
    return math.log(value) if 0 < value < math.inf else math.nan


def _logs(values: Floats) -> Floats:
    """Logarithms; NaN where a value is not positive and finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
    return np.where(np.isfinite(logs), logs, math.nan)


def _known(values: Floats) -> Floats:
    return values[np.isfinite(values)]


def _mean(values: Floats) -> float:
    known = _known(values)
    return float(known.mean()) if len(known) else math.nan


def _most(values: Floats) -> float:
    known = _known(values)
    return float(known.max()) if len(known) else math.nan


def _line(values: Floats) -> tuple[float, float]:
    """Change along the least-squares line through the known values, and the standard deviation about it."""
    known = _known(values)
    if len(known) < 3:
        return math.nan, math.nan
    x = np.linspace(-0.5, 0.5, len(known))
    slope = float(x @ known / (x @ x))
    return slope, float((known - known.mean() - slope * x).std())


def _blocks(values: Floats, length: int) -> Floats:
    """Means of whole blocks of `length` values, counted from the end, the oldest first."""
    ends = range(len(values), 0, -length)
    return np.array(
        [_mean(values[start:end]) for end, start in pairwise([*ends, max(0, ends[-1] - length)])][
            ::-1
        ]
    )
