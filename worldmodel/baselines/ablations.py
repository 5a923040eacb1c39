"""Ablations: a baseline without states, or with permuted actions.

An ablation that forecasts as well as its baseline shows that the missing input was not needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trainenv.worldmodel.baselines.contract import Baseline, Fitted
from trainenv.worldmodel.examples import Examples, Floats, Predictions


@dataclass(frozen=True, kw_only=True)
class Blind:
    """A baseline that sees the same average state everywhere, and no Δ by the law.

    Args:
        of: Baseline to fit.
    """

    of: Baseline

    def fit(self, examples: Examples) -> FittedBlind:
        """See `Baseline`."""
        states = examples.states[np.unique(examples.snapshot)]
        known = ~np.isnan(states)
        count = known.sum(axis=0)
        total = np.where(known, states, 0.0).sum(axis=0)
        average = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return FittedBlind(of=self.of.fit(_blinded(examples, average)), state=average)


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedBlind:
    """A blind baseline, fitted.

    Attributes:
        of: Fitted baseline.
        state: [F] average state of the training examples, in which all branches are predicted.
    """

    of: Fitted
    state: Floats

    def predict(self, examples: Examples) -> Predictions:
        """See `Fitted`."""
        return self.of.predict(_blinded(examples, self.state))


@dataclass(frozen=True, kw_only=True)
class ActionShuffled:
    """A baseline fitted to actions permuted among the candidates of each snapshot.

    It predicts for the true actions.

    Args:
        of: Baseline to fit.
        seed: Random seed of the permutations.
    """

    of: Baseline
    seed: int = 0

    def fit(self, examples: Examples) -> Fitted:
        """See `Baseline`."""
        return self.of.fit(examples.shuffled(np.random.default_rng(self.seed)))


def _blinded(examples: Examples, state: Floats) -> Examples:
    """Return examples in one given state, without Δ by the law.

    The state is given, because the average of the test trunks would carry information about them.
    """
    return replace(
        examples,
        states=np.broadcast_to(state, examples.states.shape),
        law=np.zeros_like(examples.law),
    )
