"""The branching agent on a Gymnasium environment: `BranchingAgent(env, planner=…, model=…).run(total_steps)`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gymnasium as gym

from trainenv.agents.branching.branching_loop import Branching
from trainenv.agents.branching.problems import Drafting
from trainenv.config.schema import BranchingConfig
from trainenv.envs.training import TrainingEnv
from trainenv.loop import Watch, train
from trainenv.records.run_folder import RunFolder
from trainenv.report.run.run_report import RunReport
from trainenv.types import Learner, Planner, UserError, WorldModel
from trainenv.wrappers import SpeculativeVerification


class BranchingAgent:
    """Trains the run of an environment and steers it: at alarms and, as continuous correction, at every checkpoint.

        env = gym.make("trainenv/GPT2-Tiny-v0") env.reset(seed=0) report =
        agents.BranchingAgent(env, planner=planners.make("grid"),
        model=worldmodel.load_pretrained()).run(600)

    Args:
        env: a `TrainingEnv`, wrapped or not. Where it is wrapped in `SpeculativeVerification`,
            drafts are verified as that says.
        planner: drafts futures.
        model: forecasts them: a `WorldModel`, or a `Learner` that goes on learning; None: the
            planner must do without.
        config: when it acts and what it may spend; the run's own where left out.
        drafting: what goes into a planning problem beside the run.

    Raises:
        UserError: the environment is of no training run.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        *,
        planner: Planner,
        model: WorldModel | Learner | None = None,
        config: BranchingConfig | None = None,
        drafting: Drafting | None = None,
    ) -> None:
        training = env.unwrapped
        if not isinstance(training, TrainingEnv):
            raise UserError(
                f"expected an environment of a training run, found {training!r}; take trainenv/GPT2-Tiny-v0"
            )
        self._env = training
        self.callback = Branching(
            planner=planner,
            model=model,
            config=config,
            verification=_verification_of(env),
            drafting=drafting or Drafting(),
        )

    def run(
        self,
        total_steps: int | None = None,
        *,
        out: Path | None = None,
        watch: Watch = lambda run, window: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> RunReport:
        """Train until the budget is spent. The environment's run is then where it ended.

        Args:
            total_steps: the budget, in optimizer steps' worth of compute from the start of the run;
                its configuration's where left out. Everything that branches cost is taken off it.
            out: a new or empty folder to record in; a temporary one where left out. `trainenv
                report` reads it.
            watch: called after each block.
            stop: asked after each block; the run can then be gone on with.

        Raises:
            UserError: the budget is spent before it starts, or the folder is not empty.
        """
        run = self._env.run if self._env.started else self._fresh()
        budget = run.horizon.end if total_steps is None else total_steps
        if budget <= run.step:
            raise UserError(
                f"expected a budget of more steps than the {run.step} taken, found {budget}; give a greater one"
            )
        run.end_at(budget)
        folder = RunFolder.create(out or Path(mkdtemp(prefix="trainenv-")), run.config)
        train(run, folder, callback=self.callback, watch=watch, stop=stop)
        return RunReport(folder.path)

    def _fresh(self) -> Any:
        self._env.reset(seed=self._env.config.seed)
        return self._env.run


def _verification_of(env: gym.Env[Any, Any]) -> Any:
    """The settings of the verification that an environment is wrapped in; None where it is in none."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, SpeculativeVerification):
            return env.settings
        env = env.env
    return None
