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

from trainenv.checkpoints import FOLDER
from trainenv.checkpoints.parts import store_of, with_parts
from trainenv.checkpoints.store import CheckpointStore
from trainenv.distributed.controlled_run import together
from trainenv.monitor.alarm_detail import Diagnosed
from trainenv.records.made_of import MadeOf, check_callback, same_kind
from trainenv.records.observer import Observer
from trainenv.records.processes import note_end, note_start
from trainenv.records.run_folder import CALLBACK_STATE, REWINDS, RunFolder, read_validation
from trainenv.records.run_summary import summary_of
from trainenv.tools.json_lines import plain
from trainenv.types import Event, Run, Snapshot, Telemetry, UserError, as_whole

Watch = Callable[[Run, Sequence[Telemetry]], None]
_METHODS = ("on_train_begin", "next_block", "on_block_end", "on_evaluate", "state_dict")


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

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult | None:
        """Act on the run after a block of telemetry.

        Called after each block, before validation and checkpoints. None means
        `CallbackResult()`: nothing has changed.
        """
        return None

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
    folder: RunFolder | str | Path,
    *,
    callback: Callback | None = None,
    watch: Watch = lambda run, window: None,
    stop: Callable[[], bool] = lambda: False,
    observers: Sequence[Observer] = (),
) -> dict[str, Any]:
    """Train until the budget is spent, the run diverges or `stop()` is true; return the summary.

    State is saved in the background as `config.checkpoints` says, so that a run that was killed can
    be resumed from the newest checkpoint. When `stop` ends the run, its exact state is saved and
    `summary["ended"]` is `interrupted`. Else the summary of a run with a test set has `test_loss`,
    measured once after the last step; it costs the run nothing.

    Args:
        run: Run to train, from the step it is at.
        folder: Folder that records the run, or the path of a new one.
        callback: Observer that may act on the run after each block of telemetry.
        watch: Function called with the run and its newest telemetry after each block.
        stop: Function asked after each block; true ends the training.
        observers: Receivers of what is recorded, such as experiment trackers.

    Raises:
        UserError: The folder is in use by another process, a checkpoint cannot be saved (before the
            first step if the disk shows it by then), or folder or callback are of a wrong kind.
    """
    _check_arguments(run, folder, callback)
    return together(run, lambda one: _train(one, folder, callback, watch, stop, observers))


def _train(
    run: Run,
    folder: RunFolder | str | Path,
    callback: Callback | None,
    watch: Watch,
    stop: Callable[[], bool],
    observers: Sequence[Observer],
) -> dict[str, Any]:
    """See `train`; of several processes that train the run, the first one is here."""
    if not isinstance(folder, RunFolder):
        folder = RunFolder.create(folder, run.config)
    started = time.perf_counter()
    with (
        folder.recording(run.step, run.config.checkpoints, store_of(run)) as store,
        folder.observed(run, observers) as ended_with,
    ):
        folder.flags = folder.flags or tuple(getattr(callback, "flags", ()))
        made = MadeOf.of(run, callback, folder.flags)
        if not store.steps():
            made.write(folder.path)
        note_start(folder.path, run)

        def save(**how: Any) -> None:
            """Save a checkpoint, and only then a record of the run's parts that has changed."""
            changed = MadeOf.read(folder.path) != made
            store.save(_state(run, folder, callback), **(how | {"wait": True} if changed else how))
            if changed:
                made.write(folder.path)

        if callback is not None:
            callback.on_train_begin(run, folder, store)
        if not run.done and run.step not in store.steps():
            save()  # a state to return to from the first step on
        ended, taken = _train_to_end(run, folder, store, save, callback, watch, stop)
        folder.telemetry.flush()
        try:
            store.wait()
        finally:  # even if the last save in the background has failed
            save(moments="exact", wait=True)
        seconds = time.perf_counter() - started
        summary = plain(summary_of(run, folder.path, ended, taken, seconds))
        assert isinstance(summary, dict)
        note_end(folder.path, run, ended, seconds)
        if ended != "interrupted":
            folder.finish(summary)
        ended_with(summary)
    return summary


