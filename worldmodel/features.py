"""Features of a run's state and of interventions, with the same meaning for every model size.

All are ratios, logarithms, slopes or z-scores; times are in units of a decision; NaN means not
measured. `GROUPS` assigns each feature to a group, so that `benchmarks/worldmodel_quality.py` can
leave one group out and measure what it contributes.
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

from trainenv.types import CLIP_NAMES, DECISIONS, Intervention, RunHistory, Telemetry, UserError

Floats = NDArray[np.float64]
Columns = Mapping[str, Floats]
"""Telemetry by column, [n] each, oldest step first.

`clip` is coded as the index in `CLIP_NAMES` and −1 for any other policy, flags as 0 and 1.
"""

COLUMNS = (
    "step", "loss", "grad_norm", "grad_norm_clipped", "lr", "lr_scale",
    "weight_decay", "weight_decay_scale", "steps_since_reset", "hypergradient_cosine",
    "update_ratio", "probe_loss", "attention_entropy", "activation_entropy",
    "embedding_rms", "shortcut_ratio", "volatility", "entropy", "disagreement", "index", "fired",
)  # fmt: skip
READINGS = ("volatility", "entropy", "disagreement", "index", "fired")
_AXES = READINGS[:4]

_PATHS = {name: f"reading.{name}" for name in READINGS}
_ROW = attrgetter(*(_PATHS.get(name, name) for name in COLUMNS))  # the columns of one step
_CLIP_CODES: Mapping[str, int] = {name: code for code, name in enumerate(CLIP_NAMES)}

GROUPS: Mapping[str, tuple[str, ...]] = {
    "time": ("progress", "left", "past", "decision"),
    "rate": ("lr", "lr_next", "lr_rest", "lr_end", "lr_seen", "lr_sum", "decay"),
    "steering": (
        "lr_scale", "weight_decay_scale", *(f"clip_{name}" for name in CLIP_NAMES),
        "reset_recency", "flagged",
    ),
    "loss": (
        "level", "train_gap", "slope_1", "slope_4", "slope_16", "noise", "peak_1", "peak_4",
        "above_best", "probe_gap", "probe_change", "probe_slope", "probe_above_best",
    ),
    "gradient": (
        "gradient", "gradient_change", "gradient_slope", "gradient_spread", "gradient_peak",
        "clipped_1", "clipped_4", "clip_depth", "cosine_4", "cosine_16",
        "update_ratio", "update_change", "update_per_lr",
    ),
    "inside": tuple(
        f"{name}{what}"
        for name in ("attention", "activation", "embedding", "shortcut")
        for what in ("", "_change")
    ),
    "index": (
        *(f"{name}_{what}" for name in _AXES for what in ("most", "mean")), "fired_recency",
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
LEAST_STEPS = 16  # the telemetry of fewer steps gives no features
_LARGEST = 1e9  # features are clipped to ±this, so that they fit into a float32
# Steps and decisions at the end of a history that are read, whichever is longer. No history of the
# training data was longer.
_RECENT = (512, 40)


@dataclass(frozen=True, kw_only=True)
class Context:
    """Values of a history that features need in addition to the telemetry; see `RunHistory`.

    Attributes:
        lrs_ahead: [R] learning rate of each remaining step if nothing is done.
        base_lr: Base learning rate of the optimizer.
        uniform_loss: Loss of a uniform guess, nats per token.
        decision: Steps of a decision.
        rows: Entries of the telemetry a decision; fewer than `decision` if the telemetry is sparse.
        validation: Clean validation loss, nats per token; NaN where not measured.
        flagged_ahead: Number of flagged batches to come.
        done: Completed steps.
    """

    lrs_ahead: Floats
    base_lr: float
    uniform_loss: float
    decision: int
    rows: int
    validation: float
    flagged_ahead: int
    done: int


def read(history: RunHistory, *, stride: int = 1) -> tuple[Columns, Context]:
    """Return a history's telemetry by column and its context, both checked.

    Args:
        history: History of a run.
        stride: Steps from one entry of its telemetry to the next.

    Raises:
        UserError: there are fewer than 16 steps, steps are not consecutive, the last loss or
            gradient norm is not finite, or there are no learning rates ahead.
    """
    if history.decision_steps < 1:
        raise UserError(f"decision_steps must be at least 1, found {history.decision_steps!r}")
    steps, decisions = _RECENT
    telemetry = list(history.telemetry)[-max(steps, decisions * history.decision_steps) :]
    columns = _checked_columns(telemetry, stride)
    ahead = np.asarray(history.lrs_ahead, dtype=np.float64)
    fits = ahead.ndim == 1 and len(ahead) > 0 and bool(np.all(np.isfinite(ahead) & (ahead >= 0)))
    if not fits:
        raise UserError(
            "lrs_ahead must be the learning rates of the steps to come, at least one, each finite "
            f"and at least 0, found {history.lrs_ahead!r:.80}"
        )
    for name in ("base_lr", "uniform_loss"):
        if not 0 < getattr(history, name) < math.inf:
            raise UserError(
                f"{name} of a history must be a finite number above 0, "
                f"found {getattr(history, name)!r}"
            )
    validation = math.nan
    if history.validation > 0:
        validation = history.validation
    context = Context(
        lrs_ahead=ahead,
        base_lr=history.base_lr,
        uniform_loss=history.uniform_loss,
        decision=history.decision_steps,
        rows=max(1, round(history.decision_steps / stride)),
        validation=validation,
        flagged_ahead=history.flagged_ahead,
        done=telemetry[-1].step,
    )
    return columns, context


def _checked_columns(telemetry: Sequence[Telemetry], stride: int) -> Columns:
    if len(telemetry) < LEAST_STEPS:
        raise UserError(
            f"a history needs the telemetry of at least {LEAST_STEPS} steps, "
            f"found {len(telemetry)}; train more steps first"
        )
    rows = np.array([_ROW(t) for t in telemetry], dtype=np.float64)
    columns = {name: np.ascontiguousarray(column) for name, column in zip(COLUMNS, rows.T)}
    codes = [_CLIP_CODES.get(t.clip, -1) for t in telemetry]
    columns["clip"] = np.array(codes, dtype=np.float64)
    if not np.array_equal(np.diff(columns["step"]), np.full(len(telemetry) - 1, stride)):
        raise UserError(
            "a history needs the telemetry of consecutive steps, found gaps; "
            "leave rewound steps out"
        )
    if not (np.isfinite(columns["loss"][-1]) and np.isfinite(columns["grad_norm"][-1])):
        raise UserError(
            "a history must end with a finite loss and gradient norm, "
            f"found {columns['loss'][-1]} and {columns['grad_norm'][-1]} "
            f"at step {columns['step'][-1]:.0f}; rewind to before that"
        )
    return columns


def state(columns: Columns, context: Context) -> Floats:
    """Return the features of a state, [F] in the order of `STATE`; NaN means not measured."""
    parts = (_time, _rates, _steering, _losses, _gradients, _inside, _readings)
    values: dict[str, float] = {}
    with np.errstate(all="ignore"):  # an overflow counts as not measured
        for part in parts:
            values |= part(columns, context)
    found = np.array([values[name] for name in STATE], dtype=np.float64)
    return np.where(np.isfinite(found), np.clip(found, -_LARGEST, _LARGEST), math.nan)


@lru_cache(maxsize=4096)
def action(intervention: Intervention) -> tuple[float, ...]:
    """Return the features of an intervention in the order of `ACTION`; doing nothing is all 0."""
    return (
        math.log(intervention.lr_scale),
        math.log(intervention.weight_decay_scale),
        *(float(intervention.clip == name) for name in CLIP_NAMES),
        float(intervention.momentum_reset),
        float(intervention.data_reorder),
        float(intervention.skip_batch),
    )


def _time(columns: Columns, context: Context) -> dict[str, float]:
    done = columns["step"][-1]
    left = len(context.lrs_ahead)
    return {
        "progress": done / (done + left),
        "left": math.log(left / context.decision),
        "past": math.log(done / context.decision),
        "decision": math.log(context.decision),
    }


def _rates(columns: Columns, context: Context) -> dict[str, float]:
    ahead = context.lrs_ahead
    lr = columns["lr"]
    horizon = DECISIONS * context.decision
    first = max(float(ahead[0]), 1e-12 * context.base_lr)
    behind = float(lr.mean()) * columns["step"][-1]
    rest = math.nan
    if len(ahead) > horizon:
        rest = _log(ahead[horizon:].mean() / first)
    return {
        "lr": _log(first / context.base_lr),
        "lr_next": _log(ahead[:horizon].mean() / first),
        "lr_rest": rest,
        "lr_end": float(ahead[-1]) / first,
        "lr_seen": _log(float(lr[-1]) / first),
        "lr_sum": _log(ahead.sum() / max(behind, 1e-30)),
        "decay": _log(float(columns["weight_decay"][-1]) * first * len(ahead)),
    }


def _steering(columns: Columns, context: Context) -> dict[str, float]:
    since = columns["steps_since_reset"][-1]
    reset_recency = 0.0
    if since >= 0:
        reset_recency = math.exp(-since / context.decision)
    clip = columns["clip"][-1]
    return {
        "lr_scale": _log(columns["lr_scale"][-1]),
        "weight_decay_scale": _log(columns["weight_decay_scale"][-1]),
        **{f"clip_{name}": float(clip == code) for name, code in _CLIP_CODES.items()},
        "reset_recency": reset_recency,
        "flagged": math.log1p(context.flagged_ahead),
    }


def _losses(columns: Columns, context: Context) -> dict[str, float]:
    d = context.rows
    loss = _logs(columns["loss"])
    probe = _logs(columns["probe_loss"])
    level = _level(loss, probe, context)
    slopes = {f"slope_{n}": 10 * _line(loss[-n * d :])[0] for n in (1, 4, 16)}
    recent = _known(probe[-d:])
    before = _known(probe[-8 * d : -d])
    probe_now = math.nan
    probe_above_best = math.nan
    if len(recent):
        probe_now = recent[-1]
        probe_above_best = float(recent[-1] - _known(probe).min())
    return {
        "level": level - math.log(context.uniform_loss),
        "train_gap": _mean(loss[-d:]) - level,
        **slopes,
        "noise": 10 * _line(loss[-4 * d :])[1],
        "peak_1": _max(loss[-d:]) - _mean(loss[-d:]),
        "peak_4": _max(loss[-4 * d :]) - _mean(loss[-4 * d :]),
        "above_best": _above_best(_blocks(loss, d)),
        "probe_gap": probe_now - _mean(loss[-d:]),
        "probe_change": 10 * (_mean(recent) - _mean(before)),
        "probe_slope": 10 * _line(_known(probe[-4 * d :]))[0],
        "probe_above_best": probe_above_best,
    }


def _level(loss: Floats, probe: Floats, context: Context) -> float:
    """Return ln of the loss now: of the validation, else of the probe, else of the training."""
    if math.isfinite(context.validation):
        return math.log(context.validation)
    if len(_known(probe)):
        return _mean(probe[-context.rows :])
    return _mean(loss[-context.rows :])


def _gradients(columns: Columns, context: Context) -> dict[str, float]:
    d = context.rows
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
    update_per_lr = math.nan
    if with_update.any():
        update_per_lr = float((update - lr / math.log(10))[with_update][-1])
    return {
        "gradient": _mean(raw[-d:]),
        "gradient_change": _mean(raw[-d:]) - _mean(raw[: -4 * d]),
        "gradient_slope": _line(raw[-4 * d :])[0],
        "gradient_spread": _line(raw[-4 * d :])[1],
        "gradient_peak": _max(raw[-d:]) - _mean(raw[-d:]),
        "clipped_1": float(clipped[-d:].mean()),
        "clipped_4": float(clipped[-4 * d :].mean()),
        "clip_depth": _mean(depth[-4 * d :]),
        "cosine_4": 10 * _mean(cosine[-4 * d :]),
        "cosine_16": 10 * _mean(cosine[-16 * d :]),
        "update_ratio": recent,
        "update_change": recent - before,
        "update_per_lr": update_per_lr,
    }


def _inside(columns: Columns, context: Context) -> dict[str, float]:
    d = context.rows
    values = {}
    scaled = {
        "attention": 4 * (columns["attention_entropy"] - 0.5),
        "activation": 4 * (columns["activation_entropy"] - 0.5),
        "embedding": _logs(columns["embedding_rms"]),
        "shortcut": _logs(columns["shortcut_ratio"]),
    }
    for name, column in scaled.items():
        recent = _mean(column[-2 * d :])
        values[name] = recent
        values[f"{name}_change"] = recent - _mean(column[-16 * d : -2 * d])
    return values


def _readings(columns: Columns, context: Context) -> dict[str, float]:
    d = context.rows
    values = {}
    for name in _AXES:
        column = np.minimum(columns[name], 20.0) / 2.5
        values[f"{name}_most"] = float(column[-d:].max())
        values[f"{name}_mean"] = float(column[-4 * d :].mean())
    fired = np.flatnonzero(columns["fired"])
    values["fired_recency"] = 0.0
    if len(fired):
        ago = len(columns["fired"]) - 1 - fired[-1]
        values["fired_recency"] = math.exp(-ago / d)
    return values


def _log(value: float) -> float:
    """Return the logarithm; NaN of a value that is not positive and finite."""
    if not 0 < value < math.inf:
        return math.nan
    return math.log(value)


def _logs(values: Floats) -> Floats:
    """Return logarithms; NaN where a value is not positive and finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
    return np.where(np.isfinite(logs), logs, math.nan)


