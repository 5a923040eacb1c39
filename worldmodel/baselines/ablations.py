"""The same baseline with something taken from it: what it then still gets right, it gets right without that."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trainenv.worldmodel.baselines.contract import Baseline, Fitted
from trainenv.worldmodel.examples import Examples, Floats, Predictions


@dataclass(frozen=True, kw_only=True)
class Blind:
    """Learns and predicts without a look at the state.

    Args:
        of: the baseline.
    """

    of: Baseline

    def fit(self, examples: Examples) -> FittedBlind:
        """See `Baseline`."""
        states = examples.states[np.unique(examples.snapshot)]
        known = ~np.isnan(states)
        count = known.sum(axis=0)
        average = np.where(
            count > 0, np.where(known, states, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan
        )
        return FittedBlind(of=self.of.fit(_blinded(examples, average)), state=average)


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedBlind:
    """Predicts every branch as if in the average state of the examples that were learned from, [F]."""

    of: Fitted
    state: Floats

    def predict(self, examples: Examples) -> Predictions:
        """See `Fitted`."""
        return self.of.predict(_blinded(examples, self.state))


@dataclass(frozen=True, kw_only=True)
class ActionShuffled:
    """Learns from actions dealt out anew among the candidates of each snapshot; predicts for the actions that were tried.

    Args:
        of: the baseline.
        seed: of the dealing.
    """

    of: Baseline
    seed: int = 0

    def fit(self, examples: Examples) -> Fitted:
        """See `Baseline`."""
        return self.of.fit(examples.shuffled(np.random.default_rng(self.seed)))


def _blinded(examples: Examples, state: Floats) -> Examples:
    """As `Examples.blind`, but with a state that is given: the test trunks' own average would be a look at them."""
    return replace(
        examples,
        states=np.broadcast_to(state, examples.states.shape),
        law=np.zeros_like(examples.law),
    )
