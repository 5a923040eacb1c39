"""Losses and errors by the difficulty of a token and by the head that predicts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainenv.types import UserError, as_whole

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenErrors:
    """Table of losses and errors.

    Attributes:
        edges: Borders between the classes of difficulty [classes − 1], ascending.
        counts: Number of predictions [heads, classes].
        losses: Mean loss [heads, classes], nats per token; NaN for an empty class.
        errors: Share of tokens that are not the most probable one [heads, classes]; NaN where it
            is unknown.
    """

    edges: Floats
    counts: NDArray[np.int64]
    losses: Floats
    errors: Floats

    def record(self) -> dict[str, Any]:
        """Return the table as JSON values; NaN becomes None."""
        return {
            "edges": self.edges.tolist(),
            "counts": self.counts.tolist(),
            "losses": _without_nan(self.losses),
            "errors": _without_nan(self.errors),
        }


def token_errors(
    losses: ArrayLike,
    difficulty: ArrayLike,
    *,
    right: ArrayLike | None = None,
    classes: int = 4,
) -> TokenErrors:
    """Group losses by head and by the difficulty of the token.

    The classes of difficulty have equally many tokens, as far as tokens of one difficulty allow:
    these stay together. The difficulty may be the loss of a reference model, or the rarity of the
    token.

    Args:
        losses: Loss of each token by head [heads, tokens], or of one head [tokens], nats; NaN where
            a head predicts no token.
        difficulty: Difficulty of each token [tokens]; higher is harder.
        right: True where the most probable token is the right one, in the shape of `losses`.
        classes: Number of classes of difficulty.

    Raises:
        UserError: The shapes do not fit each other, or there is no token.
    """
    table = np.atleast_2d(np.asarray(losses, np.float64))  # (heads, tokens)
    levels = np.asarray(difficulty, np.float64)
    classes = as_whole(classes, "classes", least=1)
    if levels.ndim != 1 or table.ndim != 2 or table.shape[1] != len(levels) or not len(levels):
        raise UserError(
            "losses must have the shape [heads, tokens] and difficulty the shape [tokens], with at "
            f"least one token, found {table.shape} and {levels.shape}; give one difficulty a token"
        )
    hits = np.full(table.shape, np.nan)
    if right is not None:
        hits = np.atleast_2d(np.asarray(right, np.float64))
        if hits.shape != table.shape:
            raise UserError(
                f"right must have the shape of losses, {table.shape}, found {hits.shape}; "
                "give one truth value a loss"
            )
    edges = np.unique(np.quantile(levels, np.arange(1, classes) / classes))
    place = np.searchsorted(edges, levels)  # (tokens,)
    shape = (len(table), len(edges) + 1)
    counts = np.zeros(shape, np.int64)
    means = np.full(shape, np.nan)
    errors = np.full(shape, np.nan)
    for head, class_ in np.ndindex(shape):
        chosen = (place == class_) & ~np.isnan(table[head])
        counts[head, class_] = chosen.sum()
        if counts[head, class_]:
            means[head, class_] = table[head, chosen].mean()
            errors[head, class_] = 1 - hits[head, chosen].mean()
    return TokenErrors(edges=edges, counts=counts, losses=means, errors=errors)


def _without_nan(table: Floats) -> list[list[float | None]]:
    return [[None if np.isnan(one) else float(one) for one in row] for row in table]
