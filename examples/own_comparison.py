"""A training method of your own, compared with ours at equal compute.

    trainenv compare quick --methods nothing,zclip,own_comparison:cut_early

runs the whole suite from this folder, as any installed method does that the entry-point group
`trainenv.methods` names. Here the same is done in Python, on one short scenario.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trainenv import Intervention, RunConfig, Telemetry, TrainingRun, train
from trainenv.compare import compare
from trainenv.compare.cells import measure_cell
from trainenv.compare.suite import suite_of
from trainenv.composition import METHODS
from trainenv.loop import Callback, CallbackResult
from trainenv.types import Event, Run

SUITE: dict[str, Any] = {
    "seeds": 2,
    "methods": ["nothing", "cut_early"],
    "overrides": {"validation": {"every": 20, "sequences": 16}, "schedule": {"warmup": 10}},
    "sizes": {"tiny": {"model": {"width": 16, "layers": 1, "heads": 1}, "steps": 60}},
    "corpora": {"bytes": {"name": "stdlib"}},
    "scenarios": {
        "high": {
            "group": "stressed",
            "fault": "LR × 10",
            "size": "tiny",
            "corpus": "bytes",
            "lr_factor": 10,
        }
    },
}


class Cut(Callback):
    """Cuts the learning rate to a quarter once, after the first quarter of the run."""

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult:
        """Act after each block of telemetry; the returned events are recorded."""
        if run.step < run.horizon.end / 4 or run.applied:
            return CallbackResult()
        run.apply(Intervention(lr_scale=0.25))
        return CallbackResult(events=[Event(run.step, "intervention", {"lr_scale": 0.25})])


def cut_early(
    config: RunConfig,
    folder: Path,
    watch: Callable[[Run, Sequence[Telemetry]], None],
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Train the run of a configuration: the form that every compared method has."""
    run = TrainingRun.from_config(config)
    return train(run, folder, callback=Cut(), watch=watch, stop=stop)


def main() -> None:
    """Compare the method with doing nothing, and print what it changes."""
    methods = {**METHODS, "cut_early": cut_early}
    with TemporaryDirectory() as folder:
        suite = suite_of(SUITE, "own")
        found = compare(Path(folder), suite, methods, measure_cell, workers=0)
    for row in found["methods"]:
        if row["group"] == "all":
            change = 100 * math.expm1(row["against_nothing"]["value"] or 0.0)
            print(f"{row['method']}: loss {row['final_loss']:.3f}, change {change:+.1f} %")


if __name__ == "__main__":
    main()
