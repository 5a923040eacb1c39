"""Drive a run to the end of its budget: train, respond, evaluate, record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from trainenv.records.folder import RunFolder
from trainenv.run import TrainingRun
from trainenv.types import Event, Telemetry


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
    watch: Callable[[TrainingRun, Sequence[Telemetry]], None] = lambda run, window: None,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_every: int = 1000,
) -> dict[str, Any]:
    """Train until the budget is spent, the run diverges or `stop()` says so; returns the summary.

    When stopped, the newest snapshot is in the folder and `summary["ended"]` is `interrupted`: the run can be resumed.

    Args:
        run: the run; goes on from where it is.
        folder: where everything is recorded.
        responder: acts on the run after each block of telemetry.
        watch: called after each block, for showing progress.
        stop: asked after each block.
        checkpoint_every: steps between snapshots on disk.
    """
    started, taken = time.perf_counter(), 0
    validation = {"step": run.step, "loss": run.evaluate()}
    first = validation["loss"]
    folder.validation(run.step, first)
    fired = rewinds = 0
    ended = "budget spent"
    while not run.done:
        window = run.advance(_steps_to_boundary(run))
        taken += len(window)
        folder.telemetry.append(window, line=folder.line)
        for telemetry in window:
            if telemetry.reading.fired:
                fired += 1
                folder.event(Event(telemetry.step, "fired", {"index": telemetry.reading.index, "loss": telemetry.loss}))
        for event in responder.respond(run, window) if responder else []:
            rewinds += event.kind == "rewind"
            if event.kind == "rewind":
                folder.new_line(event.detail["to"])
            folder.event(event)
        watch(run, window)
        every = run.config.validation.every
        if run.done or (every and run.step % every == 0 and run.step != validation["step"]):
            validation = {"step": run.step, "loss": run.evaluate()}
            folder.validation(run.step, validation["loss"])
        if not math.isfinite(window[-1].loss) and run.step >= window[-1].step:
            ended = "diverged"
            folder.event(Event(run.step, "diverged"))
            break
        if stop():
            ended = "interrupted"
            folder.event(Event(run.step, "interrupted"))
            break
        if run.step // checkpoint_every > (run.step - len(window)) // checkpoint_every:
            folder.checkpoint(run.snapshot())
    folder.checkpoint(run.snapshot())
    seconds = time.perf_counter() - started
    summary = {
        "name": run.config.name,
        "seed": run.config.seed,
        "ended": ended,
        "step": run.step,
        "first_validation_loss": _number(first),
        "final_validation_loss": _number(validation["loss"] if ended != "diverged" else math.nan),
        "final_learning_rate": window[-1].lr if taken else None,
        "fired": fired,
        "rewinds": rewinds,
        "flops": run.ledger.as_dict(),
        "seconds": round(seconds, 2),
        "ms_per_step": round(1000 * seconds / max(taken, 1), 3),
        "folder": str(folder.path),
    }
    if ended != "interrupted":
        folder.finish(summary)
    return summary


def _steps_to_boundary(run: TrainingRun) -> int:
    """Steps to the end of the block, the next validation or the end of the budget, whichever comes first."""
    ends = [run.config.monitor.block, run.horizon.end - run.step]
    if every := run.config.validation.every:
        ends.append(every - run.step % every)
    return min(ends)


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
