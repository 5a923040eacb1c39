"""The error for a mistake that the user can correct."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake the user can mend: says what was expected, what was found and what to do.

    Exit code 2 on the command line.
    """
