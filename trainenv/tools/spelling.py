"""The word that somebody meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(wrong: object, valid: Iterable[str]) -> str:
    """The end of a sentence that names the valid word nearest to a wrong one, empty where none is near."""
    close = difflib.get_close_matches(str(wrong), list(valid), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
