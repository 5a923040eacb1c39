"""A configuration as one row of keys and texts, for trackers that know no sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Return the values by dotted key, as text."""
    found = dict[str, str]()
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = str(value)
    return found
