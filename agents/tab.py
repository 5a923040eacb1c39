"""What is spent beside a run's own steps comes off its budget, in whole steps."""

from __future__ import annotations

from dataclasses import dataclass

from trainenv.run import TrainingRun


@dataclass
class Tab:
    """FLOPs that were spent and not yet taken off the budget: below 0 what was taken off too much, less than a step."""

    owed: float = 0.0

    def settle(self, run: TrainingRun, flops: float) -> int:
        """Add FLOPs and give the steps' worth that is now to come off the budget, rounded up; the rest is kept for next time."""
        self.owed += flops
        each = run.flops_ahead
        steps = max(0, -int(-self.owed // each)) if each else 0
        self.owed -= steps * each
        return steps