def _check_arguments(run: object, folder: object, callback: object) -> None:
    """Check the kinds of the arguments of `train`, before anything is written."""
    if not hasattr(run, "advance") or isinstance(run, type):
        raise UserError(
            f"run must be a run, found {run!r:.80}; make one with TrainingRun.from_config('tiny')"
        )
    if not isinstance(folder, RunFolder | str | Path):
        raise UserError(
            f"folder must be a RunFolder or the path of a new folder, found {folder!r:.80}; "
            "give a path such as 'runs/mine'"
        )
    if callback is None:
        return
    if isinstance(callback, type) or (callable(callback) and not hasattr(callback, "on_block_end")):
        name = getattr(callback, "__name__", "it")
        raise UserError(f"callback must be a Callback, found {name} itself; call it: {name}(…)")
    missing = [name for name in _METHODS if not hasattr(callback, name)]
    if missing:
        raise UserError(
            f"callback must be a Callback, found {type(callback).__name__} without "
            f"{', '.join(missing)}; inherit from trainenv.loop.Callback, or wrap an agent as "
            "agents.AgentCallback(agent=…)"
        )


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
    path: Path,
    run: Run,
    callback: Callback | None = None,
    *,
    accept_changes: bool = False,
    at_most: int | None = None,
) -> tuple[RunFolder, Snapshot]:
    """Restore a run and its callback from the newest checkpoint of a folder, to be trained further.

    Args:
        path: Folder of the run.
        run: Run built from the folder's `config.yaml`.
        callback: Callback of the same kind and settings as when the run was recorded.
        accept_changes: True to resume even if text, configuration or callback have changed since.
            The run then ends with other bits than an uninterrupted one.
        at_most: Largest step of the checkpoint; None for the newest one.

    Raises:
        UserError: There is nothing to resume, the run has ended, or its parts have changed. Run and
            folder are unchanged.
    """
    folder, snapshot = RunFolder.resume(path, at_most=at_most)
    made = MadeOf.read(folder.path)
    now = MadeOf.of(run, callback)
    folder.flags = made.flags if made is not None else ()
    folder.changes = made.changes(now) if made is not None else None
    remembered = snapshot.state.get(CALLBACK_STATE)
    if not accept_changes:
        check_callback(folder.path, made, now, has_state=remembered is not None)
        if folder.changes:
            raise UserError(
                f"the run in {folder.path} can't be resumed as it was: "
                f"{'; '.join(folder.changes)}; undo that, or accept the changes (--accept-changes)"
            )
    then = None
    if made is not None:
        then = made.callback
    same = then is None or now.callback is None or same_kind(then, now.callback)
    state = {}
    if remembered is not None and same:
        state = json.loads(remembered)
    snapshot = with_parts(run, folder.path / FOLDER, snapshot)
    run.restore(snapshot)
    run.ledger.load(snapshot.state["ledger"])
    if callback is not None:
        try:
            callback.load_state_dict(state)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if not accept_changes:
                raise UserError(
                    f"the run in {folder.path} was steered by another callback than "
                    f"{now.callback_class}, which can't load its state ({error!r:.80}); resume it "
                    "with the callback that it had, or accept the change (--accept-changes)"
                ) from None
            callback.load_state_dict({})
            same = False
    if remembered is not None and made is None and (callback is None or not same):
        folder.changes = (
            "the callback that steered it is not recorded, "
            f"it is now steered by {now.callback_class}",
        )
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
    """Train to the end; return how the run ended and the number of trained steps."""
    taken = 0
    finite = True
    if not read_validation(folder.path):
        _evaluate(run, folder)
    while not run.done:
        before = run.step
        steps = _steps_to_boundary(run)
        if callback is not None:
            asked = as_whole(callback.next_block(run), "the return value of next_block", least=1)
            steps = min(steps, asked)
        window = run.advance(steps)
        taken += len(window)
        finite = _record(run, folder, window, finite)
        result = None
        if callback is not None:
            result = callback.on_block_end(run, window)
        result = result or CallbackResult()
        rewound = False
        for event in result.events:
            if event.kind == "rewind":
                folder.rewound(event.detail["to"])
                rewound = True
                before = event.detail["to"]
            folder.event(event)
        taken += len(result.kept)
        finite = _record(run, folder, result.kept, finite)
        window = list(result.kept) or window
        watch(run, window)
        if run.diverged:
            folder.event(Event(run.step, "diverged"))
            return "diverged", taken
        asked = run.config.validation
        if run.done or _passed(asked.every, before, run.step):
            loss = _evaluate(run, folder)
            if callback is not None:
                callback.on_evaluate(run.step, loss)
        if asked.full_every and (run.done or _passed(asked.full_every, before, run.step)):
            folder.full_validation(run.step, run.evaluate_fully())
        if stop() and not run.done:
            folder.event(Event(run.step, "interrupted"))
            return "interrupted", taken
        # After a rewind the older checkpoints lead nowhere: the new line is saved at once.
        if not run.done and (rewound or result.save or store.due(before, run.step)):
            folder.telemetry.flush()
            save()
    return "budget spent", taken


def _record(run: Run, folder: RunFolder, window: Sequence[Telemetry], finite: bool) -> bool:
    """Record steps. A stretch of non-finite losses is one event, at its first step.

    Args:
        run: Run after the steps. One that has diverged has an event of its own for that.
        folder: Folder of the run.
        window: Telemetry of its next steps.
        finite: True if the loss of the step before them was finite.

    Returns:
        True if the loss of the last step is finite.
    """
    folder.steps(window)
    diagnosis = run.diagnosis if isinstance(run, Diagnosed) else lambda step: {}
    for telemetry in window:
        before = finite
        finite = math.isfinite(telemetry.loss)
        if before and not finite and not run.diverged:
            folder.event(Event(telemetry.step, "non_finite", {"reason": "the loss is not finite"}))
        if telemetry.reading.fired:
            detail: dict[str, Any] = {"index": telemetry.reading.index, "loss": telemetry.loss}
            detail |= diagnosis(telemetry.step)
            folder.event(Event(telemetry.step, "fired", detail))
    return finite


def _evaluate(run: Run, folder: RunFolder) -> float:
    loss = run.evaluate()
    folder.validation(run.step, loss)
    return loss


def _passed(every: int, before: int, now: int) -> bool:
    """Tell whether a multiple of `every` was reached since step `before`; never for 0."""
    return every > 0 and now // every > before // every


def _steps_to_boundary(run: Run) -> int:
    """Return the steps to the next end of a block, checkpoint, validation or budget."""
    saved = run.config.checkpoints.every
    ends = [run.config.monitor.block, run.horizon.end - run.step, saved - run.step % saved]
    asked = run.config.validation
    ends += [every - run.step % every for every in (asked.every, asked.full_every) if every]
    return int(min(ends))
