"""An error as a sentence."""

from __future__ import annotations


def describe_error(error: Exception) -> str:
    """Return the kind of an error and its message, if it has one, at most 300 characters."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")[:300]
