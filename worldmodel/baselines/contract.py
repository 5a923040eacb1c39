"""What every baseline does: learn from examples, and predict others as a world model would."""

from __future__ import annotations

from typing import Protocol

from trainenv.worldmodel.examples import Examples, Predictions


class Fitted(Protocol):
    """A baseline that has learned."""

    def predict(self, examples: Examples) -> Predictions:
        """Of each branch, from its state, its actions and the law's Δ alone.

        Whatever does nothing has Δ = 0 at all levels.
        """
        ...


class Baseline(Protocol):
    """A frozen dataclass of hyperparameters. Fitting is deterministic and changes nothing."""

    def fit(self, examples: Examples) -> Fitted:
        """Learn from branches, of at least two trunks.

        Raises:
            UserError: there are fewer trunks, or no candidate among the branches.
        """
        ...
