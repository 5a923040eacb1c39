"""Decision records: the start of the branches, `branches/{step}/decision.json`, and events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

from trainenv.agents.branching.decision import Decision, Proposal, Skipped
from trainenv.checkpoints.store import CheckpointStore
from trainenv.records.decision_files import NAME
from trainenv.rollouts.executor import Rollouts
from trainenv.types import Event, Run, Telemetry, Verdict
from trainenv.verification import record
from trainenv.verification.verify import adopt


@dataclass(kw_only=True)
class DecisionRecord:
    """Record of a decision, written once it is verified and again once it is committed.

    Attributes:
        run_folder: Folder of the run.
        folder: Folder of the decision.
        decision: Decision.
        proposal: Branches that are verified.
        start: State that a replay starts from, as JSON values.
        contents: Contents of the file, as JSON values; empty until it is written.
    """

    run_folder: Path
    folder: Path
    decision: Decision
    proposal: Proposal
    start: dict[str, Any]
    contents: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def begin(
        cls, run_folder: Path, decision: Decision, proposal: Proposal, *, replayable: bool
    ) -> DecisionRecord:
        """Save the state that a replay starts from.

        Args:
            run_folder: Folder of the run.
            decision: Decision.
            proposal: Branches that are to be verified.
            replayable: True to save an exact checkpoint of their start in the decision's folder.

        Raises:
            UserError: The checkpoint cannot be saved.
        """
        point = proposal.point
        folder = record.folder_of(run_folder, point.step, decision.number)
        checkpoint = None
        if replayable:
            checkpoint = "."
            with CheckpointStore(folder, keep_last=1, moments="exact") as store:
                store.save(point.start.snapshot(), wait=True)
        start = {
            "fingerprint": point.start.fingerprint(),
            "flagged": list(point.start.flagged),
            "checkpoint": checkpoint,
        }
        return cls(
            run_folder=run_folder,
            folder=folder,
            decision=decision,
            proposal=proposal,
            start=start,
        )

    def write(self, verdict: Verdict) -> None:
        """Write the verdict, before it is committed.

        Raises:
            OSError: The file cannot be written.
        """
        proposal = self.proposal
        self.contents = record.record_of(
            verdict,
            proposal.plan,
            proposal.verification,
            control="recorded" if proposal.point.since else "trained",
        )
        self.contents |= {
            "number": self.decision.number,
            "why": self.decision.trigger,
            "at": self.decision.at,
            "step": proposal.point.step,
            "harm": self.decision.harm,
            "start": self.start,
            "decision_steps": proposal.decision_steps,
            "end": {"fingerprint": ""},
        }
        record.write(self.folder, self.contents)

    def finish(self, run: Run) -> None:
        """Add the fingerprint of the run after the commit, unless the disk is full."""
        self.contents["end"] = {"fingerprint": run.fingerprint()}
        with suppress(OSError):
            record.write(self.folder, self.contents)

    def discard(self) -> None:
        """Remove the folder of a decision that is not taken."""
        rmtree(self.folder, ignore_errors=True)

    def event(self, verdict: Verdict, faults: Sequence[str] = ()) -> Event:
        """Return the event of a verified decision.

        Args:
            verdict: Judgement of its branches.
            faults: Faults besides those of the planner and the branches.
        """
        accepted: list[dict[str, Any]] = []
        if verdict.winner is not None:
            accepted = [record.changes(one) for one in verdict.winner.interventions]
        detail = {
            "number": self.decision.number,
            "why": self.decision.trigger,
            "folder": str(self.folder.relative_to(self.run_folder)),
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
        if found := [*self.proposal.plan.faults, *failed, *faults]:
            detail["faults"] = found
        return Event(self.proposal.point.step, "decision", detail)


@dataclass(frozen=True, kw_only=True)
class Verified:
    """Trained, judged and recorded branches, none of which is committed yet.

    Attributes:
        proposal: Proposal that was verified.
        rollouts: Trained branches.
        verdict: Judgement of each branch.
        record: Record of the decision.
    """

    proposal: Proposal
    rollouts: Rollouts
    verdict: Verdict
    record: DecisionRecord

    def adopt(self, run: Run) -> tuple[Telemetry, ...]:
        """Make the run the accepted branch, or else the control, and return its new steps.

        The run stays as it is if that fails.
        """
        before = run.snapshot()
        try:
            return adopt(self.rollouts, self.verdict)
        except BaseException:
            run.restore(before)
            raise


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
