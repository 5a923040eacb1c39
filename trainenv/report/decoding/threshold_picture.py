"""Speed over fall-back threshold and draft length with an exact rule: one cell for a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainenv.report.decoding.pareto_picture import describe
from trainenv.report.drawing import formatting
from trainenv.report.drawing.svg import drawing, element, label, titled

WIDTH = 430.0
HEIGHT = 250.0
_LEFT = 46.0
_RIGHT = 16.0
_TOP = 12.0
_BOTTOM = HEIGHT - 40.0


def threshold_picture(points: Sequence[Mapping[str, Any]]) -> str:
    """Draw the speed-up of exact settings; warm cells are slower than the target alone.

    Args:
        points: Measured settings; those of lossy rules are left out.
    """
    exact = [point for point in points if point["rule"] != "lossy"]
    fallbacks = sorted({round(float(point["fallback_threshold"]), 6) for point in exact})
    lengths = sorted({int(point["k"]) for point in exact})
    if not exact:
        return ""
    width = (WIDTH - _LEFT - _RIGHT) / len(fallbacks)
    height = (_BOTTOM - _TOP) / len(lengths)
    best = max(exact, key=lambda point: float(point["speedup"]))
    gain = max(float(best["speedup"]) - 1, 0.01)
    cells = []
    for point in exact:
        x = _LEFT + width * fallbacks.index(round(float(point["fallback_threshold"]), 6))
        y = _BOTTOM - height * (lengths.index(int(point["k"])) + 1)
        speedup = float(point["speedup"])
        strength = min(abs(speedup - 1) / gain, 1.0) ** 1.5
        class_ = "heat"
        if speedup < 1:
            class_ = "heat slower"
            strength = 1 - speedup
        cells.append(
            element(
                "rect",
                titled(describe(point)),
                x=x,
                y=y,
                width=width - 1,
                height=height - 1,
                class_=class_,
                fill_opacity=f"{0.06 + 0.86 * strength:.2f}",
            )
        )
        if point is best:
            cells.append(
                element(
                    "rect",
                    x=x,
                    y=y,
                    width=width - 1,
                    height=height - 1,
                    class_="heat-best",
                )
            )
    return drawing(
        WIDTH,
        HEIGHT,
        *cells,
        *_labels(fallbacks, lengths, width, height),
        class_="chart small",
        about="Speed-up over fall-back threshold and draft length",
    )


def _labels(
    fallbacks: Sequence[float], lengths: Sequence[int], width: float, height: float
) -> list[str]:
    parts = []
    every = max(1, len(fallbacks) // 6)
    for place, value in enumerate(fallbacks):
        if place % every == 0:
            x = _LEFT + width * (place + 0.5)
            parts.append(label(x, _BOTTOM + 16, formatting.number(value, 2), "tick", "middle"))
    for place, length in enumerate(lengths):
        if len(lengths) <= 8 or place % 2 == 0:
            y = _BOTTOM - height * (place + 0.5) + 4
            parts.append(label(_LEFT - 7, y, str(length), "tick", "end"))
    parts.append(label(WIDTH - _RIGHT, _BOTTOM + 34, "fall-back threshold", "tick", "end"))
    return parts
