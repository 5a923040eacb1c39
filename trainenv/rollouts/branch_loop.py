"""The loop that trains branches side by side: intervene, train, evaluate, stop clear losers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from trainenv.rollouts.future import LiveBranch
from trainenv.rollouts.group import ask_each
from trainenv.types import Branchable, RunGroup, Telemetry, UserError

Stopping = Callable[[Sequence[Telemetry], Sequence[Telemetry]], str]
"""(steps of a branch, the same steps of the control) → reason to stop it; empty to continue."""


@dataclass(frozen=True, kw_only=True)
class BranchLoop:
    """Settings of the loop.

    Args:
        decision_steps: Optimizer steps from one intervention of a sequence to the next.
        evaluate_every: Optimizer steps from one evaluation to the next; None to evaluate at the end
            alone.
        stopping: Test that stops clear losers, applied after each quarter of the steps; None for
            none.

    Raises:
        UserError: A step count is below 1.
    """

    decision_steps: int
    evaluate_every: int | None
    stopping: Stopping | None

    def __post_init__(self) -> None:
        if self.decision_steps < 1 or (self.evaluate_every is not None and self.evaluate_every < 1):
            raise UserError(
                f"decision_steps and evaluate_every must be at least 1, "
                f"found {self.decision_steps} and {self.evaluate_every}"
            )

    def evaluations(self, start: int, end: int) -> int:
        """Return the number of evaluations after step `start`, up to step `end` included."""
        every = self.evaluate_every
        if start == end or every is None:
            return int(start < end)
        return end // every - start // every + (end % every > 0)

    def train(
        self,
        together: RunGroup[Branchable],
        branches: Sequence[LiveBranch],
        steps: int,
        *,
        cap: float,
    ) -> list[int]:
        """Train branches up to `steps` steps and return the numbers of those that got there.

        Args:
            together: Group of the forks.
            branches: Branch of each fork, all at the same step.
            steps: Optimizer steps of a whole branch.
            cap: Validation loss from which on a branch has diverged, nats per token.
        """
        alive = list(range(len(branches)))
        control = next((branch for branch in branches if branch.does_nothing), None)
        start = branches[0].steps
        quarter = max(1, (steps - start) // 4)
        done = start
        while done < steps and alive:
            if done % self.decision_steps == 0:
                for number in alive:
                    branches[number].intervene(together.runs[number], done // self.decision_steps)
                alive = _alive(branches, alive)
            stretch = min(steps - done, quarter - (done - start) % quarter, self._ahead(done))
            advance = partial(together.advance, stretch)
            for number, fresh in ask_each(together, branches, alive, advance):
                branches[number].add_steps(fresh)
            done += stretch
            alive = _alive(branches, alive)
            if alive and (done == steps or self._evaluates_at(done)):
                for number, loss in ask_each(together, branches, alive, together.evaluate):
                    branches[number].add_evaluation(done, loss, cap)
            if control is not None and done < steps and (done - start) % quarter == 0:
                self._stop_losers([branches[number] for number in alive], control)
            alive = _alive(branches, alive)
        return alive

    def _ahead(self, done: int) -> int:
        """Return the steps to the next intervention or evaluation."""
        ahead = self.decision_steps - done % self.decision_steps
        if self.evaluate_every is None:
            return ahead
        return min(ahead, self.evaluate_every - done % self.evaluate_every)

    def _evaluates_at(self, step: int) -> bool:
        return self.evaluate_every is not None and step % self.evaluate_every == 0

    def _stop_losers(self, branches: Sequence[LiveBranch], control: LiveBranch) -> None:
        """Stop branches that clearly lose against the control."""
        if self.stopping is None or control.ended:
            return
        for branch in branches:
            if branch is not control:
                branch.stopped = self.stopping(branch.telemetry, control.telemetry)


def _alive(branches: Sequence[LiveBranch], numbers: Sequence[int]) -> list[int]:
    return [number for number in numbers if not branches[number].ended]
