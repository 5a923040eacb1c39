"""Errors in words, for records and sentences."""

from __future__ import annotations

from trainenv.types import UserError

_LONGEST = 300  # characters


def describe_error(error: BaseException) -> str:
    """Return the sentence of a `UserError`; of any other error "Type: message", cut short."""
    message = str(error)
    if isinstance(error, UserError):
        return message
    kind = type(error).__name__
    if not message:
        return kind
    return f"{kind}: {message}"[:_LONGEST]
