"""An environment that verifies each change before it takes effect.

env = SpeculativeVerification(gym.make("trainenv/GPT2-Tiny-v0"), top_k=6, verify_steps=50)
verdict = env.verify(planner.plan(problem))    # the run is as it was
steps = env.commit(verdict)                    # the run becomes the accepted branch
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from trainenv.envs.training import TrainingEnv
from trainenv.rollouts.executor import NOTHING, Rollouts
from trainenv.types import (
    AcceptRule,
    Candidate,
    Intervention,
    Plan,
    Telemetry,
    UserError,
    Verdict,
)
from trainenv.verification.rules import make as make_rule
from trainenv.verification.verify import Verification, adopt


class SpeculativeVerification(gym.Wrapper[Any, Any, Any, Any]):
    """A training environment whose changes are verified before they take effect.

    `step(action)` verifies the action as a plan with a single candidate. The action takes effect
    only if it passes against doing nothing; the steps trained for the test are then kept. `verify`
    and `commit` do the same for a whole plan.

    Args:
        env: Training environment, or wrappers around one.
        top_k: Number of candidates that are trained in addition to the control.
        verify_steps: Optimizer steps of each branch.
        rule: Name of an accept rule, or a rule of your own.
        more: Other fields of `Verification`.

    Attributes:
        settings: Settings of the verification.

    Raises:
        UserError: The environment is not a training environment, or a setting is out of range.
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
                f"expected an environment of a training run, found {env.unwrapped!r}; "
                "take trainenv/GPT2-Tiny-v0"
            )
        if isinstance(rule, str):
            rule = make_rule(rule)
        self.settings = Verification(top_k=top_k, verify_steps=verify_steps, rule=rule, **more)
        self._rollouts: Rollouts | None = None

    @property
    def training(self) -> TrainingEnv:
        """The training environment inside all wrappers."""
        env = self.env.unwrapped
        assert isinstance(env, TrainingEnv)
        return env

    def verify(self, plan: Plan, *, horizon: int | None = None) -> Verdict:
        """Train the best candidates of a plan and doing nothing, and compare them.

        The run is as it was.

        Args:
            plan: Ranked candidates.
            horizon: Steps that the forecasts of the plan look ahead; four decisions if left out.

        Raises:
            UserError: The budget of the run is spent.
        """
        run = self.training.run
        steps = self.training.config.environment.decision_steps
        if run.done:
            raise UserError(
                f"expected a run with steps left to verify, found its budget spent at step "
                f"{run.step}: there is nothing left to verify; call reset()"
            )
        self._rollouts = self.settings.rollouts(run, decision_steps=steps)
        left = min(self.settings.verify_steps, run.horizon.end - run.step)
        return self.settings.verify(self._rollouts, plan, horizon=horizon or 4 * steps, steps=left)

    def commit(self, verdict: Verdict) -> tuple[Telemetry, ...]:
        """Make the run the accepted branch, or else the control, and return the steps of it.

        The steps of the control are as good as the run's own. If the control is lost and no branch
        was accepted, the run stays as it was and no steps are returned.

        Raises:
            UserError: There is no verdict to commit, or the run was changed since.
        """
        if self._rollouts is None:
            raise UserError(
                "there is no verdict of this environment to commit; call verify(plan) first"
            )
        rollouts = self._rollouts
        self._rollouts = None
        return adopt(rollouts, verdict)

    def step(self, action: NDArray[np.int64]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Verify an action, then train for one decision.

        `info["verdict"]` has the reason of the verdict in words.
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


def _draft_of(intervention: Intervention) -> Plan:
    """Return a plan of one candidate without a forecast, ranked just before doing nothing."""
    candidates = (
        Candidate(interventions=(intervention,), score=-1e-9),
        Candidate(interventions=NOTHING, score=0.0),
    )
    return Plan(planner="action", candidates=candidates)
