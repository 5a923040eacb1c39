"""Observation of a run at each decision, for environments and for agents in `trainenv.train`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.envs.observation import Situation, observe
from trainenv.types import Run, Telemetry


@dataclass(frozen=True, kw_only=True)
class Observer:
    """Memory between two decisions that an observation needs besides the run and its telemetry.

    A value: each method that takes something in returns a new observer.

    Attributes:
        validation: Validation loss now, nats per token, at most `loss_bound`; NaN before the first.
        validation_before: Validation loss a decision ago.
        gradient_before: Geometric mean of the gradient norms in the decision before; NaN without.
    """

    validation: float = math.nan
    validation_before: float = math.nan
    gradient_before: float = math.nan

    def evaluated(self, run: Run, loss: float) -> Observer:
        """Take in a validation loss; one that is not finite counts as `loss_bound`."""
        bound = loss_bound(run)
        validation = min(loss, bound) if math.isfinite(loss) else bound
        before = validation if math.isnan(self.validation) else self.validation
        return replace(self, validation=validation, validation_before=before)

    def observe(self, run: Run, window: Sequence[Telemetry]) -> NDArray[np.float32]:
        """Return the observation, float32 [32].

        Args:
            run: Run.
            window: Telemetry of the last decision; empty at the start.
        """
        situation = Situation(
            reference=run.uniform_loss,
            base_lr=run.base_lr,
            decision_steps=run.config.environment.decision_steps,
            budget_left=max(0.0, 1 - run.step / max(1, run.horizon.end)),
            validation=self.validation,
            validation_before=self.validation_before,
            gradient_before=self.gradient_before,
            flagged=bool(run.flagged_ahead),
        )
        return observe(window, situation).vector()

    def after_decision(self, window: Sequence[Telemetry]) -> Observer:
        """Take in the telemetry of a decision, once it was observed."""
        logs = [math.log(t.grad_norm) for t in window if 0 < t.grad_norm < math.inf]
        mean = math.exp(sum(logs) / len(logs)) if logs else math.nan
        return replace(self, gradient_before=mean)

    def info(self, run: Run, window: Sequence[Telemetry], masked: Sequence[str]) -> dict[str, Any]:
        """Return the `info` of a decision.

        Args:
            run: Run.
            window: Telemetry of the last decision.
            masked: Parts of the last action that were left out because they were illegal.
        """
        return {
            "step": run.step,
            "validation_loss": self.validation,
            "fired": sum(t.reading.fired for t in window),
            "masked": list(masked),
            "flops": run.ledger.as_dict(),
        }


def loss_bound(run: Run) -> float:
    """Return the validation loss from which on a run has diverged, nats per token."""
    bound: float = run.config.environment.divergence_loss * run.uniform_loss
    return bound
