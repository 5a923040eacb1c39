"""Train a run to the end of its budget: train, call back, evaluate, record."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainenv.checkpoints.store import CheckpointStore
from trainenv.records.faults import faults_of
from trainenv.records.made_of import MadeOf, check_callback, same_kind
from trainenv.records.run_folder import REWINDS, RunFolder, read_events, read_validation
from trainenv.tools.json_lines import plain
from trainenv.types import Event, Run, Snapshot, Telemetry, UserError

Watch = Callable[[Run, Sequence[Telemetry]], None]
# part of a snapshot: the state of the callback, as JSON; callbacks were once called so
CALLBACK_STATE = "responder"


@dataclass(frozen=True, kw_only=True)
class CallbackResult:
    """Changes that a callback has made to the run.

    Attributes:
        events: Events to record, in order. One of kind `rewind` starts a new line of history from
            the step `to` of its detail.
        kept: Telemetry of steps that the callback has trained itself and that are now part of the
            run, after the rewind if there was one.
        save: True to save a checkpoint now, whether one is due or not.
    """

    events: Sequence[Event] = ()
    kept: Sequence[Telemetry] = ()
    save: bool = False


class Callback(Protocol):
    """Observer of a run while it trains, which may rewind it and intervene.

    Inherit from it and override what you need.

    `train` calls the methods in this order:

        resume ──► load_state_dict(state)            only if the run is resumed
        train  ──► on_train_begin(run, folder, store)
                   ┌─► next_block(run)               steps to train before the next call
                   │   … the run trains …
                   │   on_block_end(run, window)     may rewind, intervene, and train steps itself
                   │   on_evaluate(step, loss)       only where a validation is due
                   └── state_dict()                  only where a checkpoint is saved
    """

    def on_train_begin(self, run: Run, folder: RunFolder, store: CheckpointStore, /) -> None:
        """Prepare for a run.

        Called once before the first step; in a resumed run after `load_state_dict`.
        """
        return

    def next_block(self, run: Run, /) -> int:
        """Return the largest number of steps to train before the next `on_block_end`, at least 1.

        Called before each block.
        """
        block: int = run.config.monitor.block
        return block

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult:
        """Act on the run after a block of telemetry.

        Called after each block, before validation and checkpoints.
        """
        ...

    def on_evaluate(self, step: int, loss: float, /) -> None:
        """Take in a validation loss in nats per token. Called after each validation of the run."""
        return

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values.

        Called for every checkpoint, so that a resumed run ends with the same bits.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take on the state that `state_dict` returned.

        Called before `on_train_begin` when a run is resumed.
        """
        return


