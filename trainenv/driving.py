"""Drive a run to the end of its budget: train, respond, evaluate, record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from trainenv.checkpoints.store import CheckpointStore
from trainenv.records.folder import RunFolder, read_events, read_validation
from trainenv.records.lines import plain
from trainenv.run import TrainingRun
from trainenv.types import Event, Telemetry

Watch = Callable[[TrainingRun, Sequence[Telemetry]], None]


class Responder(Protocol):
    """Whatever acts on a run while it trains. Called by `drive` after every block of telemetry; may rewind and intervene."""

    def respond(self, run: TrainingRun, window: Sequence[Telemetry], /) -> list[Event]:
        """What was done, if anything. An event of kind `rewind` says that history starts anew from its step."""
        ...


def drive(
    run: TrainingRun,
    folder: RunFolder,
    *,
    responder: Responder | None = None,
    watch: Watch = lambda run, window: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train until the budget is spent, the run diverges or `stop()` says so; returns the summary.

    When stopped, the exact state is in the folder and `summary["ended"]` is `interrupted`: the run can be resumed. While it
    trains, `config.checkpoints` says when its state is saved, in the background, and how closely: killed at any moment, the run
    can be resumed from the last of these.

    Args:
        run: the run; goes on from where it is.
        folder: where everything is recorded.
        responder: acts on the run after each block of telemetry.
        watch: called after each block, for showing progress.
        stop: asked after each block.

    Raises:
        UserError: another process records in the folder, or a checkpoint could not be saved; before the first step, if the
            disk shows it then.
    """
    started = time.perf_counter()
    with folder.recording(run.step, run.config.checkpoints) as store:
        if not run.done and run.step not in store.steps():
            store.save(run.snapshot())  # there is something to go back to from the first step on
        ended, taken = _train(run, folder, store, responder, watch, stop)
        folder.telemetry.flush()
        try:
            store.wait()
        finally:  # that the last save failed is no reason not to try this one
            store.save(run.snapshot(), moments="exact", wait=True)
    summary = plain(_summary(run, folder, ended, taken, time.perf_counter() - started))
    assert isinstance(summary, dict)
    if ended != "interrupted":
        folder.finish(summary)
    return summary


def _train(
    run: TrainingRun,
    folder: RunFolder,
    store: CheckpointStore,
    responder: Responder | None,
    watch: Watch,
    stop: Callable[[], bool],
) -> tuple[str, int]:
    """How it ended, and how many steps were trained."""
    taken = 0
    evaluated = -1, -1  # line and step
    if not read_validation(folder.path):
        evaluated = _evaluate(run, folder)
    while not run.done:
        before = run.step
        window = run.advance(_steps_to_boundary(run))
        taken += len(window)
        folder.telemetry.append(window, line=folder.line)
        for telemetry in window:
            if telemetry.reading.fired:
                folder.event(Event(telemetry.step, "fired", {"index": telemetry.reading.index, "loss": telemetry.loss}))
        rewound = False
        for event in responder.respond(run, window) if responder else []:
            if event.kind == "rewind":
                folder.new_line(event.detail["to"])
                rewound = True
            folder.event(event)
        watch(run, window)
        if not rewound and not math.isfinite(window[-1].loss):
            folder.event(Event(run.step, "diverged"))
            return "diverged", taken
        every = run.config.validation.every
        if run.done or (every and run.step % every == 0 and (folder.line, run.step) != evaluated):
            evaluated = _evaluate(run, folder)
        if stop() and not run.done:
            folder.event(Event(run.step, "interrupted"))
            return "interrupted", taken
        # What a rewind has left behind is not to be gone on with, so the new line is saved at once.
        if not run.done and (rewound or store.due(before, run.step)):
            folder.telemetry.flush()
            store.save(run.snapshot())
    return "budget spent", taken


def _evaluate(run: TrainingRun, folder: RunFolder) -> tuple[int, int]:
    folder.validation(run.step, run.evaluate())
    return folder.line, run.step


def _summary(run: TrainingRun, folder: RunFolder, ended: str, taken: int, seconds: float) -> dict[str, Any]:
    """What became of the run. Alarms and rewinds are counted over the whole of its folder, lines that were left included."""
    kinds = [event["kind"] for event in read_events(folder.path)]
    losses = [validation["loss"] for validation in read_validation(folder.path)]
    return {
        "name": run.config.name,
        "seed": run.config.seed,
        "ended": ended,
        "step": run.step,
        "first_validation_loss": losses[0],
        "final_validation_loss": None if ended == "diverged" else losses[-1],
        "final_learning_rate": run.optimizer.param_groups[0]["lr"],
        "fired": kinds.count("fired"),
        "rewinds": kinds.count("rewind"),
        "flops": run.ledger.as_dict(),
        "seconds": round(seconds, 2),
        "ms_per_step": round(1000 * seconds / max(taken, 1), 3),
        "folder": str(folder.path),
    }


def _steps_to_boundary(run: TrainingRun) -> int:
    """Steps to the end of the block, the next checkpoint, the next validation or the end of the budget, whichever comes first."""
    saved = run.config.checkpoints.every
    ends = [run.config.monitor.block, run.horizon.end - run.step, saved - run.step % saved]
    if every := run.config.validation.every:
        ends.append(every - run.step % every)
    return min(ends)
