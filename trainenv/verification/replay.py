"""Replay of a recorded decision: train its branches again and compare with the record.

    replay = Replay.of(Path("runs/mine"), "500")
    replay.agrees                                  # equal to the bit
    replay.reason                                  # the comparison in a sentence

If the numeric settings (threads, device, versions) have changed since, losses may differ by up to
`CLOSE`. The branches start from the checkpoint that was saved with the record. Nothing is written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainenv.checkpoints.store import CheckpointStore
from trainenv.config.schema import RunConfig
from trainenv.records.decision_files import NAME
from trainenv.records.made_of import check_corpus
from trainenv.run import TrainingRun
from trainenv.tools.error_text import describe_error
from trainenv.training.numerics import numerics as numeric_settings
from trainenv.types import Branch, Candidate, Estimate, Forecast, Outcome, Plan, UserError, Verdict
from trainenv.verification.early_stopping import Losing
from trainenv.verification.record import FOLDER, interventions_of
from trainenv.verification.rules import make as make_rule
from trainenv.verification.verify import Verification

CLOSE = 1e-3
"""Largest difference of a loss under other numeric settings, nats.

Over the steps of a branch, differences from rounding stay below it.
"""
_ESTIMATES = ("horizon", "annealed", "final", "recovery")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A branch, as recorded and as replayed.

    Attributes:
        interventions: Interventions of the branch as the record has them.
        fates: Fate in the record and in the replay.
        deltas: Δ ln validation loss against doing nothing in the record and in the replay, nats;
            NaN if it was not measured.
        off: Largest difference of a loss, nats; 0 for equal bits; inf if only one of the two
            measured a loss.
    """

    interventions: Sequence[Mapping[str, Any]]
    fates: tuple[str, str]
    deltas: tuple[float, float]
    off: float


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The result of a replay.

    Attributes:
        rows: One row for each branch: the control, then the candidates in the order of the plan.
        accepted: Place of the accepted branch in the record and in the replay; None if none was.
        fingerprints: Fingerprint of the state that the branches start from, in the record and as
            loaded from the checkpoint.
        numerics: Numeric settings that have changed since, one sentence each.
        verdict: Verdict of the replay.
    """

    rows: tuple[Row, ...]
    accepted: tuple[int | None, int | None]
    fingerprints: tuple[str, str]
    numerics: tuple[str, ...]
    verdict: Verdict

    @classmethod
    def of(cls, folder: Path, step: str, overrides: Mapping[str, Any] | None = None) -> Replay:
        """Replay the decision that is recorded in `branches/{step}` of a run's folder.

        Args:
            folder: Folder of the run.
            step: Step of the decision; "500-2" for the second decision at that step.
            overrides: Changes of the run's configuration by dotted key, such as
                `{"device": "cpu"}` for a run that was trained on a GPU.

        Raises:
            UserError: There is no such decision, or it was recorded without what a replay needs.
        """
        where, record = _read(folder, step)
        with _as_recorded(where):
            plan = _plan(record)
            verification = _verification(record)
            start = record["start"]
            control = _control(record)
            began = int(record["step"])
            decision = int(record["decision_steps"])
            accepted = record["accepted"]
            recorded = str(start["fingerprint"])
            checkpoint = start["checkpoint"]
        if checkpoint is None:
            raise UserError(
                f"expected the checkpoint of decision {step}, found none in its record; "
                "set branching.replayable: true for later ones"
            )
        run = TrainingRun.from_config(RunConfig.load(folder / "config.yaml", overrides))
        check_corpus(folder, run)
        snapshot = CheckpointStore(where).load(began, exact=True)
        run.restore(snapshot)
        saved = snapshot.state["numerics"]
        now = numeric_settings(run.model, run.optimizer, run.device, run.config)
        fingerprint = run.fingerprint()
        rollouts = verification.rollouts(run, decision_steps=decision)
        verdict = verification.verify(rollouts, plan, horizon=4 * decision, control=control)
        with _as_recorded(where):
            rows = tuple(
                _row(then, branch)
                for then, branch in zip(record["branches"], verdict.branches, strict=True)
            )
        return cls(
            rows=rows,
            accepted=(accepted, verdict.accepted),
            fingerprints=(recorded, fingerprint),
            numerics=tuple(
                f"{name} was {saved.get(name)}, is {now[name]}"
                for name in now
                if saved.get(name) != now[name]
            ),
            verdict=verdict,
        )

    @property
    def off(self) -> float:
        """Largest difference of any loss, nats."""
        return max(row.off for row in self.rows)

    @property
    def agrees(self) -> bool:
        """True if the same losses were measured and the same branch was accepted."""
        tolerance = CLOSE if self.numerics else 0.0
        same_start = self.fingerprints[0] == self.fingerprints[1]
        return same_start and self._same_judgement and self.off <= tolerance

    @property
    def _same_judgement(self) -> bool:
        same_fates = all(row.fates[0] == row.fates[1] for row in self.rows)
        return same_fates and self.accepted[0] == self.accepted[1]

    @property
    def reason(self) -> str:
        """The result of the comparison in a sentence."""
        if self.fingerprints[0] != self.fingerprints[1]:
            return "the state that the branches start from is not the one that was recorded"
        if math.isinf(self.off):
            return "not all that was measured then was measured now, or the other way round"
        how = f"losses are up to {self.off:.2g} nats off"
        if self.off == 0:
            how = "every loss is the same to the bit"
        if self.numerics:
            how += f", under other numeric settings: {'; '.join(self.numerics)}"
        if not self._same_judgement:
            how += ", but it was judged otherwise"
        return how


@contextmanager
def _as_recorded(where: Path) -> Iterator[None]:
    """Turn errors that a broken record causes in the block into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = describe_error(error)
        raise UserError(
            f"{where / NAME} must be as configs/decision_schema.json says, found {found}; "
            "it was changed by hand, take another decision"
        ) from None


