"""Records of decisions: the start of the branches, `branches/{step}/decision.json`, and events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainenv.agents.branching.decision import Decision, Proposal, RewindPoint, Skipped, Verified
from trainenv.checkpoints.store import CheckpointStore
from trainenv.records.decision_files import NAME
from trainenv.types import Event, Run, Verdict
from trainenv.verification import record


def save_start(point: RewindPoint, folder: Path, *, replayable: bool) -> dict[str, Any]:
    """Return the state that a replay starts from, as JSON values.

    Args:
        point: Rewind point that the branches start from.
        folder: Folder of the decision.
        replayable: True to save an exact checkpoint of the state in that folder.

    Raises:
        UserError: The checkpoint cannot be saved.
    """
    checkpoint = None
    if replayable:
        checkpoint = "."
        with CheckpointStore(folder, keep_last=1, moments="exact") as store:
            store.save(point.start.snapshot(), wait=True)
    return {
        "fingerprint": point.start.fingerprint(),
        "flagged": list(point.start.flagged),
        "checkpoint": checkpoint,
    }


def write_record(
    folder: Path, start: dict[str, Any], proposal: Proposal, verdict: Verdict, decision: Decision
) -> dict[str, Any]:
    """Write the record of a verified decision before it is committed, and return its contents.

    The fingerprint at the end is empty until `finish_record` writes it.

    Raises:
        OSError: The record cannot be written.
    """
    contents = record.record_of(
        verdict,
        proposal.plan,
        proposal.verification,
        control="recorded" if proposal.point.since else "trained",
    )
    contents |= {
        "number": decision.number,
        "why": decision.trigger,
        "at": decision.at,
        "step": proposal.point.step,
        "harm": decision.harm,
        "start": start,
        "decision_steps": proposal.decision_steps,
        "end": {"fingerprint": ""},
    }
    record.write(folder, contents)
    return contents


def finish_record(verified: Verified, run: Run) -> None:
    """Add the fingerprint of the run after the commit, unless the disk is full."""
    with suppress(OSError):
        end = {"fingerprint": run.fingerprint()}
        record.write(verified.folder, {**verified.record, "end": end})


def decision_event(
    verified: Verified, decision: Decision, run_folder: Path, faults: Sequence[str] = ()
) -> Event:
    """Return the event of a verified decision, with the faults of planner, branches and model."""
    verdict = verified.verdict
    accepted: list[dict[str, Any]] = []
    if verdict.winner is not None:
        accepted = [record.changes(one) for one in verdict.winner.interventions]
    detail = {
        "number": decision.number,
        "why": decision.trigger,
        "folder": str(verified.folder.relative_to(run_folder)),
        "accepted": verdict.winner is not None,
        "interventions": accepted,
        "reason": verdict.reason,
    }
    errors = dict.fromkeys(
        branch.outcome.error
        for branch in verdict.branches
        if branch.fate == "failed" and branch.outcome.error
    )
    failed = [f"a branch failed: {error}" for error in errors]
    if found := [*verified.proposal.plan.faults, *failed, *faults]:
        detail["faults"] = found
    return Event(verified.proposal.point.step, "decision", detail)


def skip_event(step: int, number: int, trigger: str, skipped: Skipped) -> Event:
    """Return the event of a decision that is not taken."""
    detail: dict[str, Any] = {"number": number, "why": trigger, "reason": skipped.reason}
    if skipped.fault:
        detail["fault"] = True
    return Event(step, "skipped", detail)


def forget_decisions(folder: Path, number: int) -> None:
    """Remove the records of decisions after a number: a resumed run takes these again."""
    for path in folder.glob(f"{record.FOLDER}/*/{NAME}"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if int(json.loads(path.read_text(encoding="utf-8"))["number"]) > number:
                path.unlink()
