"""Triggers of decisions: alarms, harm, a worse trend, the range test, and due checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainenv.agents.branching.lr_range import RangeTest
from trainenv.config.schema import BranchingSettings
from trainenv.monitor.regression import RegressionTrigger
from trainenv.types import Run, Telemetry

# Verifications in a row in which the run left alone failed: the next one would fail as well.
_FAILURES = 2
# Standard deviations of the probe's noise that harm must exceed. Rises by planted faults were 5 and
# more, those of healthy runs up to 2.5.
_NOISE = 4.0
# Share of the run that harm must last. In long healthy runs most rises are gone at the next probe;
# to rewind and try again costs more steps than that.
_HEALS = 0.01
_MOST_INTERVALS = 4  # between two plans, while they promise nothing
_LAST = 0.03  # share of the budget, at its end, without decisions


class Triggers:
    """Watches a run and names the reason for a decision.

    Args:
        settings: Settings of the branching loop.
        start: Step from which on checkpoints come due.
        warmup: Number of steps over which the learning rate rises.
        steps: Number of steps of the whole run.

    Attributes:
        range_test: Learning-rate range test over the warm-up.
        careful: True once the run was hurt: no model foresees when that will happen again, and a
            higher learning rate would make it worse.
        in_row: Number of drafts in a row that were not accepted.
        steering: True if the last plan was followed, False if it promised too little.
        gave_up: True once nothing is decided any more.
    """

    def __init__(
        self, settings: BranchingSettings, start: int = 0, warmup: int = 0, steps: int = 0
    ) -> None:
        self._settings = settings
        self._healing = _HEALS * steps
        self._step = start
        self.range_test = RangeTest(warmup)
        self.careful = False
        self.gave_up = False
        self.in_row = 0
        self.steering = False
        self._plans_in_vain = 0
        self._failures = 0
        self._regression = RegressionTrigger()
        self._regressed = ""
        # Step of the first probe of each harm that was answered. An earlier harm may last beyond a
        # later one.
        self._answered: list[int] = []
        self._quiet_until = 0
        self._next = (start // settings.every + 1) * settings.every
        # Step and worst harm of an alarm after which the run may yet recover.
        self._alarm: list[float] = []

    @property
    def harm(self) -> float:
        """Loss on the clean probe above its usual level, in nats; NaN where unknown."""
        return self._regression.harm

    @property
    def harm_began(self) -> int | None:
        """Step of the first probe that saw harm which lasts and was not answered; None without."""
        first = self._regression.rising
        if first is None or first in self._answered or not self._is_harmed:
            return None
        return first if self._step - first >= self._healing else None

    @property
    def _is_harmed(self) -> bool:
        """True if the probe loss is above its usual level by more than `harm` and than its noise.

        The probe has few tokens: at a high learning rate its loss jumps by more than 0.1 nats where
        nothing is wrong.
        """
        noise = self._regression.noise
        least = self._settings.harm
        if noise > 0:
            least = max(least, _NOISE * noise)
        return self.harm >= least

    def observe(self, window: Sequence[Telemetry]) -> None:
        """Take in steps of the run.

        Steps with a non-finite loss are left out: `Run.diverged` tells whether they do harm.
        """
        self._step = window[-1].step if window else self._step
        finite = [t for t in window if math.isfinite(t.loss)]
        self.range_test.observe(finite)
        self._regressed = self._regression.windowed(finite) or self._regressed
        self.careful = self.careful or self._is_harmed
        fired = next((t.step for t in finite if t.reading.fired), None)
        if fired is not None and not self._alarm:
            self._alarm = [fired, 0.0]

    def on_evaluate(self, step: int, loss: float) -> None:
        """Take in a validation loss; one that is not a finite number above 0 is left out."""
        if 0 < loss < math.inf:
            self._regressed = self._regression.validated(step, loss) or self._regressed

    def reason(self, run: Run, window: Sequence[Telemetry], *, least: int, busy: bool) -> str:
        """Return the trigger of a decision after observed steps; empty without one.

        Args:
            run: Run at the end of these steps.
            window: Telemetry of the steps since the last call.
            least: Smallest number of steps left in the budget that a decision needs.
            busy: True while an accepted sequence is being put in force, when no checkpoint is due.
        """
        triggers = self._settings.triggers
        lasts = self._harm_lasts(run.step)
        due = run.step >= self._next
        if self.gave_up or run.horizon.end - run.step <= max(least, _LAST * run.config.steps):
            return ""
        awake = run.step >= self._quiet_until
        if "harm" in triggers and self.harm_began is not None:
            return "harm"
        fired = any(t.reading.fired and math.isfinite(t.loss) for t in window)
        if "fired" in triggers and (lasts or (awake and fired)):
            return "fired"
        if "regression" in triggers and awake and self._regressed:
            return "regression"
        if "warmup" in triggers and self.range_test.factor is not None and not self._alarm:
            return "warmup"
        if "checkpoint" in triggers and due and not busy:
            return "checkpoint"
        return ""

    def _harm_lasts(self, step: int) -> bool:
        """Tell whether half of the worst harm is left `refractory_steps` after an alarm.

        Most spikes heal in fewer steps than a rewind would have to train again.
        """
        if not self._alarm:
            return False
        if not math.isnan(self.harm):
            self._alarm[1] = max(self._alarm[1], self.harm)
        if step < self._alarm[0] + self._settings.refractory_steps:
            return False
        if self.harm >= max(self._settings.harm, 0.5 * self._alarm[1]):
            return True
        self._alarm = []
        return False

    def answer(self, step: int, *, diverged: bool) -> int | None:
        """Begin a decision, and return the step of the alarm that the run should rewind to.

        None: it need not rewind.
        """
        self._regressed = ""
        self._quiet_until = step + self._settings.refractory_steps
        lasts = (
            bool(self._alarm)
            and step >= self._alarm[0] + self._settings.refractory_steps
            and self.harm >= self._settings.harm
        )
        if not (diverged or lasts):
            return None
        alarm = int(self._alarm[0]) if self._alarm else step
        self._alarm = []
        return alarm

    def answer_harm(self) -> int:
        """Begin a decision about harm, and return the step of the first probe that saw it."""
        began = self.harm_began
        assert began is not None
        self._answered.append(began)
        return began

    def note_rollback(self, step: int) -> None:
        """Take in that an accepted rollback has brought the run to `step` again."""
        self._alarm = []
        self._regressed = ""
        self._quiet_until = step + self._settings.refractory_steps

    def schedule_checkpoint(self, step: int) -> None:
        """Set the next checkpoint if one was due at `step`.

        It is an interval later, or two intervals once drafts keep being refused, or up to four
        while plans to the end promise nothing: each of them costs compute.
        """
        if step >= self._next:
            intervals = min(2 ** (self._plans_in_vain // 2), _MOST_INTERVALS)
            if self.in_row >= self._settings.patience:
                intervals = max(intervals, 2)
            self._next = (step // self._settings.every + intervals) * self._settings.every

    def note_plan(self, *, followed: bool) -> None:
        """Take in that a plan to the end was followed, or promised too little."""
        self.steering = followed
        self._plans_in_vain = 0 if followed else self._plans_in_vain + 1

    def note_failed_control(self) -> str:
        """Take in that the run left alone failed in a verification.

        Returns:
            Reason for giving up now; empty otherwise.
        """
        self._failures += 1
        if self.gave_up or self._failures < _FAILURES:
            return ""
        self.gave_up = True
        return f"doing nothing failed {_FAILURES} times in a row, so that nothing can be compared"

    def note_verdict(self, *, accepted: bool) -> str:
        """Take in the verdict on a draft.

        Returns:
            Reason for giving up now; empty otherwise.
        """
        self.in_row = 0 if accepted else self.in_row + 1
        self._failures = 0
        if self.gave_up or self.in_row < 2 * self._settings.patience:
            return ""
        self.gave_up = True
        return f"{self.in_row} drafts in a row were not accepted"

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "careful": self.careful,
            "gave_up": self.gave_up,
            "in_row": self.in_row,
            "steering": [self.steering, self._plans_in_vain],
            "vain": self._failures,
            "regressed": self._regressed,
            "quiet_until": self._quiet_until,
            "next": self._next,
            "alarm": self._alarm,
            "met": self._answered,
            "regression": self._regression.state_dict(),
            "range_test": self.range_test.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on the state that `state_dict` returned."""
        self.careful = state["careful"]
        self.gave_up = state["gave_up"]
        self.in_row = state["in_row"]
        self.steering, self._plans_in_vain = state.get("steering", (False, 0))
        self._failures = state.get("vain", 0)
        self._regressed = state["regressed"]
        self._alarm = state["alarm"]
        self._quiet_until = state["quiet_until"]
        self._next = state["next"]
        answered = state["met"]
        if isinstance(answered, int):  # of an earlier version: the last one alone
            answered = [answered]
        self._answered = list(answered)
        self._regression.load_state_dict(state["regression"])
        self.range_test.load_state_dict(state["range_test"])
