"""A real training run as a Gymnasium environment."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainenv.config.schema import RunConfig
from trainenv.envs.observer import Observer, loss_bound
from trainenv.envs.spaces import Observation, SteeredEnv, episode_over, no_run, snapshot_among
from trainenv.interventions import ActionVector
from trainenv.run import TrainingRun
from trainenv.training.compatibility import check_snapshot
from trainenv.types import Snapshot, UserError


class TrainingEnv(SteeredEnv):
    """Steer the training run of a language model.

    A decision is taken every `environment.decision_steps` optimizer steps.

    **Action** — `MultiDiscrete([4, 3, 5, 2, 2, 2])`, see `trainenv.interventions`. All zeros does
    nothing. Parts that `action_masks()` forbids are left out and named in `info["masked"]`. With
    `interventions.allow_emphasis` there is a seventh part, the emphasis of the objective.

    **Observation** — `Box(-10, 10, (32,), float32)`, see `trainenv.envs.observation.Features`.

    **Reward** — float, the fall in ln(validation loss) over the decision, less charges:
    `instability_charge` for each time that the uncertainty index fired, and `compute_charge` × the
    share of the budget that was spent on branches. Without charges the rewards of an episode add up
    to ln(first validation loss ÷ last). The loss counts as at most `divergence_loss` × ln V.

    **Termination** — the run diverged: a loss is not finite, or the validation loss is above that
    cap. **Truncation** — the budget is spent.

    **Reset** — a fresh run, seeded from `seed`; or `options={"snapshot": s}` to continue from a
    snapshot that `snapshot()` returned.

    Args:
        config: Name of a preset, path of a YAML file, or `RunConfig`.
        overrides: Changes of the configuration, by dotted key.
        render_mode: `ansi`, `rgb_array` or None, see `SteeredEnv`.

    Attributes:
        config: Configuration of the run.
    """

    def __init__(
        self,
        config: str | Path | RunConfig = "tiny",
        overrides: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.config = RunConfig.load(config, overrides)
        super().__init__(self.config.interventions, self.config.environment, render_mode)
        self._run: TrainingRun | None = None
        self._observer = Observer()
        self._elsewhere_before = 0.0  # FLOPs at the last decision, see `_elsewhere`
        self._over = True
        self._is_branch = False

    @property
    def run(self) -> TrainingRun:
        """The training run. It exists after the first `reset`."""
        if self._run is None:
            raise no_run()
        return self._run

    @property
    def started(self) -> bool:
        """True after the first `reset`."""
        return self._run is not None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        snapshot = snapshot_among(options)
        if snapshot is None:
            self._run = self._fresh(int(self.np_random.integers(2**31)))
            self._observer = Observer().evaluated(self.run, self.run.evaluate())
            self._elsewhere_before = 0.0
            self._over = False
        else:
            self.restore(snapshot)
        observer = self._observer
        info = self._noted(observer.info(self.run, [], ()), fresh=True)
        return observer.observe(self.run, []), info

    def step(self, action: ActionVector) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        run = self.run
        if self._over:
            raise episode_over()
        intervention, masked = self.codec.legal(action, run)
        run.apply(intervention)
        window = run.advance(
            max(0, min(self.config.environment.decision_steps, run.horizon.end - run.step))
        )
        measured = math.nan if run.diverged else run.evaluate()
        observer = self._observer.evaluated(run, measured)
        elsewhere = self._elsewhere()
        budget = run.flops_per_step * self.config.steps
        charges = self.charges(
            events=sum(t.reading.fired for t in window),
            share_elsewhere=(elsewhere - self._elsewhere_before) / budget if budget else 0.0,
        )
        reward = math.log(observer.validation_before / observer.validation) - charges
        terminated = not measured < loss_bound(run)
        truncated = run.done and not terminated
        self._over = terminated or truncated
        self._elsewhere_before = elsewhere
        self._observer = observer.after_decision(window)
        return (
            observer.observe(run, window),
            reward,
            terminated,
            truncated,
            self._noted(observer.info(run, window, masked)) | {"charges": charges},
        )

    @property
    def steered(self) -> TrainingRun:
        return self.run

    def snapshot(self) -> Snapshot:
        """Return the whole state, for `restore` or `reset(options={"snapshot": …})`."""
        observer = self._observer
        values = (observer.validation, observer.validation_before, observer.gradient_before)
        memory = [None if math.isnan(v) else v for v in (*values, self._elsewhere_before)]
        return self.run.snapshot({"environment": {"memory": memory, "over": self._over}})

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this environment, or of a run with the same configuration."""
        check_snapshot(snapshot)
        if "model" not in snapshot.state:
            raise UserError(
                "expected a snapshot of a training run, found one of a synthetic environment; "
                "give it to a SyntheticEnv"
            )
        seed = int(snapshot.state["seed"])
        run = self._run
        if run is None or run.config.seed != seed:
            run = self._fresh(seed)
        run.restore(snapshot)
        self._run = run
        saved = snapshot.state.get("environment")
        if saved is None:
            self._observer = Observer().evaluated(self.run, self.run.evaluate())
            self._over = self.run.done
        else:
            values = [math.nan if v is None else v for v in saved["memory"]]
            self._observer = Observer(
                validation=values[0], validation_before=values[1], gradient_before=values[2]
            )
            self._over = bool(saved["over"])
        # The ledger is not in a snapshot: this run is not charged for what other branches spent.
        self._elsewhere_before = self._elsewhere()

    def fork(self) -> TrainingEnv:
        """Return an independent environment in the same state: a branch.

        Its steps are charged to this environment, not to itself.
        """
        fork = TrainingEnv(self.config, render_mode=self.render_mode)
        fork._run = self.run.fork()
        fork._observer = self._observer
        fork._elsewhere_before = self._elsewhere_before
        fork._over = self._over
        fork._is_branch = True
        fork._losses = list(self._losses)
        fork._np_random = copy.deepcopy(self._np_random)
        return fork

    def _elsewhere(self) -> float:
        """Return the FLOPs spent on anything but the run's own steps and its evaluation.

        They are 0 for a branch, which is charged to its parent.
        """
        if self._is_branch:
            return 0.0
        ledger = self.run.ledger
        return ledger.total - ledger["main"] - ledger["evaluate"]

    def _fresh(self, seed: int) -> TrainingRun:
        return TrainingRun.from_config(self.config.model_copy(update={"seed": seed}))
