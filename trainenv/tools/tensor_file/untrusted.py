"""Limits for JSON and text that come from a file of unknown origin."""

from __future__ import annotations

import json
from typing import Any

PARSED_MOST = 96 << 20  # bytes that a header or a manifest may need as Python objects
# Bytes that CPython allocates, at most, for a list, an object, an element, a pair, half a text.
COSTS = {b"[": 104, b"{": 272, b",": 48, b":": 256, b'"': 48}
_SHOWN_MOST = 80  # characters of a foreign value that a message repeats


def parse_json(data: bytes) -> Any:
    """Parse JSON from an untrusted file within a bounded amount of memory.

    Raises:
        ValueError: The data is not JSON in ASCII, is nested too deeply, holds a key twice, or needs
            more than `PARSED_MOST` bytes as Python objects.
    """
    if sum(data.count(sign) * cost for sign, cost in COSTS.items()) > PARSED_MOST:
        raise ValueError("its JSON has too many parts")
    try:
        return json.loads(data.decode("ascii"), object_pairs_hook=_without_repeated_keys)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def short(value: object) -> str:
    """Quote a value from a file in a message: ASCII only, no control characters, 80 characters."""
    text = ascii(value)
    if len(text) <= _SHOWN_MOST:
        return text
    return f"{text[:_SHOWN_MOST]}…"
