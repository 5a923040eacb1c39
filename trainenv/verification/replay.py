"""Train the branches of a recorded decision again, and say whether what was measured is measured again.

    replay = Replay.of(Path("runs/mine"), "500") replay.agrees                      # to the bit
    where the numeric settings are the record's, else within `CLOSE`

The branches start from the checkpoint that was saved beside the record. Nothing is written.
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
from trainenv.training import numerics as devices
from trainenv.types import Branch, Candidate, Estimate, Forecast, Outcome, Plan, UserError, Verdict
from trainenv.verification.early_stopping import Losing
from trainenv.verification.record import FOLDER, interventions_of
from trainenv.verification.rules import make as make_rule
from trainenv.verification.verify import Verification

CLOSE = (
    1e-3  # nats, under other numeric settings: rounding grows to less over the steps of a branch
)
_ESTIMATES = ("horizon", "annealed", "final", "recovery")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A branch, then and now.

    Attributes:
        interventions: as recorded.
        fates: then and now.
        deltas: Δ ln validation loss against doing nothing, nats, then and now; NaN: not measured.
        off: the largest difference of a loss, nats; 0: the same bits; inf: one was measured only
            then, or only now.
    """

    interventions: Sequence[Mapping[str, Any]]
    fates: tuple[str, str]
    deltas: tuple[float, float]
    off: float


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What training the branches of a decision again came to.

    Attributes:
        rows: the control, then as drafted.
        accepted: the place of the accepted branch then and now.
        fingerprints: of the state that the branches start from, as recorded and as it was loaded.
        numerics: numeric settings that have changed since, in words.
        verdict: what was measured now.
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
            folder: of the run.
            step: of the decision; "500-2" for the second of that step.
            overrides: of the run's configuration, by dotted key, `{"device": "cpu"}` for one that
                was trained on a GPU.

        Raises:
            UserError: there is no such decision, or it was not recorded so that it can be replayed.
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
                f"decision {step} was recorded without its checkpoint; set branching.replayable: true for later ones"
            )
        run = TrainingRun.from_config(RunConfig.load(folder / "config.yaml", overrides))
        check_corpus(folder, run)
        snapshot = CheckpointStore(where).load(began, exact=True)
        run.restore(snapshot)
        saved = snapshot.state["numerics"]
        now = devices.numerics(run.model, run.optimizer, run.device, run.config)
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
        """The largest difference of any loss, nats."""
        return max(row.off for row in self.rows)

    @property
    def agrees(self) -> bool:
        """Whether the same was measured and judged."""
        judged = all(
            then == now
            for then, now in (self.accepted, self.fingerprints, *(row.fates for row in self.rows))
        )
        return judged and (self.off <= CLOSE if self.numerics else self.off == 0)

    @property
    def reason(self) -> str:
        """What came of it, in a sentence."""
        if self.fingerprints[0] != self.fingerprints[1]:
            return "the state that the branches start from is not the one that was recorded"
        if math.isinf(self.off):
            return "not all that was measured then was measured now, or the other way round"
        how = (
            "every loss is the same to the bit"
            if self.off == 0
            else f"losses are up to {self.off:.2g} nats off"
        )
        if self.numerics:
            how += f", under other numeric settings: {'; '.join(self.numerics)}"
        judged = (
            all(row.fates[0] == row.fates[1] for row in self.rows)
            and self.accepted[0] == self.accepted[1]
        )
        return how if judged else f"{how}, but it was judged otherwise"


@contextmanager
def _as_recorded(where: Path) -> Iterator[None]:
    """What is read in the block is as the schema says, or it is said that it is not."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = describe_error(error)
        raise UserError(
            f"{where / NAME} must be as configs/decision_schema.json says, found {found}"
        ) from None


def _read(folder: Path, step: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a decision, and its record."""
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"expected the folder of a run, found no config.yaml in {folder}; give the one it was recorded in"
        )
    where = folder / FOLDER / step
    if not re.fullmatch(r"\d+(-\d+)?", step) or not (where / NAME).is_file():
        there = sorted(
            (path.parent.name for path in (folder / FOLDER).glob(f"*/{NAME}")), key=_order
        )
        what = f"take one of {', '.join(there)}" if there else "no decision was recorded"
        raise UserError(f"there is no decision {step!r:.40} in {folder}; {what}")
    try:
        record = json.loads((where / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{where / NAME} can't be read ({error}); it is torn or was changed by hand"
        ) from None
    if not isinstance(record, dict):
        raise UserError(
            f"{where / NAME} must be the record of a decision, found {type(record).__name__}"
        )
    return where, record


def _order(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("-") if part.isdigit())


def _plan(record: Mapping[str, Any]) -> Plan:
    """The draft, as far as it was verified."""
    control, *drafted = (
        Candidate(
            interventions=interventions_of(branch["interventions"]),
            score=_number(branch["score"]),
            forecast=None if branch["forecast"] is None else _forecast(branch["forecast"]),
        )
        for branch in record["branches"]
    )
    return Plan(planner=str(record["planner"]["name"]), candidates=(*drafted, control))


def _control(record: Mapping[str, Any]) -> Branch | None:
    """What the run had done from where the branches start, if that was in its past; None: it was trained beside them."""
    if record["verification"].get("control", "trained") == "trained":
        return None
    told = record["branches"][0]
    outcome = Outcome(
        looks=tuple(told["outcome"]["looks"]),
        validation=tuple(map(_number, told["outcome"]["validation"])),
    )
    losses = tuple(map(_number, told["losses"]))
    return Branch(
        interventions=interventions_of(told["interventions"]),
        score=0.0,
        outcome=outcome,
        losses=losses,
    )


def _forecast(fields: Mapping[str, Any]) -> Forecast:
    estimates = {
        name: Estimate(**{key: _number(value) for key, value in fields[name].items()})
        for name in _ESTIMATES
    }
    others = {name: value for name, value in fields.items() if name not in _ESTIMATES}
    return Forecast(**{**others, **estimates, "hazard": tuple(fields["hazard"])})


def _verification(record: Mapping[str, Any]) -> Verification:
    told = record["verification"]
    if not isinstance(told["settings"], Mapping):
        raise UserError(
            f"decisions by the rules of trainenv can be replayed, found one by {told['rule']!r:.60}"
        )
    return Verification(
        top_k=max(1, len(record["branches"]) - 1),
        verify_steps=int(told["verify_steps"]),
        rule=make_rule(told["rule"], **told["settings"]),
        cooldown=told["cooldown"],
        stopping=None if told["stopping"] is None else Losing(**told["stopping"]),
        fold=bool(told["fold"]),
        width=float(told.get("width", 1.0)),
    )


def _row(then: Mapping[str, Any], now: Branch) -> Row:
    return Row(
        interventions=then["interventions"],
        fates=(str(then["fate"]), now.fate),
        deltas=(_number(then["delta"]), now.delta),
        off=max(_differences(then, now), default=0.0),
    )


def _differences(then: Mapping[str, Any], now: Branch) -> Iterator[float]:
    """Of every loss that was measured, absolute."""
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
    if len(then) != len(now):
        yield math.inf
    for one, two in zip(map(_number, then), now):
        if math.isfinite(one) and math.isfinite(two):
            yield abs(one - two)
        elif math.isfinite(one) != math.isfinite(two):
            yield math.inf


def _number(value: float | None) -> float:
    """A number of a record, where null stands for none that is finite."""
    return math.nan if value is None else float(value)
