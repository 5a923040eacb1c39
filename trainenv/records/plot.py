"""A picture of a run: loss and uncertainty index over steps, with events marked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainenv.records.run_folder import read_events, read_validation
from trainenv.records.telemetry_log import read_telemetry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "loss": "#9db4c9",
    "smooth": "#1f5a8a",
    "validation": "#c2410c",
    "index": "#5b3f8c",
    "threshold": "#888888",
}


def plot_run(folder: Path, path: Path) -> Path:
    """Draw the run in `folder` and write the picture to `path` (its ending says which format)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    everything = read_telemetry(folder)
    kept = read_telemetry(folder, kept_only=True)
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    losses, index = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))

    losses.plot(
        everything["step"],
        everything["loss"],
        ".",
        ms=2,
        color=_COLOURS["loss"],
        label="training, each step",
    )
    smooth = kept["loss"].where(np.isfinite(kept["loss"])).ewm(alpha=0.05).mean()
    losses.plot(kept["step"], smooth, color=_COLOURS["smooth"], lw=1.6, label="training, smoothed")
    validation = read_validation(folder)
    steps = [v["step"] for v in validation]
    values = [v["loss"] for v in validation]
    losses.plot(steps, values, "o", ms=4, color=_COLOURS["validation"], label="validation")
    losses.set_ylabel("loss, nats per token")
    finite = everything["loss"][np.isfinite(everything["loss"])]
    if len(finite):
        low = finite.min()
        high = finite.quantile(0.995)
        losses.set_ylim(low - 0.1, max(high, low + 0.5) + 0.3)

    index.plot(
        everything["step"],
        everything["index"].clip(-3, 15),
        ".",
        ms=2.5,
        color=_COLOURS["index"],
        label="uncertainty index",
    )
    threshold = kept["threshold"].where(np.isfinite(kept["threshold"]))
    index.plot(
        kept["step"], threshold, color=_COLOURS["threshold"], lw=1, ls="--", label="threshold"
    )
    index.set_ylabel("z")
    index.set_xlabel("optimizer steps")
    _mark_events(folder, losses, index)
    for axes in (losses, index):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.15)
        axes.legend(loc="upper right", frameon=False, fontsize=8)
    losses.set_title(folder.name, loc="left", fontsize=11, parse_math=False)  # a name may have a $
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _mark_events(folder: Path, losses: Axes, index: Axes) -> None:
    """Triggers as triangles under the index, rewinds as bands from where the run was to where it went back to."""
    events = read_events(folder)
    alarms = [e["step"] for e in events if e["kind"] == "fired"]
    if alarms:
        index.plot(
            alarms, [14.5] * len(alarms), "v", ms=7, color="#b91c1c", label="alarm", clip_on=False
        )
    for count, event in enumerate(e for e in events if e["kind"] == "rewind"):
        label = "rewound" if count == 0 else None
        losses.axvspan(
            event["detail"]["to"], event["step"], color="#b91c1c", alpha=0.10, lw=0, label=label
        )
        note = f"LR ×{event['detail']['lr_scale']:.2g}"
        losses.annotate(
            note,
            (event["detail"]["to"], 0.02),
            xycoords=("data", "axes fraction"),
            fontsize=7,
            color="#7f1d1d",
        )
