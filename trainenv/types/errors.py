"""The error for a mistake that the user can correct."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can correct.

    The message says what was expected, what was found and what to do. On the command line it leads
    to exit code 2.
    """
