"""Drive a run to the end of its budget: train, respond, evaluate, record."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainenv.checkpoints.store import CheckpointStore
from trainenv.records.faults import faults_of
from trainenv.records.made_of import MadeOf, check_responder, same_kind
from trainenv.records.run_folder import REWINDS, RunFolder, read_events, read_validation
from trainenv.run import TrainingRun
from trainenv.tools.json_lines import plain
from trainenv.types import Event, Snapshot, Telemetry, UserError

Watch = Callable[[TrainingRun, Sequence[Telemetry]], None]
RESPONDER = "responder"  # part of a snapshot: what the responder remembers, as JSON


@dataclass(frozen=True, kw_only=True)
class Response:
    """What a responder has done.

    Attributes:
        events: in order. One of kind `rewind` says that history starts anew from the step `to` of its detail.
        kept: steps that it has trained itself, after the rewind if there was one, and that the run now stands behind.
        save: whether the state is to be saved, whether a checkpoint is due or not.
    """

    events: Sequence[Event] = ()
    kept: Sequence[Telemetry] = ()
    save: bool = False


class Responder(Protocol):
    """Whatever acts on a run while it trains. Called by `drive` after every block of telemetry; may rewind and intervene.

    Inherit from it: what is not needed then does nothing.
    """

    def begin(self, run: TrainingRun, folder: RunFolder, store: CheckpointStore, /) -> None:
        """Called before the first step, also of a run that goes on (after `load_state_dict`)."""
        return

    def within(self, run: TrainingRun, /) -> int:
        """Steps after which it wants to be asked, at least 1, if the block of telemetry does not end sooner."""
        return run.config.monitor.block

    def respond(self, run: TrainingRun, window: Sequence[Telemetry], /) -> Response:
        """Called after each block of telemetry."""
        ...

    def validated(self, step: int, loss: float, /) -> None:
        """Called after each validation of the run."""
        return

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as JSON values: saved in every checkpoint, so that a run that was killed goes on to the same end."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take on what `state_dict` gave."""
        return


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
            disk shows it then. Or folder or responder are something else.
    """
    if not isinstance(folder, RunFolder):
        raise UserError(f"folder must be a RunFolder, found {folder!r:.80}; take RunFolder.create(path, run.config)")
    if responder is not None and not hasattr(responder, "begin"):
        raise UserError(f"responder must be a Responder, found {responder!r:.80}; an agent goes in as agents.Acting(agent=…)")
    started = time.perf_counter()
    with folder.recording(run.step, run.config.checkpoints) as store:
        made = MadeOf.of(run, responder, folder.flags)
        if not store.steps():
            made.write(folder.path)

        def save(**how: Any) -> None:
            """The record is true of the newest checkpoint: one that has changed waits for the first that it is true of."""
            changed = MadeOf.read(folder.path) != made
            store.save(_state(run, folder, responder), **(how | {"wait": True} if changed else how))
            if changed:
                made.write(folder.path)

        if responder is not None:
            responder.begin(run, folder, store)
        if not run.done and run.step not in store.steps():
            save()  # there is something to go back to from the first step on
        ended, taken = _train(run, folder, store, save, responder, watch, stop)
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


def _state(run: TrainingRun, folder: RunFolder, responder: Responder | None) -> Snapshot:
    beside: dict[str, Any] = {REWINDS: folder.rewinds} if folder.rewinds else {}
    if responder is not None and (remembered := responder.state_dict()):
        beside[RESPONDER] = json.dumps(plain(remembered))
    return run.snapshot(beside)


def resume(
    path: Path, run: TrainingRun, responder: Responder | None = None, *, accept_changes: bool = False
) -> tuple[RunFolder, Snapshot]:
    """Bring a run, and whoever steers it, to where the run recorded in a folder was saved last; then `drive` them on.

    Args:
        path: the run's folder.
        run: built from the folder's `config.yaml`.
        responder: as it was when the run was recorded.
        accept_changes: whether to go on where text, configuration or responder have changed since: not to the bit as it was.

    Raises:
        UserError: there is nothing to resume, the run had ended, or what it is made of has changed. Nothing was changed.
    """
    folder, snapshot = RunFolder.resume(path)
    made, now = MadeOf.read(folder.path), MadeOf.of(run, responder)
    folder.flags = made.flags if made is not None else ()
    folder.changes = made.changes(now) if made is not None else None
    remembered = snapshot.state.get(RESPONDER)
    if not accept_changes:
        check_responder(folder.path, made, now, has_state=remembered is not None)
        if folder.changes:
            raise UserError(
                f"the run in {folder.path} can't go on as it was: {'; '.join(folder.changes)}; "
                "put that back, or accept the changes (--accept-changes)"
            )
    then = made.responder if made is not None else None
    same = then is None or now.responder is None or same_kind(then, now.responder)
    state = json.loads(remembered) if remembered is not None and same else {}
    run.restore(snapshot)
    run.ledger.load(snapshot.state["ledger"])
    if responder is not None:
        try:
            responder.load_state_dict(state)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if not accept_changes:
                raise UserError(
                    f"the run in {folder.path} was steered by another responder than {now.responder_class}, which can't take on "
                    f"what that remembered ({error!r:.80}); resume it with the responder that it had, or accept the change "
                    "(--accept-changes)"
                ) from None
            responder.load_state_dict({})
            same = False
    if remembered is not None and made is None and (responder is None or not same):
        folder.changes = (f"who steered it is on no record, it is steered by {now.responder_class}",)
    return folder, snapshot


def _train(
    run: TrainingRun,
    folder: RunFolder,
    store: CheckpointStore,
    save: Callable[[], None],
    responder: Responder | None,
    watch: Watch,
    stop: Callable[[], bool],
) -> tuple[str, int]:
    """How it ended, and how many steps were trained."""
    taken, sound = 0, True
    if not read_validation(folder.path):
        _evaluate(run, folder)
    while not run.done:
        before = run.step
        steps = _steps_to_boundary(run)
        window = run.advance(min(steps, responder.within(run)) if responder else steps)
        taken += len(window)
        sound = _record(folder, window, sound, diverged=run.diverged)
        response = responder.respond(run, window) if responder else Response()
        rewound = False
        for event in response.events:
            if event.kind == "rewind":
                folder.rewound(event.detail["to"])
                rewound, before = True, event.detail["to"]
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
            if responder is not None:
                responder.validated(run.step, loss)
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
        before, sound = sound, math.isfinite(telemetry.loss)
        if before and not sound and not diverged:
            folder.event(Event(telemetry.step, "non_finite", {"reason": "the loss is not finite"}))
        if telemetry.reading.fired:
            folder.event(Event(telemetry.step, "fired", {"index": telemetry.reading.index, "loss": telemetry.loss}))
    return sound


def _evaluate(run: TrainingRun, folder: RunFolder) -> float:
    loss = run.evaluate()
    folder.validation(run.step, loss)
    return loss


def _summary(run: TrainingRun, folder: RunFolder, ended: str, taken: int, seconds: float) -> dict[str, Any]:
    """What became of the run. Alarms and rewinds are counted over the whole of its folder, lines that were left included."""
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


def _steps_to_boundary(run: TrainingRun) -> int:
    """Steps to the end of the block, the next checkpoint, the next validation or the end of the budget, whichever comes first."""
    saved = run.config.checkpoints.every
    ends = [run.config.monitor.block, run.horizon.end - run.step, saved - run.step % saved]
    if every := run.config.validation.every:
        ends.append(every - run.step % every)
    return min(ends)
