"""A real training run as a Gymnasium environment."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainenv.config.schema import RunConfig
from trainenv.envs.observation import Situation, observe
from trainenv.envs.spaces import Observation, SteeredEnv, episode_over, no_run, snapshot_among
from trainenv.interventions import ActionVector
from trainenv.run import TrainingRun
from trainenv.training.compatibility import check_snapshot
from trainenv.types import Snapshot, Telemetry, UserError


@dataclass(frozen=True)
class _Memory:
    """What the environment remembers between decisions, beside the run."""

    validation: float
    validation_before: float
    gradient_before: float = math.nan
    elsewhere: float = (
        0.0  # FLOPs that had gone into anything but the run's own steps and its evaluation
    )


class TrainingEnv(SteeredEnv):
    """Steer a language-model training run, a decision every `environment.decision_steps` optimizer steps.

    **Action** — `MultiDiscrete([4, 3, 5, 2, 2, 2])`: see `trainenv.interventions`. All zeros does nothing. Parts that
    `action_masks()` forbids are left out and named in `info["masked"]`.

    **Observation** — `Box(-10, 10, (32,), float32)`: see `trainenv.envs.observation.Features`.

    **Reward** — float, the fall in ln(validation loss) over the decision, less `instability_charge` for each time that the
    uncertainty index fired and `compute_charge` × the share of the budget that went into branches. Without the charges the
    rewards of an episode add up to ln(first validation loss ÷ last). The loss counts as at most `divergence_loss` × ln V.

    **Termination** — the run diverged: a loss that is not finite, or a validation loss above that cap. **Truncation** — the
    budget is spent.

    **Reset** — a fresh run, seeded from `seed`; or `options={"snapshot": s}` goes on from what `snapshot()` returned.

    Args:
        config: a preset's name, a YAML file or a `RunConfig`.
        overrides: values on top, by dotted key.
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
        self._memory = _Memory(validation=math.nan, validation_before=math.nan)
        self._over = True
        self._is_branch = False

    @property
    def run(self) -> TrainingRun:
        """The run inside. Exists after the first `reset`."""
        if self._run is None:
            raise no_run()
        return self._run

    @property
    def started(self) -> bool:
        """Whether there is a run yet."""
        return self._run is not None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        snapshot = snapshot_among(options)
        if snapshot is None:
            self._run = self._fresh(int(self.np_random.integers(2**31)))
            validation = self._capped(self.run.evaluate())
            self._memory = _Memory(validation=validation, validation_before=validation)
            self._over = False
        else:
            self.restore(snapshot)
        return self._observe([]), self._info([], ())

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
        validation = self._capped(measured)
        before = self._memory.validation
        events = sum(t.reading.fired for t in window)
        elsewhere = self._elsewhere()
        budget = run.flops_per_step * self.config.steps
        charges = self.charges(
            events=events,
            share_elsewhere=(elsewhere - self._memory.elsewhere) / budget if budget else 0.0,
        )
        reward = math.log(before / validation) - charges
        terminated = not measured < self._cap
        truncated = run.done and not terminated
        self._over = terminated or truncated
        self._memory = replace(
            self._memory, validation=validation, validation_before=before, elsewhere=elsewhere
        )
        observation = self._observe(window)
        self._memory = replace(self._memory, gradient_before=_mean_gradient(window))
        return (
            observation,
            reward,
            terminated,
            truncated,
            self._info(window, masked) | {"charges": charges},
        )

    @property
    def steered(self) -> TrainingRun:
        return self.run

    def snapshot(self) -> Snapshot:
        """The whole state of the environment, for `restore` or `reset(options={"snapshot": …})`."""
        memory = [None if math.isnan(v) else v for v in vars(self._memory).values()]
        return self.run.snapshot({"environment": {"memory": memory, "over": self._over}})

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot, of this environment or of a bare run with the same configuration."""
        check_snapshot(snapshot)
        if "model" not in snapshot.state:
            raise UserError(
                "expected a snapshot of a training run, found one of a synthetic environment; SyntheticEnv takes it"
            )
        seed = int(snapshot.state["seed"])
        run = (
            self._run
            if self._run is not None and self._run.config.seed == seed
            else self._fresh(seed)
        )
        run.restore(snapshot)
        self._run = run
        saved = snapshot.state.get("environment")
        if saved is None:
            validation = self._capped(self.run.evaluate())
            self._memory = _Memory(validation=validation, validation_before=validation)
            self._over = self.run.done
        else:
            self._memory = _Memory(*(math.nan if v is None else v for v in saved["memory"]))
            self._over = bool(saved["over"])
        # The ledger is no part of a snapshot: what other branches spent before is not this one's to
        # be charged for.
        self._memory = replace(self._memory, elsewhere=self._elsewhere())

    def fork(self) -> TrainingEnv:
        """An independent environment in the same state: a branch.

        Its steps are charged to this one, not to itself.
        """
        fork = TrainingEnv(self.config, render_mode=self.render_mode)
        fork._run = self.run.fork()
        fork._memory = self._memory
        fork._over = self._over
        fork._is_branch = True
        fork._np_random = copy.deepcopy(self._np_random)
        return fork

    @property
    def _reference(self) -> float:
        return self.run.uniform_loss

    @property
    def _cap(self) -> float:
        return self.environment.divergence_loss * self._reference

    def _capped(self, loss: float) -> float:
        return min(loss, self._cap) if math.isfinite(loss) else self._cap

    def _elsewhere(self) -> float:
        """FLOPs that went into anything but the run's own steps and its evaluation; none for a branch, whose parent pays."""
        ledger = self.run.ledger
        return 0.0 if self._is_branch else ledger.total - ledger["main"] - ledger["evaluate"]

    def _fresh(self, seed: int) -> TrainingRun:
        return TrainingRun.from_config(self.config.model_copy(update={"seed": seed}))

    def _observe(self, window: Sequence[Telemetry]) -> Observation:
        situation = Situation(
            reference=self._reference,
            base_lr=self.config.optimizer.lr,
            decision_steps=self.config.environment.decision_steps,
            budget_left=max(0.0, 1 - self.run.step / max(1, self.run.horizon.end)),
            validation=self._memory.validation,
            validation_before=self._memory.validation_before,
            gradient_before=self._memory.gradient_before,
            flagged=bool(self.run.flagged_ahead),
        )
        return observe(window, situation).vector()

    def _info(self, window: Sequence[Telemetry], masked: tuple[str, ...]) -> dict[str, Any]:
        return {
            "step": self.run.step,
            "validation_loss": self._memory.validation,
            "fired": sum(t.reading.fired for t in window),
            "masked": list(masked),
            "flops": self.run.ledger.as_dict(),
        }


def _mean_gradient(window: Sequence[Telemetry]) -> float:
    """The geometric mean of the gradient norms; NaN where there is none."""
    logs = [math.log(t.grad_norm) for t in window if 0 < t.grad_norm < math.inf]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