def _read(folder: Path, step: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a decision and its record."""
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"expected the folder of a run, found no config.yaml in {folder}; "
            "give the one it was recorded in"
        )
    where = folder / FOLDER / step
    if not re.fullmatch(r"\d+(-\d+)?", step) or not (where / NAME).is_file():
        there = sorted(
            (path.parent.name for path in (folder / FOLDER).glob(f"*/{NAME}")), key=_order
        )
        what = "no decision was recorded"
        if there:
            what = f"take one of {', '.join(there)}"
        raise UserError(f"there is no decision {step!r:.40} in {folder}; {what}")
    try:
        record = json.loads((where / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected a JSON record in {where / NAME}, found that it can't be read ({error}); "
            "it is torn or was changed by hand, take another decision"
        ) from None
    if not isinstance(record, dict):
        raise UserError(
            f"{where / NAME} must be the record of a decision, found {type(record).__name__}; "
            "take another decision"
        )
    return where, record


def _order(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("-") if part.isdigit())


def _plan(record: Mapping[str, Any]) -> Plan:
    """Return the candidates of the plan that were verified."""
    control, *drafted = (
        Candidate(
            interventions=interventions_of(branch["interventions"]),
            score=_number(branch["score"]),
            forecast=_forecast(branch["forecast"]),
        )
        for branch in record["branches"]
    )
    return Plan(planner=str(record["planner"]["name"]), candidates=(*drafted, control))


def _control(record: Mapping[str, Any]) -> Branch | None:
    """Return the control if it was recorded by the run itself; None if it was trained."""
    if record["verification"].get("control", "trained") == "trained":
        return None
    recorded = record["branches"][0]
    outcome = Outcome(
        looks=tuple(recorded["outcome"]["looks"]),
        validation=tuple(map(_number, recorded["outcome"]["validation"])),
    )
    losses = tuple(map(_number, recorded["losses"]))
    return Branch(
        interventions=interventions_of(recorded["interventions"]),
        score=0.0,
        outcome=outcome,
        losses=losses,
    )


def _forecast(fields: Mapping[str, Any] | None) -> Forecast | None:
    if fields is None:
        return None
    estimates = {
        name: Estimate(**{key: _number(value) for key, value in fields[name].items()})
        for name in _ESTIMATES
    }
    others = {name: value for name, value in fields.items() if name not in _ESTIMATES}
    return Forecast(**{**others, **estimates, "hazard": tuple(fields["hazard"])})


def _verification(record: Mapping[str, Any]) -> Verification:
    """Return the settings that the branches were verified with."""
    recorded = record["verification"]
    if not isinstance(recorded["settings"], Mapping):
        raise UserError(
            f"expected a decision by the rules of trainenv, found one by {recorded['rule']!r:.60}; "
            "decisions by other rules can't be replayed"
        )
    stopping = None
    if recorded["stopping"] is not None:
        stopping = Losing(**recorded["stopping"])
    return Verification(
        top_k=max(1, len(record["branches"]) - 1),
        verify_steps=int(recorded["verify_steps"]),
        rule=make_rule(recorded["rule"], **recorded["settings"]),
        cooldown=recorded["cooldown"],
        stopping=stopping,
        fold=bool(recorded["fold"]),
        width=float(recorded.get("width", 1.0)),
    )


def _row(then: Mapping[str, Any], now: Branch) -> Row:
    return Row(
        interventions=then["interventions"],
        fates=(str(then["fate"]), now.fate),
        deltas=(_number(then["delta"]), now.delta),
        off=max(_differences(then, now), default=0.0),
    )


def _differences(then: Mapping[str, Any], now: Branch) -> Iterator[float]:
    """Yield the absolute difference of every loss that was measured, nats."""
    outcome = then["outcome"]
    yield from _apart(then["losses"], now.losses)
    yield from _apart(outcome["validation"], now.outcome.validation)
    yield from _apart(
        [outcome["annealed"], outcome["final"]], [now.outcome.annealed, now.outcome.final]
    )
    yield from _apart([then["delta"], then["annealed_delta"]], [now.delta, now.annealed_delta])
    if list(outcome["looks"]) != list(now.outcome.looks):
        yield math.inf


def _apart(then: Sequence[float | None], now: Sequence[float]) -> Iterator[float]:
    """Yield absolute differences; inf where only one of the two is finite."""
    if len(then) != len(now):
        yield math.inf
    for one, two in zip(map(_number, then), now):
        if math.isfinite(one) and math.isfinite(two):
            yield abs(one - two)
        elif math.isfinite(one) != math.isfinite(two):
            yield math.inf


def _number(value: float | None) -> float:
    """Return a number of a record; null in a record means that it was not finite."""
    if value is None:
        return math.nan
    return float(value)
