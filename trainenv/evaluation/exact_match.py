"""Exact match: a text equals the expected one, but for blank lines and blanks at ends of lines."""

from __future__ import annotations

from collections.abc import Sequence

from trainenv.evaluation.pass_at_k import Share, bootstrapped
from trainenv.types import UserError


def is_exact(text: str, expected: str) -> bool:
    """Tell if a text equals the expected one; blank lines and blanks at ends do not count."""
    return _stripped(text) == _stripped(expected)


def exact_match(texts: Sequence[str], expected: Sequence[str], *, seed: int = 0) -> Share:
    """Return the share of texts that equal the expected ones, one each.

    Raises:
        UserError: There is no text, or another number of expected ones.
    """
    if len(texts) != len(expected):
        raise UserError(
            f"expected as many texts as expected ones, found {len(texts)} and {len(expected)}; "
            "give one of each for a task"
        )
    pairs = zip(texts, expected)
    return bootstrapped([float(is_exact(text, wanted)) for text, wanted in pairs], seed=seed)


def _stripped(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines() if line.strip()]
