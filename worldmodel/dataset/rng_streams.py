"""Random streams: an independent one for each purpose, all from one root seed."""

from __future__ import annotations

from zlib import crc32

import numpy as np


def stream(seed: int, purpose: str, *place: int) -> np.random.Generator:
    """Return the generator of (seed, purpose, place); draws from one never change another."""
    return np.random.default_rng([seed, crc32(purpose.encode()), *place])
