"""Speculative verification: train the best futures of a plan for a few real steps, then choose.

As in speculative decoding (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023), a cheap
draft proposes and the target decides. Here the target is real training: of the K best candidates
and of doing nothing (the control), all on the same batches.

    verification = Verification(top_k=6, verify_steps=50)
    rollouts = verification.rollouts(run, decision_steps=25)
    verdict = verification.verify(rollouts, plan, horizon=100)    # the run is as it was
    adopt(rollouts, verdict)                                      # the run becomes the best branch

Branches that are not adopted leave no trace except in the ledger. A branch that fails (out of
memory, a non-finite loss, a lost worker) is marked, and the others continue. A branch that clearly
loses is stopped early; only the steps that it took are charged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from trainenv.distributed.executors import LOCAL, address_of
from trainenv.rollouts.executor import Rollouts
from trainenv.tools.checks import count, number
from trainenv.types import (
    AcceptRule,
    Branch,
    Candidate,
    Cost,
    Forecast,
    Outcome,
    Plan,
    Snapshot,
    Telemetry,
    UserError,
    Verdict,
)
from trainenv.verification.early_stopping import Losing, paired
from trainenv.verification.rules import make as make_rule

if TYPE_CHECKING:
    from trainenv.types import Run

# Share of the budget, for the rule `annealed`. The reference cool-down of the world model is five
# times as long.
_COOLDOWN_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Settings of a verification, and the verification of a plan.

    Args:
        top_k: Number K of candidates that are trained in addition to the control.
        verify_steps: Optimizer steps of each branch.
        rule: Rule that accepts or rejects a branch: one that `trainenv.verification.rules.make`
            returns, or your own.
        cooldown: Steps of the cool-down, for rules that measure one; None for 2 % of the budget.
        stopping: Sequential test that ends clear losers early; None to train all to the end.
        fold: True to train tiny models folded into one.
        workers: Number of worker processes, one core each, for models that are not folded; 0 to
            train in this process. The run keeps its workers. Results are equal to the bit.
        executor: Place of the worker processes: `local`, `ray` or `ray://HOST:PORT`.
        worth: Least improvement on doing nothing that a plan must forecast for a candidate to be
            trained, nats.
        width: Factor on the width of the forecast intervals, about the median. An agent learns it
            from the misses.

    Raises:
        UserError: A count is below 1 (`workers`: below 0), the rule is no accept rule, or
            there is no such executor.
    """

    top_k: int = 6
    verify_steps: int = 50
    rule: AcceptRule = field(default_factory=lambda: make_rule("agreement"))
    cooldown: int | None = None
    stopping: Losing | None = field(default_factory=Losing)
    fold: bool = True
    workers: int = 0
    executor: str = LOCAL
    worth: float = 0.0
    width: float = 1.0

    def __post_init__(self) -> None:
        limits = {"top_k": 1, "verify_steps": 1, "workers": 0}
        if self.cooldown is not None:
            limits["cooldown"] = 0
        for name, least in limits.items():
            object.__setattr__(self, name, count(name, getattr(self, name), least=least))
        address_of(self.executor)
        if self.worth != math.inf:  # no plan forecasts that much: nothing is trained
            object.__setattr__(self, "worth", number("worth", self.worth))
        if not isinstance(self.rule, AcceptRule):
            raise UserError(
                f"rule must be an AcceptRule, found {self.rule!r:.80}; "
                "take trainenv.verification.rules.make('agreement')"
            )

    def rollouts(
        self,
        run: Run,
        *,
        decision_steps: int,
        validation: float = math.nan,
        start: Snapshot | None = None,
        limit: float = math.inf,
    ) -> Rollouts:
        """Return the executor that trains the branches of a verification.

        Args:
            run: Run that is forked.
            decision_steps: Steps from one intervention of a sequence to the next.
            validation: Validation loss of the run now, in nats per token; NaN if it is not known.
            start: Earlier snapshot that the branches start from; None to start from the run as it
                is now.
            limit: FLOPs, in all, that branches may take which failed together and are then trained
                one at a time.
        """
        return Rollouts(
            run,
            decision_steps=decision_steps,
            start=start,
            cooldown=self.cooldown_of(run),
            validation=validation,
            stopping=self.stopping,
            fold=self.fold,
            workers=self.workers,
            executor=self.executor,
            limit=limit,
        )

    def cooldown_of(self, run: Run) -> int:
        """Return the steps of the cool-down for a run."""
        if self.cooldown is not None:
            return self.cooldown
        budget: int = run.config.steps
        return max(1, round(_COOLDOWN_SHARE * budget))

    def thrown_away(self, run: Run, branches: int, steps: int) -> float:
        """Return the most FLOPs that a verification wastes.

        If every branch and the control are lost, the steps of one more branch are wasted.

        Args:
            run: Run that is forked.
            branches: Number of branches that are trained in addition to the control.
            steps: Optimizer steps of each branch.
        """
        cooled = self.rule.measure == "annealed"
        cooldown = self.cooldown_of(run) * cooled
        trained = branches * steps + (branches + 1) * cooldown
        evaluated = (1 + cooled) * run.flops_per_evaluation + run.flops_of_probes(steps + cooldown)
        return trained * run.flops_ahead + (branches + 1) * evaluated

    def chosen(self, plan: Plan) -> list[Candidate]:
        """Return the K best candidates that improve on doing nothing by more than `worth`."""
        enough = plan.control.score - self.worth
        better = [one for one in plan.candidates if not one.does_nothing and one.score < enough]
        return better[: self.top_k]

    def verify(
        self,
        rollouts: Rollouts,
        plan: Plan,
        *,
        horizon: int,
        steps: int | None = None,
        control: Branch | None = None,
    ) -> Verdict:
        """Train the best candidates of a plan and judge them. The run is as it was.

        Args:
            rollouts: Executor over the run.
            plan: Ranked candidates.
            horizon: Number N of steps that the forecasts of the plan look ahead.
            steps: Optimizer steps of each branch; `verify_steps` if left out.
            control: Recorded steps of the run since the start of the branches, if that start is in
                the past. No other control is trained then, and losses are not compared step by
                step, since the batches may differ.
        """
        steps = steps or self.verify_steps
        chosen = self.chosen(plan)
        recorded = control is not None
        candidates = [plan.control, *chosen]
        sequences = [one.interventions for one in candidates[recorded:]]
        outcomes = rollouts.run(sequences, steps, measure=self.rule.measure)
        trained = zip(candidates[recorded:], outcomes)
        branches = [
            self._branch(one, outcome, rollouts, steps, steps / horizon) for one, outcome in trained
        ]
        still = "it is what was done"
        if control is None:
            control = branches.pop(0)
            still = "it does nothing"
        control = replace(control, fate="control", reason=control.lost or still)
        branches = [_against(branch, control, together=not recorded) for branch in branches]
        judged = [control, *(self._judged(branch, control) for branch in branches)]
        verdict = self._verdict(judged, steps, [branch.outcome for branch in judged])
        adopted = judged[verdict.accepted or 0]
        kept = 0.0  # FLOPs of this verification that become the run's
        if not adopted.lost and (verdict.accepted or not recorded):
            kept = rollouts.kept_flops(adopted.interventions, steps)
        return replace(verdict, wasted=max(0.0, verdict.cost.flops - kept))

    def _branch(
        self, candidate: Candidate, outcome: Outcome, rollouts: Rollouts, steps: int, share: float
    ) -> Branch:
        interval = None
        if candidate.forecast is not None:
            interval = expected(candidate.forecast, share, self.width)
        return Branch(
            interventions=candidate.interventions,
            score=candidate.score,
            forecast=candidate.forecast,
            outcome=outcome,
            losses=tuple(t.loss for t in rollouts.future(candidate.interventions, steps).telemetry),
            expected=interval,
        )

    def _judged(self, branch: Branch, control: Branch) -> Branch:
        """Return a branch with its fate and the reason."""
        if branch.lost.startswith("stopped"):
            return replace(branch, fate="stopped", reason=branch.lost)
        if branch.lost:
            return replace(branch, fate="failed", reason=branch.lost)
        if control.outcome.error:
            reason = "there is nothing to compare it with: doing nothing failed"
            return replace(branch, fate="rejected", reason=reason)
        objection = ""
        if not control.lost:
            objection = self.rule.objection(branch, control)
        if objection:
            return replace(branch, fate="rejected", reason=objection)
        return replace(branch, fate="passed", reason="it holds up")

    def _verdict(
        self, judged: Sequence[Branch], steps: int, outcomes: Sequence[Outcome]
    ) -> Verdict:
        """Return the verdict on judged branches, the control first."""
        cost = Cost(steps=sum(o.steps for o in outcomes), flops=sum(o.flops for o in outcomes))
        passed = [place for place, branch in enumerate(judged) if branch.fate == "passed"]
        if not passed:
            return Verdict(
                branches=tuple(judged),
                accepted=None,
                reason=_why_none(judged),
                steps=steps,
                cost=cost,
            )
        ranks = {place: self.rule.rank(judged[place]) for place in passed}
        best = min(passed, key=lambda place: math.inf if math.isnan(ranks[place]) else ranks[place])
        branches = list(judged)
        branches[best] = replace(judged[best], fate="accepted")
        reason = f"accepted, of {len(judged) - 1} verified"
        if judged[0].lost:
            reason = "doing nothing failed, this holds up"
        return Verdict(
            branches=tuple(branches), accepted=best, reason=reason, steps=steps, cost=cost
        )


