"""Key figures of a run, for the head of its report and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from trainenv.records.decision_files import accepted_branch
from trainenv.report.drawing import formatting
from trainenv.report.run.run_record import RunRecord
from trainenv.training.ledger import wasted_share


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Key figures of a run; None for those that are not known (yet).

    Attributes:
        ended: State of the run in words.
        steps: Optimizer steps of the kept history.
        budget: Optimizer steps of the configuration.
        loss: Last validation loss of the kept history, nats per token; None if the run diverged.
        full_loss: Last loss of the whole validation part, nats per token.
        test_loss: Loss of the test part after the last step, nats per token.
        alarms: Number of alarms, those in rolled-back steps included.
        rewinds: Number of rollbacks.
        verified: Number of decisions whose branches were trained.
        accepted: Number of these decisions in which a branch was accepted.
        flops: FLOPs by purpose.
        total_flops: FLOPs of all purposes.
        wasted: FLOPs of rolled-back steps and discarded branches, as a share of all.
        drafting: FLOPs of planning, as a share of all.
        lr_scale: Factor on the scheduled learning rate at the last kept step.
        finished: True if the run has ended: its budget is spent, or it diverged.
        diverged: True if the run diverged.
    """

    ended: str
    steps: int
    budget: int | None
    loss: float | None
    full_loss: float | None
    test_loss: float | None
    alarms: int
    rewinds: int
    verified: int
    accepted: int
    flops: Mapping[str, float]
    total_flops: float | None
    wasted: float | None
    drafting: float | None
    lr_scale: float | None
    finished: bool
    diverged: bool

    @classmethod
    def of(cls, record: RunRecord) -> Facts:
        kinds = [event["kind"] for event in record.events]
        summary = record.summary or {}
        flops = _flops(record.summary)
        total = sum(flops.values())
        wasted = None
        drafting = None
        if total:
            wasted = wasted_share(flops)
            drafting = flops.get("plan", 0.0) / total
        return cls(
            ended=_ended(record, kinds),
            steps=record.last_step,
            budget=record.budget,
            loss=_final_loss(record, kinds),
            full_loss=formatting.finite(summary.get("full_validation_loss")),
            test_loss=formatting.finite(summary.get("test_loss")),
            alarms=kinds.count("fired"),
            rewinds=kinds.count("rewind"),
            verified=len(record.decisions),
            accepted=sum(accepted_branch(decision) is not None for decision in record.decisions),
            flops=flops,
            total_flops=total or None,
            wasted=wasted,
            drafting=drafting,
            lr_scale=_last(record.kept, "lr_scale"),
            finished=record.summary is not None,
            diverged=_diverged(record, kinds),
        )

    @property
    def verdict(self) -> str:
        """A sentence or two about the result of the run."""
        loss = "No validation loss is known"
        if self.loss is not None:
            loss = f"Validation loss {formatting.number(self.loss)} nats per token"
            if self.test_loss is not None:
                loss += f", test loss {formatting.number(self.test_loss)},"
        steps = f"{formatting.whole(self.steps)} steps"
        if self.budget:
            steps += f" (budget: {formatting.whole(self.budget)})"
        sentences = [f"{loss} after {steps}; {self.ended}."]
        if self.verified:
            decisions = formatting.counted(self.verified, "verified decision")
            sentences.append(f"A branch was accepted in {self.accepted} of {decisions}.")
        elif self.rewinds or self.alarms:
            alarms = formatting.counted(self.alarms, "alarm").capitalize()
            sentences.append(f"{alarms}, {formatting.counted(self.rewinds, 'rollback')}.")
        if self.wasted or self.drafting:
            sentences.append(
                f"{formatting.share(self.wasted)} of the compute was wasted, "
                f"{formatting.share(self.drafting)} was used for planning."
            )
        return " ".join(sentences)


def _final_loss(record: RunRecord, kinds: list[str]) -> float | None:
    losses = [formatting.finite(v["loss"]) for v in record.validation if v["kept"]]
    if _diverged(record, kinds) or not losses:
        return None
    return losses[-1]


def _diverged(record: RunRecord, kinds: list[str]) -> bool:
    return (record.summary or {}).get("ended") == "diverged" or "diverged" in kinds[-1:]


def _last(steps: pd.DataFrame, column: str) -> float | None:
    if column not in steps or not len(steps):
        return None
    return formatting.finite(float(steps[column].iloc[-1]))


def _flops(summary: Mapping[str, Any] | None) -> dict[str, float]:
    flops = (summary or {}).get("flops")
    if not isinstance(flops, Mapping):
        return {}
    known = {str(key): formatting.finite(value) for key, value in flops.items()}
    return {key: value for key, value in known.items() if value is not None}


def _ended(record: RunRecord, kinds: list[str]) -> str:
    if record.summary is not None:
        ended = str(record.summary.get("ended") or "ended")
        known = {"budget spent": "the budget is spent", "diverged": "the run diverged"}
        return known.get(ended, ended)
    if kinds[-1:] == ["diverged"]:
        return "the run diverged"
    if kinds[-1:] == ["interrupted"]:
        return "interrupted, can be resumed"
    return "still running, or killed"
