"""Suggestions for misspelt words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(wrong: object, valid: Iterable[str]) -> str:
    """Return the end of a sentence, "; did you mean …?", or nothing if no valid word is near."""
    for close in difflib.get_close_matches(str(wrong), list(valid), n=1, cutoff=0.5):
        return f"; did you mean {close!r}?"
    return ""