def _known(values: Floats) -> Floats:
    return values[np.isfinite(values)]


def _mean(values: Floats) -> float:
    known = _known(values)
    if not len(known):
        return math.nan
    return float(known.mean())


def _max(values: Floats) -> float:
    known = _known(values)
    if not len(known):
        return math.nan
    return float(known.max())


def _line(values: Floats) -> tuple[float, float]:
    """Fit a line to the known values by least squares.

    Returns:
        The change along the line, and the standard deviation of the values about it; NaN for fewer
        than 3 known values.
    """
    known = _known(values)
    if len(known) < 3:
        return math.nan, math.nan
    x = np.linspace(-0.5, 0.5, len(known))
    slope = float(x @ known / (x @ x))
    return slope, float((known - known.mean() - slope * x).std())


def _above_best(blocks: Floats) -> float:
    """Return by how much the last block exceeds the lowest; NaN where the last is not known."""
    if not len(blocks) or not np.isfinite(blocks[-1]):
        return math.nan
    return float(blocks[-1] - np.nanmin(blocks))


def _blocks(values: Floats, length: int) -> Floats:
    """Return means of whole blocks of `length` values, counted from the end, oldest first."""
    ends = range(len(values), 0, -length)
    bounds = pairwise([*ends, max(0, ends[-1] - length)])
    return np.array([_mean(values[start:end]) for end, start in bounds][::-1])