def _why_none(judged: Sequence[Branch]) -> str:
    """Return the reason for which no branch was accepted."""
    if judged[0].outcome.error:
        return f"doing nothing failed: {judged[0].outcome.error}"
    if len(judged) == 1:
        return "the draft ranks nothing before doing nothing"
    return "no branch holds up: nothing is done"


def _against(branch: Branch, control: Branch, *, together: bool) -> Branch:
    """Return a branch with its differences from the control.

    If the control is lost, the loss at the start takes its place.
    """
    base = control.outcome.validation[-1]
    annealed_base = control.outcome.annealed
    if control.lost:
        base = control.outcome.validation[0]
        annealed_base = base
    delta = math.nan
    if not branch.lost:
        delta = _log_ratio(branch.outcome.validation[-1], base)
    pair = None
    if together:
        pair = paired(branch.losses, control.losses)
    return replace(
        branch,
        delta=delta,
        annealed_delta=_log_ratio(branch.outcome.annealed, annealed_base),
        paired=pair,
    )


def expected(forecast: Forecast, share: float, width: float = 1.0) -> tuple[float, float, float]:
    """Return low, median and high of Δ ln validation loss after a share of the horizon, nats.

    They are those at the horizon × share^¼, and the interval is `width` times as wide. Scaled like
    this, the 90 % interval held Δ in 0.90 to 0.92 of the branches of runs that the model had not
    learned from, at each eighth of the horizon (× √share: 0.84 at the first). The reason: the
    effect of reordered batches is there from the first steps.
    """
    scale = min(max(share, 0.0), 1.0) ** 0.25
    estimate = forecast.horizon
    median = scale * estimate.median
    return (
        median + width * (scale * estimate.low - median),
        median,
        median + width * (scale * estimate.high - median),
    )


def adopt(rollouts: Rollouts, verdict: Verdict) -> tuple[Telemetry, ...]:
    """Make the run the accepted branch, or else the control, and return the steps of it.

    The result is empty if the control is lost, or if the run already is the control because the
    branches start in its past.
    """
    taken = verdict.winner or verdict.control
    already_there = verdict.winner is None and rollouts.past
    if taken.lost or already_there:
        return ()
    return rollouts.adopt(taken.interventions, verdict.steps)


def _log_ratio(loss: float, base: float) -> float:
    """Return ln(loss ÷ base), NaN if either is not positive and finite."""
    if 0 < loss < math.inf and 0 < base < math.inf:
        return math.log(loss / base)
    return math.nan
