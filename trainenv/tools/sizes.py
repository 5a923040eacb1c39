"""Numbers of bytes in words."""

from __future__ import annotations

import math


def size_in_words(count: int) -> str:
    """Return a number of bytes in words."""
    if count >= 1e8:
        return f"{count / 1e9:.1f} GB"
    return f"{math.ceil(count / 1e6)} MB"
