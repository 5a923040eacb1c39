"""What is said of a run at the head of its report, and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainenv.records.decision_files import accepted_branch
from trainenv.report.drawing import formatting
from trainenv.report.run.run_record import RunRecord


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The run in numbers; None where they are not known (yet).

    Attributes:
        ended: how, in words.
        steps, budget: optimizer steps of the history that was kept, and that were asked for.
        loss: the newest validation loss of that history, nats per token; None for a run that
            diverged.
        alarms, rewinds: how often, over all lines.
        verified, accepted: decisions whose branches were run, and those of them of which a branch
            became the run.
        flops: by purpose.
        wasted: FLOPs rewound or of branches thrown away ÷ all. drafting: FLOPs of drafting ÷ all.
    """

    ended: str
    steps: int
    budget: int | None
    loss: float | None
    alarms: int
    rewinds: int
    verified: int
    accepted: int
    flops: Mapping[str, float]
    total_flops: float | None
    wasted: float | None
    drafting: float | None

    @classmethod
    def of(cls, record: RunRecord) -> Facts:
        kinds = [event["kind"] for event in record.events]
        flops = _flops(record.summary)
        total = sum(flops.values())
        diverged = (record.summary or {}).get("ended") == "diverged" or "diverged" in kinds[-1:]
        losses = [formatting.finite(v["loss"]) for v in record.validation if v["kept"]]
        return cls(
            ended=_ended(record, kinds),
            steps=record.last_step,
            budget=record.budget,
            loss=None if diverged or not losses else losses[-1],
            alarms=kinds.count("fired"),
            rewinds=kinds.count("rewind"),
            verified=len(record.decisions),
            accepted=sum(accepted_branch(decision) is not None for decision in record.decisions),
            flops=flops,
            total_flops=total or None,
            wasted=(flops.get("rewound", 0.0) + flops.get("verify", 0.0)) / total
            if total
            else None,
            drafting=flops.get("plan", 0.0) / total if total else None,
        )

    @property
    def verdict(self) -> str:
        """One sentence or two."""
        loss = (
            "No validation loss is known"
            if self.loss is None
            else f"Validation loss {formatting.number(self.loss)} nats per token"
        )
        budget = f" of a budget of {formatting.whole(self.budget)}" if self.budget else ""
        said = [f"{loss} after {formatting.whole(self.steps)} steps{budget}; {self.ended}."]
        if self.verified:
            became = f"{self.accepted} of {formatting.counted(self.verified, 'verified decision')} became the run"
            said.append(f"{became}.")
        elif self.rewinds or self.alarms:
            said.append(
                f"{formatting.counted(self.alarms, 'alarm').capitalize()}, {formatting.counted(self.rewinds, 'rewind')}."
            )
        if self.wasted or self.drafting:
            said.append(
                f"{formatting.share(self.wasted)} of the compute was wasted, {formatting.share(self.drafting)} went into drafting."
            )
        return " ".join(said)


def _flops(summary: Mapping[str, Any] | None) -> dict[str, float]:
    flops = (summary or {}).get("flops")
    known = (
        {str(key): formatting.finite(value) for key, value in flops.items()}
        if isinstance(flops, Mapping)
        else {}
    )
    return {key: value for key, value in known.items() if value is not None}


def _ended(record: RunRecord, kinds: list[str]) -> str:
    if record.summary is not None:
        return {"budget spent": "the budget is spent", "diverged": "the run diverged"}.get(
            str(record.summary.get("ended")), str(record.summary.get("ended") or "ended")
        )
    if kinds[-1:] == ["diverged"]:
        return "the run diverged"
    if kinds[-1:] == ["interrupted"]:
        return "interrupted, can be resumed"
    return "still going, or killed"
