"""The loss over steps: every step thinned to dots, smoothed, validation, what was rewound, alarms."""

from __future__ import annotations

import numpy as np

from trainenv.report.drawing import formatting
from trainenv.report.drawing.downsampling import Line, bucketed, cloud, floats, smoothed
from trainenv.report.drawing.panels import LEFT, RIGHT, Frame, axis, decimals, title
from trainenv.report.drawing.svg import Scale, clipped, dots, element, polyline, titled
from trainenv.report.run.run_record import RunRecord

LINES = 200  # that were left, the newest ones; more could not be told apart


def loss_panel(record: RunRecord, frame: Frame, top: float, height: float) -> str:
    """The panel, from `top` downwards: its title, then `height` pixels of plot."""
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
                *_lost(record, frame, scale),
                *_kept(record, frame, scale),
            ),
            *_validation(record, frame, scale),
            *_alarms(record, frame, top + 16),
        )
    )


def rewind_bands(record: RunRecord, frame: Frame, top: float, height: float) -> str:
    """A band from where the run was to where it went back to, for each rewind."""
    bands = []
    for event in record.events:
        to = formatting.finite((event.get("detail") or {}).get("to"))
        if event["kind"] != "rewind" or to is None:
            continue
        x = frame.steps.inside(to)
        end = frame.steps.inside(event["step"])
        said = titled(
            f"rewound from step {formatting.whole(event['step'])} to {formatting.whole(to)}"
        )
        bands.append(
            element(
                "rect", said, x=x, y=top, width=max(end - x, 1.0), height=height, class_="rewound"
            )
        )
    return "".join(bands)


def _scale(record: RunRecord, top: float, height: float) -> Scale:
    """From the lowest to the highest smoothed loss after the first tenth: what the run began with would flatten the rest.

    A loss that explodes is cut off too; what is above lies on the upper edge.
    """
    kept = record.kept
    late = kept[kept["step"] > record.last_step / 10]
    raw = (late if len(late) > 1 else kept)["loss"]
    values = floats(smoothed(raw).dropna())
    cloud = raw[np.isfinite(raw)].quantile([0.01, 0.98]).tolist() if len(values) else []
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
    usual = float(np.quantile(values, 0.9)) if len(values) else max(validation, default=1.0)
    highest = min(max([usual, *values, *later, *cloud]), lowest + 4 * max(usual - lowest, 0.02))
    lost = floats(smoothed(record.steps.loc[~record.steps["kept"], "loss"]).dropna())
    if len(lost):  # a spike that was rewound is what the picture is about
        highest = max(highest, min(float(lost.max()), highest + 0.8 * (highest - lowest)))
    room = 0.07 * max(highest - lowest, 0.02)
    return Scale(lowest - 1.6 * room, highest + room, top + height, top)


def _dots(points: Line, record: RunRecord, frame: Frame, scale: Scale) -> list[tuple[float, float]]:
    """Spikes out of the picture lie on its upper edge; those of the beginning are left out, for there all are above it."""
    early = record.last_step / 10
    shown = [(x, y) for x, y in zip(*points) if y >= scale.low and (y <= scale.high or x > early)]
    return [(frame.steps(x), scale.inside(y)) for x, y in shown]


def _line(points: Line, frame: Frame, scale: Scale) -> list[tuple[float, float]]:
    """A line that leaves the picture where its losses do: it is cut off at the edge when drawn."""
    high = 2 * scale.high - scale.low  # far enough above, near enough to keep the numbers short
    return [(frame.steps(x), scale(min(y, high))) for x, y in zip(*points)]


def _kept(record: RunRecord, frame: Frame, scale: Scale) -> tuple[str, str]:
    """Dots and line of the history that was kept."""
    steps = floats(record.kept["step"])
    losses = record.kept["loss"]
    line = bucketed(steps, floats(smoothed(losses)), frame.points)
    points = cloud(steps, floats(losses), 2 * frame.points)
    return dots(_dots(points, record, frame, scale), "dot"), polyline(
        _line(line, frame, scale), "smooth"
    )


def _lost(record: RunRecord, frame: Frame, scale: Scale) -> list[str]:
    """What was trained and then left, faint: dots and a line for each, smoothed from where it parted."""
    lost = record.steps[~record.steps["kept"]]
    lines = [group for _, group in lost.groupby("line", sort=False)]
    count = max(frame.points // max(len(lines), 1), 8)
    parts = []
    for group in lines[-LINES:]:
        steps = floats(group["step"])
        losses = group["loss"]
        parts.append(
            dots(_dots(cloud(steps, floats(losses), count), record, frame, scale), "dot lost")
        )
        parts.append(
            polyline(
                _line(bucketed(steps, floats(smoothed(losses, 0.15)), count), frame, scale), "lost"
            )
        )
    return parts


def _validation(record: RunRecord, frame: Frame, scale: Scale) -> list[str]:
    points = [
        (v["step"], float(v["loss"]), v["kept"])
        for v in record.validation
        if formatting.finite(v["loss"]) is not None
    ]
    stride = max(len(points) // max(frame.points // 3, 1), 1)
    shown = [*points[:-1:stride], *points[-1:]]
    return [
        element(
            "circle",
            titled(
                f"step {formatting.whole(step)}: validation loss {formatting.number(loss, 4)}{'' if kept else ', rewound'}"
            ),
            cx=frame.steps.inside(step),
            cy=scale.inside(loss),
            r=3.2,
            class_="validation" if kept else "validation lost",
        )
        for step, loss, kept in shown
    ]


def _alarms(record: RunRecord, frame: Frame, top: float) -> list[str]:
    """Triangles that hang from the upper edge; a colour band would hide the loss that they are about."""
    fired = [event for event in record.events if event["kind"] == "fired"]
    parts = []
    for event in fired[: int(frame.width - LEFT - RIGHT)]:
        x = frame.steps.inside(event["step"])
        index = (event.get("detail") or {}).get("index")
        said = titled(
            f"step {formatting.whole(event['step'])}: alarm, index {formatting.number(index, 1)}"
        )
        parts.append(
            element("path", said, d=f"M{x - 5:.1f} {top - 2:.1f}h10l-5 8z", class_="alarm")
        )
    return parts
