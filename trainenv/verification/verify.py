"""Speculative verification: the best futures of a draft are trained for a few real steps before one of them becomes the run.

As in speculative decoding (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023) a cheap draft
proposes and the target disposes; here the target is real training, of the K best candidates and of
doing nothing, on identical batches:

    env = SpeculativeVerification(gym.make("trainenv/GPT2-Tiny-v0"), top_k=6, verify_steps=50)
    verdict = env.verify(planner.plan(problem))       # the run is as it was kept =
    env.commit(verdict)                        # the winner's steps, or the control's, become the
    run's

Branches that are not committed leave no trace but in the ledger. A branch that fails (out of
memory, a loss that is lost, a dead worker) is marked, and the others go on; one that clearly loses
is stopped early, and the steps it did not take are not charged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from trainenv.envs.training import TrainingEnv
from trainenv.rollouts.executor import NOTHING, Rollouts
from trainenv.tools.checks import count, number
from trainenv.types import (
    AcceptRule,
    Branch,
    Candidate,
    Cost,
    Forecast,
    Intervention,
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

# of the budget, for the rule `annealed`: the world model's reference takes five times as long
_COOLDOWN_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How a draft is verified.

    Args:
        top_k: K, candidates that are trained beside the control.
        verify_steps: real steps of each.
        rule: says which may become the run; `trainenv.verification.rules.make(name)`, or one of
            your own.
        cooldown: steps of the cool-down where the rule wants one; None for 2 % of the budget.
        stopping: the sequential test that ends clear losers early; None for none.
        fold: whether tiny models are trained folded into one.
        workers: processes that train the branches of what is not folded, a core each; they are kept
            for the run, and change no bit of it. 0: in turn, in this one.
        worth: by how much a draft must promise to be better than doing nothing, nats, to be worth
            its steps.
        width: factor on the width of the drafts' intervals, about the median; whoever verifies
            learns it from the misses.

    Raises:
        UserError: a count is below 1 (`workers`: below 0), or there is no such rule.
    """

    top_k: int = 6
    verify_steps: int = 50
    rule: AcceptRule = field(default_factory=lambda: make_rule("agreement"))
    cooldown: int | None = None
    stopping: Losing | None = field(default_factory=Losing)
    fold: bool = True
    workers: int = 0
    worth: float = 0.0
    width: float = 1.0

    def __post_init__(self) -> None:
        limits = {"top_k": 1, "verify_steps": 1, "workers": 0}
        if self.cooldown is not None:
            limits["cooldown"] = 0
        for name, least in limits.items():
            object.__setattr__(self, name, count(name, getattr(self, name), least=least))
        if self.worth != math.inf:  # no plan forecasts that much: nothing is trained
            object.__setattr__(self, "worth", number("worth", self.worth))
        if not isinstance(self.rule, AcceptRule):
            raise UserError(
                f"rule must be an AcceptRule, found {self.rule!r:.80}; take trainenv.verification.rules.make('agreement')"
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
        """What trains the branches of a verification that starts from the run as it is now, or from an earlier snapshot.

        Args:
            run: the run.
            decision_steps: steps from one intervention of a sequence to the next.
            validation: the run's loss now where it is known.
            start: the earlier snapshot.
            limit: FLOPs that branches which failed together may take in all, once they are trained
                one by one.
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
            limit=limit,
        )

    def cooldown_of(self, run: Run) -> int:
        """Steps of the cool-down, of a run that needs one."""
        return (
            max(1, round(_COOLDOWN_SHARE * run.config.steps))
            if self.cooldown is None
            else self.cooldown
        )

    def thrown_away(self, run: Run, branches: int, steps: int) -> float:
        """FLOPs that do not become the run's, at most, if so many branches are trained beside the control, for so many steps.

        Where all of them are lost, the control too, it is the steps of one branch more.
        """
        cooled = self.rule.measure == "annealed"
        cooldown = self.cooldown_of(run) * cooled
        trained = branches * steps + (branches + 1) * cooldown
        looks = (1 + cooled) * run.flops_per_evaluation + run.flops_of_probes(steps + cooldown)
        return trained * run.flops_ahead + (branches + 1) * looks

    def chosen(self, plan: Plan) -> list[Candidate]:
        """The K best of those that promise to be better than doing nothing, and to be worth it."""
        enough = plan.control.score - self.worth
        return [one for one in plan.candidates if not one.does_nothing and one.score < enough][
            : self.top_k
        ]

    def verify(
        self,
        rollouts: Rollouts,
        plan: Plan,
        *,
        horizon: int,
        steps: int | None = None,
        control: Branch | None = None,
    ) -> Verdict:
        """Train the best of a draft and judge them. The run is as it was.

        Args:
            rollouts: of the run.
            plan: the draft.
            horizon: N, steps that the draft's forecasts look ahead.
            steps: of each branch, other than `verify_steps`.
            control: what the run has done from where the branches start, where that is in its past:
                nothing else is trained beside them, and nothing compared step by step, for the
                batches may be others.
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
        control = branches.pop(0) if control is None else control
        still = "it is what was done" if recorded else "it does nothing"
        control = replace(control, fate="control", reason=control.lost or still)
        branches = [_against(branch, control, together=not recorded) for branch in branches]
        judged = [control, *(self._judged(branch, control) for branch in branches)]
        verdict = self._verdict(judged, steps, [branch.outcome for branch in judged])
        adopted = judged[verdict.accepted or 0]
        kept = 0.0  # of what was spent here
        if not adopted.lost and (verdict.accepted or not recorded):
            kept = rollouts.future(adopted.interventions, steps).flops
        return replace(verdict, wasted=max(0.0, verdict.cost.flops - kept))

    def _branch(
        self, candidate: Candidate, outcome: Outcome, rollouts: Rollouts, steps: int, share: float
    ) -> Branch:
        forecast = candidate.forecast
        return Branch(
            interventions=candidate.interventions,
            score=candidate.score,
            forecast=forecast,
            outcome=outcome,
            losses=tuple(t.loss for t in rollouts.future(candidate.interventions, steps).telemetry),
            expected=None if forecast is None else expected(forecast, share, self.width),
        )

    def _judged(self, branch: Branch, control: Branch) -> Branch:
        if branch.lost:
            stopped = branch.lost.startswith("stopped")
            return replace(branch, fate="stopped" if stopped else "failed", reason=branch.lost)
        if control.outcome.error:
            return replace(
                branch,
                fate="rejected",
                reason="there is nothing to compare it with: doing nothing failed",
            )
        objection = "" if control.lost else self.rule.objection(branch, control)
        return replace(
            branch, fate="rejected" if objection else "passed", reason=objection or "it holds up"
        )

    def _verdict(
        self, judged: Sequence[Branch], steps: int, outcomes: Sequence[Outcome]
    ) -> Verdict:
        cost = Cost(steps=sum(o.steps for o in outcomes), flops=sum(o.flops for o in outcomes))
        passed = [place for place, branch in enumerate(judged) if branch.fate == "passed"]
        if not passed:
            why = (
                "the draft ranks nothing before doing nothing"
                if len(judged) == 1
                else "no branch holds up: nothing is done"
            )
            why = (
                f"doing nothing failed: {judged[0].outcome.error}"
                if judged[0].outcome.error
                else why
            )
            return Verdict(
                branches=tuple(judged), accepted=None, reason=why, steps=steps, cost=cost
            )
        ranks = {place: self.rule.rank(judged[place]) for place in passed}
        best = min(passed, key=lambda place: math.inf if math.isnan(ranks[place]) else ranks[place])
        branches = [
            replace(b, fate="accepted") if place == best else b for place, b in enumerate(judged)
        ]
        reason = (
            "doing nothing failed, this holds up"
            if judged[0].lost
            else f"accepted, of {len(judged) - 1} verified"
        )
        return Verdict(
            branches=tuple(branches), accepted=best, reason=reason, steps=steps, cost=cost
        )


def _against(branch: Branch, control: Branch, *, together: bool) -> Branch:
    """With what it measured against the control; beside a control that is lost, against the loss at the start."""
    start = control.outcome.validation[0]
    base, annealed_base = (
        (start, start)
        if control.lost
        else (control.outcome.validation[-1], control.outcome.annealed)
    )
    return replace(
        branch,
        delta=math.nan if branch.lost else _log_ratio(branch.outcome.validation[-1], base),
        annealed_delta=_log_ratio(branch.outcome.annealed, annealed_base),
        paired=paired(branch.losses, control.losses) if together else None,
    )


def expected(forecast: Forecast, share: float, width: float = 1.0) -> tuple[float, float, float]:
    """Low, median and high of Δ ln loss after a share of the horizon: that at the horizon × share^¼, `width` times as wide.

    So scaled, the 90 % interval held Δ in 0.90 to 0.92 of the branches of runs that the model had
    not learned from, at each eighth of the horizon (× √share: 0.84 at the first): what reordered
    batches change is there from the first steps on.
    """
    scale = min(max(share, 0.0), 1.0) ** 0.25
    estimate = forecast.horizon
    median = scale * estimate.median
    return (
        median + width * (scale * estimate.low - median),
        median,
        median + width * (scale * estimate.high - median),
    )


def _log_ratio(loss: float, base: float) -> float:
    return math.log(loss / base) if 0 < loss < math.inf and 0 < base < math.inf else math.nan


class SpeculativeVerification(gym.Wrapper[Any, Any, Any, Any]):
    """A training environment whose drafts are verified before they are put in force.

    `step(action)` verifies the action as a draft of one: it is put in force only if it holds up
    beside doing nothing, and what was trained for that is kept. `verify` and `commit` do it for a
    whole plan.

    Args:
        env: a `TrainingEnv`, wrapped or not.
        top_k: candidates that are trained beside the control.
        verify_steps: real steps of each.
        rule: a name (`agreement`, `annealed`, `risk`) or a rule of your own.
        more: other settings of `Verification`.

    Raises:
        UserError: the environment is of no training run, or a setting is out of range.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        *,
        top_k: int = 6,
        verify_steps: int = 50,
        rule: str | AcceptRule = "agreement",
        **more: Any,
    ) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, TrainingEnv):
            raise UserError(
                f"expected an environment of a training run, found {env.unwrapped!r}; take trainenv/GPT2-Tiny-v0"
            )
        rule = make_rule(rule) if isinstance(rule, str) else rule
        self.settings = Verification(top_k=top_k, verify_steps=verify_steps, rule=rule, **more)
        self._rollouts: Rollouts | None = None

    @property
    def training(self) -> TrainingEnv:
        """The environment of the run."""
        env = self.env.unwrapped
        assert isinstance(env, TrainingEnv)
        return env

    def verify(self, plan: Plan, *, horizon: int | None = None) -> Verdict:
        """Train the best of a draft beside doing nothing and judge them; the run is as it was.

        Args:
            plan: the draft.
            horizon: steps that its forecasts look ahead; four decisions if left out.
        """
        run = self.training.run
        steps = self.training.config.environment.decision_steps
        if run.done:
            raise UserError(
                f"the run's budget was spent at step {run.step}: there is nothing left to verify; call reset()"
            )
        self._rollouts = self.settings.rollouts(run, decision_steps=steps)
        left = min(self.settings.verify_steps, run.horizon.end - run.step)
        return self.settings.verify(self._rollouts, plan, horizon=horizon or 4 * steps, steps=left)

    def commit(self, verdict: Verdict) -> tuple[Telemetry, ...]:
        """The run becomes the accepted branch, or else the control, whose steps are as good as its own; what they measured.

        Where the control is lost and nothing was accepted, the run stays as it was and nothing is
        returned.
        """
        if self._rollouts is None:
            raise UserError(
                "there is no verdict of this environment to commit; call verify(plan) first"
            )
        rollouts = self._rollouts
        self._rollouts = None
        return adopt(rollouts, verdict)

    def step(self, action: NDArray[np.int64]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Verify an action, then train on for a decision.

        `info["verdict"]` says in words what came of it.
        """
        intervention, masked = self.training.codec.legal(action, self.training.run)
        reason = ""
        if not intervention.does_nothing and not self.training.run.done:
            verdict = self.verify(_draft_of(intervention))
            self.commit(verdict)
            reason = verdict.reason
        observation, reward, terminated, truncated, info = self.env.step(
            np.zeros(len(self.training.codec.sizes), dtype=np.int64)
        )
        return (
            observation,
            float(reward),
            terminated,
            truncated,
            info | {"verdict": reason, "masked": list(masked)},
        )


def adopt(rollouts: Rollouts, verdict: Verdict) -> tuple[Telemetry, ...]:
    """The run becomes the accepted branch, or the control; see `SpeculativeVerification.commit`."""
    taken = verdict.winner or verdict.control
    if taken.lost or (
        verdict.winner is None and rollouts.past
    ):  # there is nothing to become, or it stands there already
        return ()
    return rollouts.adopt(taken.interventions, verdict.steps)


def _draft_of(intervention: Intervention) -> Plan:
    """A plan of one candidate that nobody has scored: before doing nothing, by no more than a sign."""
    candidates = (
        Candidate(interventions=(intervention,), score=-1e-9),
        Candidate(interventions=NOTHING, score=0.0),
    )
    return Plan(planner="action", candidates=candidates)
