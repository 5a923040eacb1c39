"""What a decision leaves behind: where it starts from, its event, and none of it where a killed run comes by again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainenv.checkpoints.store import CheckpointStore
from trainenv.records.decision_files import NAME
from trainenv.types import Event, Run, Verdict
from trainenv.verification import record


def start_of(run: Run, folder: Path, *, replayable: bool) -> dict[str, Any]:
    """What a replay starts from; with `replayable`, its exact checkpoint is in the decision's folder.

    Raises:
        UserError: it can't be saved.
    """
    if replayable:
        with CheckpointStore(folder, keep_last=1, moments="exact") as store:
            store.save(run.snapshot(), wait=True)
    checkpoint = "." if replayable else None
    return {
        "fingerprint": run.fingerprint(),
        "flagged": list(run.flagged),
        "checkpoint": checkpoint,
    }


def event_of(step: int, verdict: Verdict, where: Mapping[str, Any], faults: Sequence[str]) -> Event:
    """The event of a verified decision at `step`."""
    winner = verdict.winner
    detail = {
        **where,
        "accepted": winner is not None,
        "interventions": []
        if winner is None
        else [record.changes(one) for one in winner.interventions],
        "reason": verdict.reason,
    }
    return Event(step, "decision", detail | ({"faults": list(faults)} if faults else {}))


def failures(verdict: Verdict) -> list[str]:
    """Errors of branches that failed, each once."""
    errors = dict.fromkeys(
        b.outcome.error for b in verdict.branches if b.fate == "failed" and b.outcome.error
    )
    return [f"a branch failed: {error}" for error in errors]


def forget_decisions(folder: Path, number: int) -> None:
    """Take off record the decisions after one, of a run that was killed and now goes on from before them."""
    for path in folder.glob(f"{record.FOLDER}/*/{NAME}"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if int(json.loads(path.read_text(encoding="utf-8"))["number"]) > number:
                path.unlink()
