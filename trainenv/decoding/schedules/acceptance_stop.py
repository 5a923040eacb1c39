"""SpecDec++ (Huang et al. 2024, arXiv:2405.19715): stop once a rejection has become likely.

A predictor estimates the chance a_i that drafted token i is accepted. Drafting stops after token j
where the chance of a rejection so far exceeds a threshold h:

    1 − Π_{i ≤ j} a_i > h

The first token is always drafted.

Deviations from the paper: the predictor is a logistic regression on the draft's probabilities of
the token and of the most likely token, where the paper trains a head on hidden states. Its labels
are the exact chances min(1, p / q), where the paper samples and weights rejections six times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainenv.decoding.traces import Trace
from trainenv.decoding.traces.trace import Floats, Ints
from trainenv.tools.checks import number, whole
from trainenv.types import UserError

FEATURES = 6
_RIDGE = 1e-3  # keeps the regression solvable where all tokens are alike
_STEPS = 12  # of Newton's method
_LEAST = math.log(1e-8)


@dataclass(frozen=True, kw_only=True)
class AcceptanceStop:
    """Stop drafting where a rejection is likely.

    Args:
        weights: Weights of the predictor, `FEATURES` of them, from `fit_acceptance`.
        threshold: Chance of a rejection h above which drafting stops, 0 to 1.
        k: Most tokens drafted for one target call.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    weights: tuple[float, ...]
    threshold: float
    k: int

    def __post_init__(self) -> None:
        if len(self.weights) != FEATURES:
            raise UserError(
                f"weights must hold {FEATURES} numbers, found {len(self.weights)}; take those of "
                "fit_acceptance"
            )
        number("threshold", self.threshold, least=0, most=1)
        whole("k", self.k, least=1)

    def begin(self) -> StopState:
        """Return the state at the start, which never changes."""
        return StopState(rule=self, tokens=self.k)

    def lengths(self, described: Floats) -> Ints:
        """Return the number of tokens drafted of each block, [...].

        Args:
            described: Inputs of the predictor for each token of the blocks, [..., ≥ K, F].
        """
        chance = _sigmoid(described[..., : self.k, :] @ np.array(self.weights))
        stops = 1 - np.cumprod(chance, axis=-1) > self.threshold  # after each token
        lengths: Ints = np.where(stops.any(-1), stops.argmax(-1) + 1, self.k)
        return lengths


@dataclass
class StopState:
    """The rule for one row; it learns nothing while decoding."""

    rule: AcceptanceStop
    tokens: int

    def ends(self, own: Sequence[float], top: Sequence[float], /) -> bool:
        described = features(np.log(np.maximum(own, 1e-30)), np.array(top))
        chance = _sigmoid(described @ np.array(self.rule.weights))
        return bool(1 - chance.prod() > self.rule.threshold)

    def update(self, own: Sequence[float], accepted: int, complete: bool, /) -> None:
        """Do nothing."""


def features(log_q: Floats, top: Floats) -> Floats:
    """Return the inputs of the predictor, [..., F].

    Args:
        log_q: Natural logarithm of the draft's probability of each token, [...].
        top: Largest probability of the draft before each token, [...].
    """
    own = np.clip(log_q.astype(np.float64), _LEAST, 0)
    most = np.log(np.clip(top.astype(np.float64), 1e-8, 1))
    return np.stack([np.ones_like(own), own, most, own * most, own**2, most**2], axis=-1)


def fit_acceptance(trace: Trace) -> tuple[float, ...]:
    """Fit the predictor to all tokens of all blocks of a trace, by Newton's method."""
    inputs = features(trace.block_q, trace.block_top).reshape(-1, FEATURES)
    gap = trace.block_p.astype(np.float64) - trace.block_q.astype(np.float64)
    wanted = np.exp(np.minimum(gap, 0)).ravel()
    weights = np.zeros(FEATURES)
    for _ in range(_STEPS):
        chance = _sigmoid(inputs @ weights)
        slope = inputs.T @ (wanted - chance) / len(wanted) - _RIDGE * weights
        curvature = (inputs * (chance * (1 - chance))[:, None]).T @ inputs / len(wanted)
        weights = weights + np.linalg.solve(curvature + _RIDGE * np.eye(FEATURES), slope)
    return tuple(float(weight) for weight in weights)


def _sigmoid(values: Floats) -> Floats:
    chance: Floats = 1 / (1 + np.exp(-np.clip(values, -30, 30)))
    return chance
