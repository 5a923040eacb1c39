"""Rendering of an episode: the validation loss by decision, as text and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MODES = ("ansi", "rgb_array")
_BARS = "▁▂▃▄▅▆▇█"
_MOST = 60  # decisions that a line of text shows
_SIZE = (240, 360)  # height and width of a picture in pixels
_MARGIN = 16  # pixels around the curve
_INK = (31, 119, 180)
_FRAME = (200, 200, 200)


def as_text(words: str, losses: Sequence[float]) -> str:
    """Return a line of words and a line of bars, the lowest loss the lowest bar.

    Args:
        words: Description of the run now.
        losses: Validation losses by decision, from the start of the episode.
    """
    shown = list(losses)[-_MOST:]
    heights = _heights(shown)
    bars = "".join(_BARS[round(height * (len(_BARS) - 1))] for height in heights)
    return f"{words}\n{bars}\n"


def as_picture(losses: Sequence[float]) -> NDArray[np.uint8]:
    """Return the validation loss by decision as a picture, uint8 [240, 360, 3].

    Args:
        losses: Validation losses by decision, from the start of the episode.
    """
    picture = np.full((*_SIZE, 3), 255, dtype=np.uint8)
    height, width = _SIZE
    picture[_MARGIN, _MARGIN:-_MARGIN] = _FRAME
    picture[height - _MARGIN, _MARGIN:-_MARGIN] = _FRAME
    heights = _heights(losses)
    if not heights:
        return picture
    columns = np.arange(_MARGIN, width - _MARGIN)
    places = np.linspace(0, len(heights) - 1, len(columns))
    curve = np.interp(places, np.arange(len(heights)), heights)  # 0 at the lowest loss
    rows = (height - _MARGIN - curve * (height - 2 * _MARGIN)).round().astype(int)
    before = np.concatenate([rows[:1], rows[:-1]])
    for column, one, other in zip(columns, before, rows):
        low, high = min(one, other), max(one, other)
        picture[low - 1 : high + 2, column] = _INK
    return picture


def _heights(losses: Sequence[float]) -> list[float]:
    """Return the losses from 0, the lowest, to 1, the highest; non-finite ones are the highest."""
    known = [loss for loss in losses if math.isfinite(loss)]
    if not known:
        return [0.0 for _ in losses]
    low = min(known)
    span = max(known) - low or 1.0
    return [(loss - low) / span if math.isfinite(loss) else 1.0 for loss in losses]
