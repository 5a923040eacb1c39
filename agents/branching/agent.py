"""The branching loop on a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gymnasium as gym

from trainenv.agents.branching.branching_loop import Branching
from trainenv.agents.branching.problems import PlanningOptions
from trainenv.config.schema import BranchingConfig
from trainenv.envs.training import TrainingEnv
from trainenv.loop import Watch, train
from trainenv.records.run_folder import RunFolder
from trainenv.report.run.run_report import RunReport
from trainenv.types import Learner, Planner, UserError, WorldModel
from trainenv.verification.verify import Verification
from trainenv.wrappers import SpeculativeVerification


class BranchingAgent:
    """Trains the run of an environment and steers it, at alarms and at every checkpoint.

        env = gym.make("trainenv/GPT2-Tiny-v0")
        env.reset(seed=0)
        model = worldmodel.load_pretrained()
        agent = agents.BranchingAgent(env, planner=planners.make("grid"), model=model)
        report = agent.run(600)

    Args:
        env: `TrainingEnv`, wrapped or not. A wrapper `SpeculativeVerification` gives the settings
            of the verification.
        planner: Planner that ranks candidate interventions.
        model: World model that forecasts them, or a `Learner` that also learns from verified
            branches; None for a planner that needs none.
        config: Settings of the loop; None for those of the run's configuration.
        planning: Settings of the planning problem.

    Raises:
        UserError: The environment has no training run.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        *,
        planner: Planner,
        model: WorldModel | Learner | None = None,
        config: BranchingConfig | None = None,
        planning: PlanningOptions | None = None,
    ) -> None:
        training = env.unwrapped
        if not isinstance(training, TrainingEnv):
            raise UserError(
                f"expected an environment of a training run, found {training!r}; "
                "take trainenv/GPT2-Tiny-v0"
            )
        self._env = training
        self._config = config
        self.callback = Branching(
            planner=planner,
            model=model,
            config=config,
            verification=_verification_of(env),
            planning=planning or PlanningOptions(),
        )

    def run(
        self,
        total_steps: int | None = None,
        *,
        out: Path | None = None,
        watch: Watch = lambda run, window: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> RunReport:
        """Train the environment's run until its budget is spent, and return the report.

        Args:
            total_steps: Budget from the start of the run, in the compute of optimizer steps; None
                for that of its configuration. The cost of branches is taken off it.
            out: New or empty folder to record in, for `trainenv report`; None for a temporary one.
            watch: Function to call after each block.
            stop: Function to call after each block; True stops the run, which can be resumed.

        Raises:
            UserError: The budget is spent before the start, or the folder is not empty.
        """
        if not self._env.started:
            self._env.reset(seed=self._env.config.seed)
        run = self._env.run
        budget = run.horizon.end if total_steps is None else total_steps
        if budget <= run.step:
            raise UserError(
                f"expected a budget of more steps than the {run.step} taken, found {budget}; "
                "give a greater one"
            )
        run.end_at(budget)
        settings = self._config or run.config.branching
        self.callback.config = settings.settings(budget)
        folder = RunFolder.create(out or Path(mkdtemp(prefix="trainenv-")), run.config)
        train(run, folder, callback=self.callback, watch=watch, stop=stop)
        return RunReport(folder.path)


def _verification_of(env: gym.Env[Any, Any]) -> Verification | None:
    """Return the settings of the verification that an environment is wrapped in, if any."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, SpeculativeVerification):
            return env.settings
        env = env.env
    return None
