"""When a run calls for a decision: alarms, harm that stays, what has become worse, and checkpoints that are due."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainenv.agents.branching.lr_range import RangeTest
from trainenv.config.schema import BranchingConfig
from trainenv.monitor.regression import RegressionTrigger
from trainenv.types import Run, Telemetry

_VAIN = 2  # verifications in a row in which doing nothing failed: the next would end alike
_LAST = 0.03  # share of the budget at its end in which nothing is decided


class Triggers:
    """Watches a run, and says why it calls for a decision.

    Args:
        settings: what it answers to.
        start: step from which on checkpoints come due.
        warmup: steps over which the learning rate rises.

    Attributes:
        range_test: what the warm-up says of the rate.
        careful: the run has been hurt. It may be hurt again, by what no model of its present
            foresees, and a higher learning rate would make it worse.
        in_row: drafts in a row that were not accepted.
        gave_up: nothing is decided any more.
    """

    def __init__(self, settings: BranchingConfig, start: int = 0, warmup: int = 0) -> None:
        self._settings = settings
        self.range_test = RangeTest(warmup)
        self.careful = self.gave_up = False
        self.in_row = self._vain = 0
        self._regression = RegressionTrigger()
        self._regressed = ""
        self._met = -1  # step of the first look at the harm that was answered last
        self._quiet_until = 0
        self._next = (start // settings.every + 1) * settings.every
        self._alarm: list[
            float
        ] = []  # step and worst harm of an alarm whose harm may yet heal by itself

    @property
    def harm(self) -> float:
        """Nats of clean probe loss above its level; NaN where that is unknown."""
        return self._regression.harm

    @property
    def rising(self) -> int | None:
        """Step of the first look at harm that has begun and was not answered yet; None where none has."""
        rising = self._regression.rising if self.harm >= self._settings.harm else None
        return None if rising == self._met else rising

    def see(self, window: Sequence[Telemetry]) -> None:
        """Take in steps.

        Those whose loss is not finite say nothing: `Run.diverged` tells whether they do
        harm.
        """
        window = [t for t in window if math.isfinite(t.loss)]
        self.range_test.see(window)
        self._regressed = self._regression.windowed(window) or self._regressed
        self.careful = self.careful or self.harm >= self._settings.harm
        fired = next((t.step for t in window if t.reading.fired), None)
        if fired is not None and not self._alarm:
            self._alarm = [fired, 0.0]

    def on_evaluate(self, step: int, loss: float) -> None:
        """Take in a validation; a loss that is no finite number above 0 can't be compared with others."""
        if 0 < loss < math.inf:
            self._regressed = self._regression.validated(step, loss) or self._regressed

    def why(self, run: Run, window: Sequence[Telemetry], *, least: int, busy: bool) -> str:
        """Name what calls for a decision after a window that was seen; empty: nothing does.

        Args:
            run: where it ended.
            window: the steps since it was last asked.
            least: steps that must be left in the budget.
            busy: whether an accepted sequence is still being put in force: then no checkpoint is
                due.
        """
        triggers = self._settings.triggers
        stays = self._stays(run.step)
        due = run.step >= self._next
        if self.gave_up or run.horizon.end - run.step <= max(least, _LAST * run.config.steps):
            return ""
        awake = run.step >= self._quiet_until
        if "harm" in triggers and self.rising is not None:
            return "harm"
        fired = any(t.reading.fired and math.isfinite(t.loss) for t in window)
        if "fired" in triggers and (stays or (awake and fired)):
            return "fired"
        if "regression" in triggers and awake and self._regressed:
            return "regression"
        if "warmup" in triggers and self.range_test.asks is not None and not self._alarm:
            return "warmup"
        return "checkpoint" if "checkpoint" in triggers and due and not busy else ""

    def _stays(self, step: int) -> bool:
        """Tell whether harm stays: half of the worst after an alarm is still there `quiet` steps later.

        Most spikes heal sooner than the steps that going back throws away would be trained again.
        """
        if not self._alarm:
            return False
        self._alarm[1] = max(self._alarm[1], 0.0 if math.isnan(self.harm) else self.harm)
        if step < self._alarm[0] + self._settings.refractory_steps:
            return False
        if self.harm >= max(self._settings.harm, 0.5 * self._alarm[1]):
            return True
        self._alarm = []
        return False

    def answered(self, step: int, *, lost: bool) -> int | None:
        """A decision is being taken.

        Returns the step of the alarm to go back behind; None: there is no need to.
        """
        self._regressed = ""
        self._quiet_until = step + self._settings.refractory_steps
        stays = (
            bool(self._alarm)
            and step >= self._alarm[0] + self._settings.refractory_steps
            and self.harm >= self._settings.harm
        )
        if not (lost or stays):
            return None
        alarm = int(self._alarm[0]) if self._alarm else step
        self._alarm = []
        return alarm

    def met(self) -> int:
        """The harm that has begun is being answered. Returns the step of the first look at it."""
        assert self.rising is not None
        self._met = self.rising
        return self._met

    def gone_round(self, step: int) -> None:
        """The run has gone round it, and is at `step` again."""
        self._alarm = []
        self._regressed = ""
        self._quiet_until = step + self._settings.refractory_steps

    def passed(self, step: int) -> None:
        """A window has ended at `step`: the next checkpoint is due an interval later, or two once drafts keep failing."""
        if step >= self._next:
            self._next = (
                step // self._settings.every + (1 if self.in_row < self._settings.patience else 2)
            ) * self._settings.every

    def in_vain(self) -> str:
        """A verification in which doing nothing failed too.

        Returns why it gives up now; empty: it does not.
        """
        self._vain += 1
        if self.gave_up or self._vain < _VAIN:
            return ""
        self.gave_up = True
        return f"doing nothing failed {_VAIN} times in a row, so that nothing can be compared"

    def judged(self, *, accepted: bool) -> str:
        """Take in whether a draft was accepted. Returns why it gives up now; empty: it does not."""
        self.in_row = 0 if accepted else self.in_row + 1
        self._vain = 0
        if self.gave_up or self.in_row < 2 * self._settings.patience:
            return ""
        self.gave_up = True
        return f"{self.in_row} drafts in a row were not accepted"

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values."""
        return {
            "careful": self.careful,
            "gave_up": self.gave_up,
            "in_row": self.in_row,
            "vain": self._vain,
            "regressed": self._regressed,
            "quiet_until": self._quiet_until,
            "next": self._next,
            "alarm": self._alarm,
            "met": self._met,
            "regression": self._regression.state_dict(),
            "range_test": self.range_test.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` gave."""
        self.careful = state["careful"]
        self.gave_up = state["gave_up"]
        self.in_row = state["in_row"]
        self._vain = state.get("vain", 0)
        self._regressed = state["regressed"]
        self._alarm = state["alarm"]
        self._quiet_until = state["quiet_until"]
        self._next = state["next"]
        self._met = state["met"]
        self._regression.load_state_dict(state["regression"])
        self.range_test.load_state_dict(state["range_test"])
