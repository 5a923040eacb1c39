"""From telemetry to the observation: a float32 vector whose features mean the same for every model size.

Ratios and logarithms throughout, NaN (nothing measured) becomes 0, and every feature is clipped to
[−10, 10].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from trainenv.types import CLIP_NAMES, Telemetry

BOUND = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """The observation, feature by feature, in order. A *window* is the steps of the last decision.

    Attributes:
        progress: share of the annealing done, 0 to 1.
        budget_left: share of the budget left, 0 to 1.
        validation: ln(validation loss ÷ reference); the reference is the loss of a uniform guess,
            ln V.
        validation_fall: fall of ln(validation loss) over the last decision, × 10.
        loss: ln(geometric mean of the window's training loss ÷ reference).
        loss_slope: change of ln(training loss) over the window by least squares, × 10.
        loss_spread: standard deviation of ln(training loss) about that line, × 10.
        loss_peak: ln(largest ÷ mean training loss) of the window.
        gradient: ln(geometric mean of the gradient norm ÷ that of the window before).
        gradient_peak: ln(largest ÷ mean gradient norm) of the window.
        clipped: share of steps whose gradient was clipped.
        lr: ln(learning rate ÷ the optimizer's base learning rate), at the window's end.
        lr_scale: ln of the multiplier in force.
        weight_decay_scale: ln of the multiplier in force.
        clip_none, clip_zclip, clip_arc, clip_spam: 1 for the policy in force.
        reset_recency: exp(−steps since the last momentum reset ÷ decision steps); 0 without one.
        hypergradient: mean cosine of the gradient with the last update; positive: a larger learning
            rate would help at once.
        update_ratio: log10(‖update‖ ÷ ‖weights‖) + 3.
        probe_gap: ln(loss on the clean probe ÷ training loss), geometric means.
        attention_entropy, activation_entropy: shares of their maximum, 0 to 1, less 0.5, × 4.
        embedding: ln(root mean square of the token embeddings' output).
        shortcut: ln(‖shortcut‖ ÷ ‖sub-layers' output‖), mean over layers.
        volatility, entropy, disagreement, index: the largest of each reading in the window, ÷ 2.5.
        fired: 1 if the uncertainty index fired in the window.
        flagged: 1 if data that was flagged is still to come.
    """

    progress: float
    budget_left: float
    validation: float
    validation_fall: float
    loss: float
    loss_slope: float
    loss_spread: float
    loss_peak: float
    gradient: float
    gradient_peak: float
    clipped: float
    lr: float
    lr_scale: float
    weight_decay_scale: float
    clip_none: float
    clip_zclip: float
    clip_arc: float
    clip_spam: float
    reset_recency: float
    hypergradient: float
    update_ratio: float
    probe_gap: float
    attention_entropy: float
    activation_entropy: float
    embedding: float
    shortcut: float
    volatility: float
    entropy: float
    disagreement: float
    index: float
    fired: float
    flagged: float

    def vector(self) -> NDArray[np.float32]:
        """The observation, float32 of shape (len(FEATURES),), finite and within [−10, 10]."""
        raw = np.array([getattr(self, name) for name in FEATURES], dtype=np.float64)
        return np.clip(
            np.nan_to_num(raw, nan=0.0, posinf=BOUND, neginf=-BOUND), -BOUND, BOUND
        ).astype(np.float32)


FEATURES: tuple[str, ...] = tuple(f.name for f in fields(Features))


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What an observation needs beside the telemetry of the window.

    Attributes:
        reference: loss of a uniform guess, nats.
        base_lr: the optimizer's base learning rate.
        decision_steps: optimizer steps a decision.
        budget_left: share of the budget left.
        validation: validation loss now, nats per token.
        validation_before: the same, a decision ago.
        gradient_before: geometric mean of the gradient norm in the window before; NaN where there
            was none.
        flagged: whether flagged data is still to come.
    """

    reference: float
    base_lr: float
    decision_steps: int
    budget_left: float
    validation: float
    validation_before: float
    gradient_before: float
    flagged: bool


def observe(window: Sequence[Telemetry], now: Situation) -> Features:
    """The features of a window of telemetry.

    An empty window (after a reset) reads as zeros but for what `now` tells.
    """
    last = window[-1] if window else None
    log_loss = _log([t.loss for t in window])
    slope, spread = _line(log_loss)
    loss = _mean(log_loss)
    gradients = _log([t.grad_norm for t in window])
    gradient = _mean(gradients)
    clip = last.clip if last else ""
    return Features(
        progress=last.progress if last else 0.0,
        budget_left=now.budget_left,
        validation=_log_ratio(now.validation, now.reference),
        validation_fall=10 * _log_ratio(now.validation_before, now.validation),
        loss=loss - math.log(now.reference),
        loss_slope=10 * slope,
        loss_spread=10 * spread,
        loss_peak=_peak(log_loss),
        gradient=gradient - _log_ratio(now.gradient_before, 1.0),
        gradient_peak=_peak(gradients),
        clipped=_mean(np.array([t.clipped for t in window], dtype=np.float64)),
        lr=_log_ratio(last.lr, now.base_lr) if last else 0.0,
        lr_scale=math.log(last.lr_scale) if last else 0.0,
        weight_decay_scale=math.log(last.weight_decay_scale) if last else 0.0,
        **{f"clip_{name}": float(clip == name) for name in CLIP_NAMES},
        reset_recency=math.exp(-last.steps_since_reset / now.decision_steps)
        if last and last.steps_since_reset >= 0
        else 0.0,
        hypergradient=_known([t.hypergradient_cosine for t in window]),
        update_ratio=math.log10(max(_known([t.update_ratio for t in window]), 1e-12)) + 3
        if window
        else 0.0,
        probe_gap=_mean(_log([t.probe_loss for t in window])) - loss,
        attention_entropy=4 * (_known([t.attention_entropy for t in window]) - 0.5),
        activation_entropy=4 * (_known([t.activation_entropy for t in window]) - 0.5),
        embedding=_mean(_log([t.embedding_rms for t in window])),
        shortcut=_mean(_log([t.shortcut_ratio for t in window])),
        volatility=_most([t.reading.volatility for t in window]) / 2.5,
        entropy=_most([t.reading.entropy for t in window]) / 2.5,
        disagreement=_most([t.reading.disagreement for t in window]) / 2.5,
        index=_most([t.reading.index for t in window]) / 2.5,
        fired=float(any(t.reading.fired for t in window)),
        flagged=float(now.flagged),
    )


def _log(values: list[float]) -> NDArray[np.float64]:
    """Logarithms of the finite positive values."""
    array = np.array(values, dtype=np.float64)
    return np.log(array[np.isfinite(array) & (array > 0)])


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else math.nan


def _peak(logs: NDArray[np.float64]) -> float:
    """ln(largest ÷ mean) of values given as logarithms."""
    return -float(np.log(np.exp(logs - logs.max()).mean())) if logs.size else 0.0


def _line(values: NDArray[np.float64]) -> tuple[float, float]:
    """Change along the least-squares line, and the standard deviation about it."""
    if values.size < 3:
        return 0.0, 0.0
    x = np.linspace(-0.5, 0.5, values.size)
    slope = float(x @ values / (x @ x))
    return slope, float((values - values.mean() - slope * x).std())


def _log_ratio(value: float, reference: float) -> float:
    """ln(value ÷ reference): −∞ for 0, NaN where either is not a positive number."""
    if value == 0:
        return -math.inf
    return (
        math.log(value) - math.log(reference)
        if 0 < value < math.inf and 0 < reference < math.inf
        else math.nan
    )


def _known(values: list[float]) -> float:
    """Mean of the values that were measured, NaN if none was."""
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def _most(values: list[float]) -> float:
    return max(values, default=0.0)
