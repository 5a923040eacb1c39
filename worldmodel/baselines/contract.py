"""The contract of all baselines: fit examples, then predict others as a world model does."""

from __future__ import annotations

from typing import Protocol

from trainenv.worldmodel.examples import Examples, Predictions


class Fitted(Protocol):
    """A fitted baseline."""

    def predict(self, examples: Examples) -> Predictions:
        """Predict each branch from its state, its actions and the Δ by the law alone.

        A branch that does nothing has Δ = 0 at all levels.
        """
        ...


class Baseline(Protocol):
    """A frozen dataclass of hyperparameters. Fitting is deterministic and changes nothing."""

    def fit(self, examples: Examples) -> Fitted:
        """Fit the branches of at least two trunks.

        Raises:
            UserError: fewer than two trunks have candidates.
        """
        ...
