"""Panel of the loss over steps: single steps, smoothed, validation, rolled-back steps, alarms.

Losses above the axis are marked at its upper edge, with the highest value of each stretch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainenv.report.drawing import formatting
from trainenv.report.drawing.downsampling import Line, bucketed, cloud, floats, smoothed
from trainenv.report.drawing.panels import LEFT, RIGHT, Frame, axis, decimals, title
from trainenv.report.drawing.svg import Scale, clipped, dots, element, label, polyline, titled
from trainenv.report.run.run_record import RunRecord, rollbacks

LINES = 200  # most rolled-back stretches that are drawn, the newest ones
_LABEL = 34.0  # pixels that the value of an outlier takes


def loss_panel(record: RunRecord, frame: Frame, top: float, height: float) -> str:
    """Draw the panel from `top` downwards: its title, then `height` pixels of plot."""
    scale = _scale(record, top + 16, height)
    written = decimals(scale.ticks(5))
    return "".join(
        (
            title(top, "Loss", "nats per token"),
            axis(frame, scale, 5, lambda value: formatting.number(value, written)),
            rewind_bands(record, frame, top + 16, height),
            clipped(
                LEFT - 2,
                top + 14,
                frame.width - LEFT,
                height + 2,
                *_alone(record, frame, scale),
                *_lost(record, frame, scale),
                *_kept(record, frame, scale),
            ),
            *_outliers(record, frame, scale),
            *_validation(record, frame, scale),
            *_alarms(record, frame, top + 16),
        )
    )


def rewind_bands(record: RunRecord, frame: Frame, top: float, height: float) -> str:
    """Draw a band for each rollback, over the steps that were undone."""
    bands = []
    for rollback in rollbacks(record):
        x = frame.steps.inside(rollback.to)
        width = max(frame.steps.inside(rollback.start) - x, 1.0)
        about = titled(rollback.about)
        bands.append(
            element("rect", about, x=x, y=top, width=width, height=height, class_="rewound")
        )
    return "".join(bands)


def _scale(record: RunRecord, top: float, height: float) -> Scale:
    """Choose an axis for the smoothed loss after the first tenth of the run.

    The high losses of the beginning would flatten the rest. A loss that explodes is cut off too;
    points above the axis are drawn at its upper edge.
    """
    kept = record.kept
    late = kept[kept["step"] > record.last_step / 10]
    if len(late) < 2:
        late = kept
    raw = late["loss"]
    values = floats(smoothed(raw).dropna())
    cloud: list[float] = raw[np.isfinite(raw)].quantile([0.01, 0.98]).dropna().tolist()
    validation = [
        float(v["loss"])
        for v in record.validation
        if v["kept"] and formatting.finite(v["loss"]) is not None
    ]
    lowest = min([*values, *validation, *cloud], default=0.0)
    later = [
        float(v["loss"])
        for v in record.validation
        if v["step"] > record.last_step / 10 and formatting.finite(v["loss"])
    ]
    usual = max(validation, default=1.0)
    if len(values):
        usual = float(np.quantile(values, 0.9))
    highest = min(max([usual, *values, *later, *cloud]), lowest + 4 * max(usual - lowest, 0.02))
    lost = floats(smoothed(record.steps.loc[~record.steps["kept"], "loss"]).dropna())
    if len(lost):  # a spike that was rolled back should be visible
        highest = max(highest, min(float(lost.max()), highest + 0.8 * (highest - lowest)))
    room = 0.07 * max(highest - lowest, 0.02)
    return Scale(lowest - 1.6 * room, highest + room, top + height, top)


def _dots(points: Line, frame: Frame, scale: Scale) -> list[tuple[float, float]]:
    """Place the dots that lie on the axis; those above it are marked at its edge."""
    shown = [(x, y) for x, y in zip(*points) if scale.low <= y <= scale.high]
    return [(frame.steps(x), scale(y)) for x, y in shown]


def _outliers(record: RunRecord, frame: Frame, scale: Scale) -> list[str]:
    """Mark the losses above the axis at its upper edge, each stretch with its highest value.

    A loss that is not finite has a cross there.
    """
    steps = record.steps
    losses = floats(steps["loss"])
    above = (losses > scale.high) | ~np.isfinite(losses)
    parts = []
    for x, loss, step in _highest(frame, floats(steps["step"])[above], losses[above]):
        y = scale.end + 8  # below the alarms
        at = formatting.whole(step)
        if not np.isfinite(loss):
            cross = f"M{x - 3:.1f} {y + 1:.1f}l6 6m0 -6l-6 6"
            about = titled(f"step {at}: the loss was not finite")
            parts.append(element("path", about, d=cross, class_="cross"))
            continue
        about = titled(f"step {at}: training loss {formatting.number(loss)}, above the axis")
        arrow = f"M{x - 3.5:.1f} {y + 6:.1f}h7l-3.5 -6z"
        parts.append(element("path", about, d=arrow, class_="beyond-axis"))
        anchor = "end" if x + 5 + _LABEL > frame.width - RIGHT else "start"
        beside = x - 5 if anchor == "end" else x + 5
        parts.append(label(beside, y + 8, formatting.number(loss, 2), "outlier", anchor))
    return parts


def _highest(
    frame: Frame, steps: NDArray[np.float64], losses: NDArray[np.float64]
) -> list[tuple[float, float, float]]:
    """Return place, loss and step of the highest loss of each stretch as wide as a label."""
    order = np.argsort(steps, kind="stable")
    found: list[tuple[float, float, float]] = []
    first = -_LABEL
    for step, loss in zip(steps[order].tolist(), losses[order].tolist()):
        x = frame.steps.inside(step)
        if x - first > _LABEL + 8:
            first = x
            found.append((x, loss, step))
        elif not np.isfinite(loss) or loss > found[-1][1]:
            found[-1] = (x, loss, step)
            if np.isfinite(loss):
                continue
            found[-1] = (x, np.inf, step)
    return found


def _line(points: Line, frame: Frame, scale: Scale) -> list[tuple[float, float]]:
    """Place a line; where it is above the axis it leaves the picture."""
    high = 2 * scale.high - scale.low  # well above the picture, and still a short number
    return [(frame.steps(x), scale(min(y, high))) for x, y in zip(*points)]


def _kept(record: RunRecord, frame: Frame, scale: Scale) -> tuple[str, str]:
    """Draw dots and line of the kept history."""
    steps = floats(record.kept["step"])
    losses = record.kept["loss"]
    line = bucketed(steps, floats(smoothed(losses)), frame.points)
    points = cloud(steps, floats(losses), 2 * frame.points)
    smooth = polyline(_line(line, frame, scale), "smooth")
    return dots(_dots(points, frame, scale), "dot"), smooth


def _alone(record: RunRecord, frame: Frame, scale: Scale) -> list[str]:
    """Draw the smoothed loss of the run that was left alone, if there is one."""
    if record.left_alone is None:
        return []
    kept = record.left_alone.kept
    smooth = floats(smoothed(kept["loss"]))
    points = bucketed(floats(kept["step"]), smooth, frame.points)
    return [polyline(_line(points, frame, scale), "alone", titled("the same run, left alone"))]


def _lost(record: RunRecord, frame: Frame, scale: Scale) -> list[str]:
    """Draw faint dots and a smoothed line for each rolled-back stretch."""
    lost = record.steps[~record.steps["kept"]]
    lines = [group for _, group in lost.groupby("line", sort=False)]
    count = max(frame.points // max(len(lines), 1), 8)
    parts = []
    for group in lines[-LINES:]:
        steps = floats(group["step"])
        points = cloud(steps, floats(group["loss"]), count)
        line = bucketed(steps, floats(smoothed(group["loss"], 0.15)), count)
        parts.append(dots(_dots(points, frame, scale), "dot lost"))
        parts.append(polyline(_line(line, frame, scale), "lost"))
    return parts


def _validation(record: RunRecord, frame: Frame, scale: Scale) -> list[str]:
    points = [
        (v["step"], float(v["loss"]), v["kept"])
        for v in record.validation
        if formatting.finite(v["loss"]) is not None
    ]
    stride = max(len(points) // max(frame.points // 3, 1), 1)
    shown = [*points[:-1:stride], *points[-1:]]
    parts = []
    for step, loss, kept in shown:
        about = f"step {formatting.whole(step)}: validation loss {formatting.number(loss, 4)}"
        class_ = "validation"
        if not kept:
            about += ", rolled back"
            class_ += " lost"
        x = frame.steps.inside(step)
        y = scale.inside(loss)
        parts.append(element("circle", titled(about), cx=x, cy=y, r=3.2, class_=class_))
    return parts


def _alarms(record: RunRecord, frame: Frame, top: float) -> list[str]:
    """Draw alarms as triangles at the upper edge; a coloured band would hide the loss."""
    fired = [event for event in record.events if event["kind"] == "fired"]
    parts = []
    for event in fired[: int(frame.width - LEFT - RIGHT)]:
        x = frame.steps.inside(event["step"])
        index = formatting.number((event.get("detail") or {}).get("index"), 1)
        about = f"step {formatting.whole(event['step'])}: alarm, uncertainty index {index}"
        path = f"M{x - 5:.1f} {top - 2:.1f}h10l-5 8z"
        parts.append(element("path", titled(about), d=path, class_="alarm"))
    return parts