def train(
    run: Run,
    folder: RunFolder,
    *,
    callback: Callback | None = None,
    watch: Watch = lambda run, window: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train until the budget is spent, the run diverges or `stop()` says so; returns the summary.

    When stopped, the exact state is in the folder and `summary["ended"]` is `interrupted`: the run
    can be resumed. While it trains, `config.checkpoints` says when its state is saved, in the
    background, and how closely: killed at any moment, the run can be resumed from the last of
    these.

    Args:
        run: the run; goes on from where it is.
        folder: where everything is recorded.
        callback: acts on the run after each block of telemetry.
        watch: called after each block, for showing progress.
        stop: asked after each block.

    Raises:
        UserError: another process records in the folder, or a checkpoint could not be saved; before
            the first step, if the disk shows it then. Or folder or callback are something else.
    """
    if not isinstance(folder, RunFolder):
        raise UserError(
            f"folder must be a RunFolder, found {folder!r:.80}; take RunFolder.create(path, run.config)"
        )
    if callback is not None and not hasattr(callback, "on_block_end"):
        raise UserError(
            f"callback must be a Callback, found {callback!r:.80}; an agent goes in as agents.AgentCallback(agent=…)"
        )
    started = time.perf_counter()
    with folder.recording(run.step, run.config.checkpoints) as store:
        made = MadeOf.of(run, callback, folder.flags)
        if not store.steps():
            made.write(folder.path)

        def save(**how: Any) -> None:
            """The record is true of the newest checkpoint: one that has changed waits for the first that it is true of."""
            changed = MadeOf.read(folder.path) != made
            store.save(_state(run, folder, callback), **(how | {"wait": True} if changed else how))
            if changed:
                made.write(folder.path)

        if callback is not None:
            callback.on_train_begin(run, folder, store)
        if not run.done and run.step not in store.steps():
            save()  # there is something to go back to from the first step on
        ended, taken = _train_to_end(run, folder, store, save, callback, watch, stop)
        folder.telemetry.flush()
        try:
            store.wait()
        finally:  # that the last save failed is no reason not to try this one
            save(moments="exact", wait=True)
    summary = plain(_summary(run, folder, ended, taken, time.perf_counter() - started))
    assert isinstance(summary, dict)
    if ended != "interrupted":
        folder.finish(summary)
    return summary


def drive(
    run: Run, folder: RunFolder, *, responder: Callback | None = None, **rest: Any
) -> dict[str, Any]:
    """Call `train`, by its name and argument of earlier versions."""
    warnings.warn(
        "trainenv.drive(…, responder=…) is now trainenv.train(…, callback=…)",
        DeprecationWarning,
        stacklevel=2,
    )
    return train(run, folder, callback=responder, **rest)


def _state(run: Run, folder: RunFolder, callback: Callback | None) -> Snapshot:
    beside: dict[str, Any] = {REWINDS: folder.rewinds} if folder.rewinds else {}
    if callback is not None and (remembered := callback.state_dict()):
        beside[CALLBACK_STATE] = json.dumps(plain(remembered))
    return run.snapshot(beside)


def resume(
    path: Path, run: Run, callback: Callback | None = None, *, accept_changes: bool = False
) -> tuple[RunFolder, Snapshot]:
    """Bring a run, and whoever steers it, to where the run recorded in a folder was saved last; then `train` them on.

    Args:
        path: the run's folder.
        run: built from the folder's `config.yaml`.
        callback: as it was when the run was recorded.
        accept_changes: whether to go on where text, configuration or callback have changed since:
            not to the bit as it was.

    Raises:
        UserError: there is nothing to resume, the run had ended, or what it is made of has changed.
            Nothing was changed.
    """
    folder, snapshot = RunFolder.resume(path)
    made = MadeOf.read(folder.path)
    now = MadeOf.of(run, callback)
    folder.flags = made.flags if made is not None else ()
    folder.changes = made.changes(now) if made is not None else None
    remembered = snapshot.state.get(CALLBACK_STATE)
    if not accept_changes:
        check_callback(folder.path, made, now, has_state=remembered is not None)
        if folder.changes:
            raise UserError(
                f"the run in {folder.path} can't go on as it was: {'; '.join(folder.changes)}; "
                "put that back, or accept the changes (--accept-changes)"
            )
    then = made.callback if made is not None else None
    same = then is None or now.callback is None or same_kind(then, now.callback)
    state = json.loads(remembered) if remembered is not None and same else {}
    run.restore(snapshot)
    run.ledger.load(snapshot.state["ledger"])
    if callback is not None:
        try:
            callback.load_state_dict(state)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if not accept_changes:
                raise UserError(
                    f"the run in {folder.path} was steered by another callback than {now.callback_class}, which can't take on "
                    f"what that remembered ({error!r:.80}); resume it with the callback that it had, or accept the change "
                    "(--accept-changes)"
                ) from None
            callback.load_state_dict({})
            same = False
    if remembered is not None and made is None and (callback is None or not same):
        folder.changes = (f"who steered it is on no record, it is steered by {now.callback_class}",)
    return folder, snapshot


def _train_to_end(
    run: Run,
    folder: RunFolder,
    store: CheckpointStore,
    save: Callable[[], None],
    callback: Callback | None,
    watch: Watch,
    stop: Callable[[], bool],
) -> tuple[str, int]:
    """How it ended, and how many steps were trained."""
    taken = 0
    sound = True
    if not read_validation(folder.path):
        _evaluate(run, folder)
    while not run.done:
        before = run.step
        steps = _steps_to_boundary(run)
        window = run.advance(min(steps, callback.next_block(run)) if callback else steps)
        taken += len(window)
        sound = _record(folder, window, sound, diverged=run.diverged)
        response = callback.on_block_end(run, window) if callback else CallbackResult()
        rewound = False
        for event in response.events:
            if event.kind == "rewind":
                folder.rewound(event.detail["to"])
                rewound = True
                before = event.detail["to"]
            folder.event(event)
        taken += len(response.kept)
        sound = _record(folder, response.kept, sound, diverged=run.diverged)
        window = list(response.kept) or window
        watch(run, window)
        if run.diverged:
            folder.event(Event(run.step, "diverged"))
            return "diverged", taken
        every = run.config.validation.every
        if run.done or (every and run.step // every > before // every):
            loss = _evaluate(run, folder)
            if callback is not None:
                callback.on_evaluate(run.step, loss)
        if stop() and not run.done:
            folder.event(Event(run.step, "interrupted"))
            return "interrupted", taken
        # What a rewind has left behind is not to be gone on with, so the new line is saved at once.
        if not run.done and (rewound or response.save or store.due(before, run.step)):
            folder.telemetry.flush()
            save()
    return "budget spent", taken


def _record(folder: RunFolder, window: Sequence[Telemetry], sound: bool, *, diverged: bool) -> bool:
    """Put steps on record. A stretch of losses that are not finite is noted once, where it begins.

    Args:
        folder: of the run.
        window: its next steps.
        sound: whether the loss of the step before them was finite.
        diverged: whether the run has, which is noted by itself.

    Returns:
        Whether the last of them was.
    """
    folder.telemetry.append(window, line=folder.line)
    for telemetry in window:
        before = sound
        sound = math.isfinite(telemetry.loss)
        if before and not sound and not diverged:
            folder.event(Event(telemetry.step, "non_finite", {"reason": "the loss is not finite"}))
        if telemetry.reading.fired:
            folder.event(
                Event(
                    telemetry.step,
                    "fired",
                    {"index": telemetry.reading.index, "loss": telemetry.loss},
                )
            )
    return sound


def _evaluate(run: Run, folder: RunFolder) -> float:
    loss = run.evaluate()
    folder.validation(run.step, loss)
    return loss


def _summary(run: Run, folder: RunFolder, ended: str, taken: int, seconds: float) -> dict[str, Any]:
    """What became of the run.

    Triggers and rewinds are counted over the whole of its folder, lines that were left included.
    """
    events = read_events(folder.path)
    kinds = [event["kind"] for event in events]
    losses = [validation["loss"] for validation in read_validation(folder.path)]
    return {
        "name": run.config.name,
        "seed": run.config.seed,
        "uniform_loss": run.uniform_loss,
        "fingerprint": run.fingerprint(),
        "ended": ended,
        "step": run.step,
        "first_validation_loss": losses[0],
        "final_validation_loss": None if ended == "diverged" else losses[-1],
        "final_learning_rate": run.optimizer.param_groups[0]["lr"],
        "fired": kinds.count("fired"),
        "rewinds": kinds.count("rewind"),
        "faults": faults_of(events),
        "flops": run.ledger.as_dict(),
        "seconds": round(seconds, 2),
        "ms_per_step": round(1000 * seconds / max(taken, 1), 3),
        "folder": str(folder.path),
    }


def _steps_to_boundary(run: Run) -> int:
    """Steps to the end of the block, the next checkpoint, the next validation or the end of the budget, whichever comes first."""
    saved = run.config.checkpoints.every
    ends = [run.config.monitor.block, run.horizon.end - run.step, saved - run.step % saved]
    if every := run.config.validation.every:
        ends.append(every - run.step % every)
    return int(min(ends))
