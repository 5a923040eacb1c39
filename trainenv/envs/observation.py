"""The observation: a float32 vector of features, made from telemetry.

A feature means the same for every model size, since all are ratios or logarithms. NaN (not
measured) becomes 0, and every feature is clipped to [−10, 10].
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainenv.types import CLIP_NAMES, Telemetry, UserError

if TYPE_CHECKING:
    import pandas as pd

BOUND = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """The features of an observation, in order. A *window* is the steps of the last decision.

    Attributes:
        progress: Share of the annealing done, 0 to 1.
        budget_left: Share of the budget left, 0 to 1.
        validation: ln(validation loss ÷ reference). The reference is the loss of a uniform guess,
            ln V.
        validation_fall: Fall of ln(validation loss) over the last decision, × 10.
        loss: ln(geometric mean of the training loss of the window ÷ reference).
        loss_slope: Change of ln(training loss) over the window by least squares, × 10.
        loss_spread: Standard deviation of ln(training loss) about that line, × 10.
        loss_peak: ln(largest ÷ mean training loss) of the window.
        gradient: ln(geometric mean of the gradient norm ÷ that of the window before).
        gradient_peak: ln(largest ÷ mean gradient norm) of the window.
        clipped: Share of the steps whose gradient was clipped, 0 to 1.
        lr: ln(learning rate ÷ base learning rate of the optimizer), at the end of the window.
        lr_scale: ln(multiplier on the learning rate in force).
        weight_decay_scale: ln(multiplier on the weight decay in force).
        clip_none, clip_zclip, clip_arc, clip_spam: One-hot code of the clip policy in force.
        reset_recency: exp(−steps since the last momentum reset ÷ decision steps); 0 without one.
        hypergradient: Mean cosine of the gradient with the last update. If it is positive, a larger
            learning rate would help at once.
        update_ratio: log10(‖update‖ ÷ ‖weights‖) + 3.
        probe_gap: ln(loss on the clean probe ÷ training loss), geometric means.
        attention_entropy, activation_entropy: Shares of their maximum, 0 to 1, less 0.5, × 4.
        embedding: ln(root mean square of the token embeddings' output).
        shortcut: ln(‖shortcut‖ ÷ ‖sub-layers' output‖), mean over layers.
        volatility, entropy, disagreement, index: Largest of each reading in the window, ÷ 2.5.
        fired: 1 if the uncertainty index fired in the window, else 0.
        flagged: 1 if flagged data are still to come, else 0.
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
        """Return the observation, float32 [len(FEATURES)], finite and within [−10, 10]."""
        raw = np.array([getattr(self, name) for name in FEATURES], dtype=np.float64)
        finite = np.nan_to_num(raw, nan=0.0, posinf=BOUND, neginf=-BOUND)
        return np.clip(finite, -BOUND, BOUND).astype(np.float32)


FEATURES: tuple[str, ...] = tuple(f.name for f in fields(Features))


def meanings() -> dict[str, str]:
    """Return a sentence or two about each feature, by name, from the docstring of `Features`."""
    text = inspect.getdoc(Features) or ""
    entries = re.findall(
        r"^    ([a-z_, ]+): (.*?)(?=^    [a-z_, ]+: |\Z)", text, re.MULTILINE | re.DOTALL
    )
    found = {}
    for names, meaning in entries:
        for name in names.split(", "):
            found[name] = " ".join(meaning.split())
    return found


def explained(observation: NDArray[np.float32]) -> pd.DataFrame:
    """Return a table with a row for each feature: its value and its meaning.

    Args:
        observation: Observation, float32 [32].

    Raises:
        UserError: It has another length.
    """
    import pandas as pd

    values = np.asarray(observation, dtype=np.float64)
    if values.shape != (len(FEATURES),):
        raise UserError(
            f"expected an observation of {len(FEATURES)} numbers, found {list(values.shape)}; give"
            " one that reset() or step() returned"
        )
    known = meanings()
    rows = {"value": values.round(4), "meaning": [known.get(name, "") for name in FEATURES]}
    return pd.DataFrame(rows, index=pd.Index(FEATURES, name="feature"))


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The input of an observation in addition to the telemetry of the window.

    Attributes:
        reference: Loss of a uniform guess, nats per token.
        base_lr: Base learning rate of the optimizer.
        decision_steps: Optimizer steps of a decision.
        budget_left: Share of the budget left, 0 to 1.
        validation: Validation loss now, nats per token.
        validation_before: Validation loss one decision ago, nats per token.
        gradient_before: Geometric mean of the gradient norm in the window before; NaN without one.
        flagged: True if flagged data are still to come.
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
    """Return the features of a window of telemetry.

    For an empty window (after a reset) all features are 0 except those that `now` determines.

    Args:
        window: Telemetry of the steps of the last decision.
        now: State of the run after them.
    """
    last = window[-1] if window else None
    log_loss = _log([t.loss for t in window])
    slope, spread = _line(log_loss)
    loss = _mean(log_loss)
    gradients = _log([t.grad_norm for t in window])
    gradient = _mean(gradients)
    return Features(
        **_in_force(last, now),
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
        hypergradient=_known([t.hypergradient_cosine for t in window]),
        update_ratio=_update_ratio(window),
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


def _in_force(last: Telemetry | None, now: Situation) -> dict[str, float]:
    """Return the features that depend on the last step alone; 0 without a step."""
    clips = [f"clip_{name}" for name in CLIP_NAMES]
    if last is None:
        names = ("progress", "lr", "lr_scale", "weight_decay_scale", "reset_recency", *clips)
        return dict.fromkeys(names, 0.0)
    recency = 0.0
    if last.steps_since_reset >= 0:
        recency = math.exp(-last.steps_since_reset / now.decision_steps)
    return {
        "progress": last.progress,
        "lr": _log_ratio(last.lr, now.base_lr),
        "lr_scale": math.log(last.lr_scale),
        "weight_decay_scale": math.log(last.weight_decay_scale),
        "reset_recency": recency,
        **{name: float(name == f"clip_{last.clip}") for name in clips},
    }


def _update_ratio(window: Sequence[Telemetry]) -> float:
    """Return log10(‖update‖ ÷ ‖weights‖) + 3, at least −9; 0 for an empty window."""
    if not window:
        return 0.0
    return math.log10(max(_known([t.update_ratio for t in window]), 1e-12)) + 3


def _log(values: list[float]) -> NDArray[np.float64]:
    """Return the logarithms of the finite positive values."""
    array = np.array(values, dtype=np.float64)
    return np.log(array[np.isfinite(array) & (array > 0)])


def _mean(values: NDArray[np.float64]) -> float:
    if not values.size:
        return math.nan
    return float(values.mean())


def _peak(logs: NDArray[np.float64]) -> float:
    """Return ln(largest ÷ mean) of values that are given as logarithms."""
    if not logs.size:
        return 0.0
    return -float(np.log(np.exp(logs - logs.max()).mean()))


def _line(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the change along the least-squares line, and the standard deviation about it."""
    if values.size < 3:
        return 0.0, 0.0
    x = np.linspace(-0.5, 0.5, values.size)
    slope = float(x @ values / (x @ x))
    return slope, float((values - values.mean() - slope * x).std())


def _log_ratio(value: float, reference: float) -> float:
    """Return ln(value ÷ reference): −∞ for 0, NaN if either is not positive and finite."""
    if value == 0:
        return -math.inf
    if 0 < value < math.inf and 0 < reference < math.inf:
        return math.log(value) - math.log(reference)
    return math.nan


def _known(values: list[float]) -> float:
    """Return the mean of the values that were measured, NaN if none was."""
    known = [v for v in values if math.isfinite(v)]
    if not known:
        return math.nan
    return sum(known) / len(known)


def _most(values: list[float]) -> float:
    return max(values, default=0.0)
