"""A way round harm that has begun: from before it to where the run is now, on other data and at a lower rate.

    rewind      to the newest snapshot from before the last look that saw no harm
    skip        the data since, and as much ahead as lies between two looks
    lower       the learning rate to ⅓ of what it is now, until the run is as far as it was

What the run has done since is what it is measured against, and was trained already: a detour costs
its own steps, and where it is not taken the run goes on as if nobody had tried. Causes need no
telling apart: bad data are skipped, and a rate that is too high for a time, by itself or for
moments that were lost, is lower while it lasts. It is what people do by hand (PaLM, Chowdhery 2022,
§5.1; OPT, Zhang 2022, §2.5), tried before it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainenv.rollouts.executor import NOTHING, Rollouts
from trainenv.types import (
    Branch,
    Candidate,
    Intervention,
    Outcome,
    Plan,
    Run,
    Snapshot,
    Telemetry,
    UserError,
    Verdict,
)
from trainenv.verification.rules import Better
from trainenv.verification.verify import Verification

_RATE = 1 / 3  # of the learning rate, on the way
# ln loss by which it must be better where the run is now; harm is 0.1 nats or more, about three
# times as much
_MARGIN = 0.01
# the score of a draft that no model has seen: before doing nothing, by no more than a sign
_SIGN = -1e-9


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """One that could be taken.

    Attributes:
        start: a fork of the run as it was before the harm, which knows the data that it is to skip.
        since: what the run has done from there.
        way: the intervention at the start, and what ends it where the run is now.
    """

    start: Run
    since: tuple[Telemetry, ...]
    way: tuple[Intervention, Intervention]

    @property
    def steps(self) -> int:
        """To where the run is now."""
        return len(self.since)

    def price(self, run: Run) -> float:
        """FLOPs that are thrown away at most: its steps or those of the run since, and the looks at its start and both ends."""
        return (
            self.steps * run.flops_ahead
            + run.flops_of_probes(self.steps)
            + 3 * run.flops_per_evaluation
        )

    @property
    def plan(self) -> Plan:
        """As a draft of one."""
        way = Candidate(interventions=self.way, score=_SIGN)
        nothing = Candidate(interventions=NOTHING, score=0.0)
        return Plan(planner="detour", candidates=(way, nothing))

    def verification(self, usual: Verification) -> Verification:
        """How it is verified. It is not folded, so that it has the bits of a run by itself."""
        return replace(
            usual, top_k=1, rule=Better(margin=_MARGIN), worth=0.0, stopping=None, fold=False
        )

    def verified(self, run: Run, verification: Verification) -> tuple[Rollouts, Verdict]:
        """Train it, and judge it by what the run has come to."""
        flops = run.flops_per_evaluation
        loss = run.evaluate()
        outcome = Outcome(looks=(self.steps,), validation=(loss,), flops=flops)
        known = Branch(
            interventions=NOTHING,
            score=0.0,
            outcome=outcome,
            losses=tuple(t.loss for t in self.since),
        )
        rollouts = verification.rollouts(
            run, decision_steps=self.steps, start=self.start.snapshot()
        )
        return rollouts, verification.verify(
            rollouts, self.plan, horizon=4 * self.steps, steps=self.steps, control=known
        )


def plan_rollback(
    run: Run, rising: int, snapshots: Sequence[Snapshot], history: Sequence[Telemetry]
) -> Rollback:
    """The way round harm that was first seen at step `rising`.

    Args:
        run: where it is now.
        rising: step of the first look that saw harm.
        snapshots: of the run as it came here, the newest last.
        history: its last steps.

    Raises:
        UserError: there is no snapshot from before it, or not every step since is known.
    """
    between = run.config.monitor.probe_every
    before = [snapshot for snapshot in snapshots if snapshot.step <= rising - between]
    since = tuple(t for t in history if before and t.step > before[-1].step)
    if not before or len(since) != run.step - before[-1].step:
        raise UserError(
            f"there is no state to go back to from step {rising - between} or before, the last look that saw no harm"
        )
    start = run.fork("verify")
    start.restore(before[-1])
    start.flag({*(t.data_index for t in since), *run.upcoming(between)})
    # What was decided since then holds, but for a higher rate.
    rate = min(run.lr_scale, start.lr_scale) / start.lr_scale
    clip = next(
        (one.clip for _, one in reversed(run.applied[len(start.applied) :]) if one.clip), None
    )
    way = (
        Intervention(lr_scale=rate * _RATE, clip=clip, skip_batch=True),
        Intervention(lr_scale=1 / _RATE),
    )
    return Rollback(start=start, since=since, way=way)
