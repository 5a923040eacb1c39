"""Futures of a run, trained for real on forks that see the same batches. The run stays as it is.

    rollouts = Rollouts(run, decision_steps=25, cooldown=100)
    lower = (Intervention(lr_scale=0.8),)
    outcomes = rollouts.run([NOTHING, lower], 50, measure="annealed")
    rollouts.adopt(lower, 50)               # the run becomes that future, without training again

Tiny models are folded into one (`trainenv.rollouts.folded`); others are trained in turn, a stretch
each, or in worker processes (`trainenv.rollouts.remote`). Each future is kept as far as it was
trained, so that longer or similar ones cost only their new steps.

A future that fails (out of memory, an error of the model) has the error in its outcome, and the
others continue. One whose validation loss is not finite, or above the cap, has diverged and is not
trained further. With `stopping`, a clear loser against doing nothing is stopped early.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from trainenv.clipping import PER_TENSOR
from trainenv.distributed.executors import LOCAL
from trainenv.rollouts.branch_loop import BranchLoop, Stopping
from trainenv.rollouts.cooldown import cool_down
from trainenv.rollouts.fork import Start, fork_at
from trainenv.rollouts.future import Future, InterventionSequence, LiveBranch
from trainenv.rollouts.future_cache import FutureCache
from trainenv.rollouts.group import ask_each
from trainenv.rollouts.placement import side_by_side
from trainenv.tools.error_text import describe_error
from trainenv.training.ledger import Ledger
from trainenv.types import (
    Branchable,
    Cost,
    Intervention,
    Measure,
    Outcome,
    RunGroup,
    Snapshot,
    Telemetry,
    UserError,
)

if TYPE_CHECKING:
    from trainenv.types import Run

NOTHING: InterventionSequence = (Intervention(),)


class Rollouts:
    """A `trainenv.types.Executor` over a live run.

    Args:
        run: Run that is forked as it is now. It is not changed before `adopt`.
        start: Earlier snapshot that the futures start from; None to start from the run as it is
            now. Such futures are alternatives to what the run has done since.
        decision_steps: Optimizer steps from one intervention of a sequence to the next.
        cooldown: Steps of the reference cool-down, for the measure `annealed`.
        evaluate_every: Steps from one evaluation of the validation loss to the next; None to
            evaluate at the end of a future alone.
        validation: Validation loss of the run now, in nats per token; NaN if it is not known.
        stopping: Test that stops futures which clearly lose, applied after each quarter of the
            steps; None for none.
        fold: True to fold tiny models.
        workers: Number of worker processes for models that are not folded; 0 to train in turn in
            this process.
        executor: Place of the worker processes, see `trainenv.distributed.executors`.
        limit: FLOPs that a call may spend, in all, before futures are trained one at a time after
            all together have failed.

    Attributes:
        past: True if the futures start from an earlier snapshot.

    Raises:
        UserError: A step count is below 1 (`cooldown`, `workers`: below 0), or the run is before
            `start`.
    """

    def __init__(
        self,
        run: Run,
        *,
        decision_steps: int,
        start: Snapshot | None = None,
        cooldown: int = 0,
        evaluate_every: int | None = None,
        validation: float = math.nan,
        stopping: Stopping | None = None,
        fold: bool = True,
        workers: int = 0,
        executor: str = LOCAL,
        limit: float = math.inf,
    ) -> None:
        self._loop = BranchLoop(
            decision_steps=decision_steps, evaluate_every=evaluate_every, stopping=stopping
        )
        if cooldown < 0 or workers < 0:
            raise UserError(
                f"cooldown and workers must be at least 0, found {cooldown} and {workers}"
            )
        if start is not None and start.step > run.step:
            raise UserError(
                f"start must be a snapshot of step {run.step} or before, found step {start.step}"
            )
        self._run = run
        self._cooldown = cooldown
        self._fold = fold
        self._workers = workers
        self._executor = executor
        self._limit = limit
        self._start = start or run.snapshot()
        self._validation = validation
        self.past = start is not None
        self._unchanged = run.step, run.applied, run.horizon
        # The scale of a loss is known for tokens alone; of others, any finite loss may be usual.
        self._bound = math.inf
        if run.vocabulary is not None:
            self._bound = run.config.environment.divergence_loss * run.uniform_loss
        self._cache = FutureCache()

    # ── an executor ───────────────────────────────────────────────────────────────────────────────

    def cost(
        self,
        sequences: Sequence[Sequence[Intervention]],
        steps: int,
        /,
        *,
        measure: Measure,
        draw: int = 0,
    ) -> Cost:
        """See `Executor`."""
        run = self._run
        taken = 0
        probed = 0.0
        evaluations = int(not math.isfinite(self._validation))
        for padded in dict.fromkeys(self._padded(sequence, steps) for sequence in sequences):
            known = self._cache.longest(padded, steps, draw)
            if known.ended:
                continue
            end = measure != "horizon" and self._cache.end(padded, steps, draw, measure) is None
            trained = steps - known.steps + self._after(steps, measure) * end
            taken += trained
            probed += run.flops_of_probes(trained)
            evaluations += self._loop.evaluations(known.steps, steps) + end
        return Cost(
            steps=taken,
            flops=taken * run.flops_ahead + probed + evaluations * run.flops_per_evaluation,
        )

    def run(
        self,
        sequences: Sequence[Sequence[Intervention]],
        steps: int,
        /,
        *,
        measure: Measure,
        draw: int = 0,
    ) -> list[Outcome]:
        """See `Executor`."""
        if steps < 1:
            raise UserError(f"the steps of a future must be at least 1, found {steps}")
        padded = [self._padded(sequence, steps) for sequence in sequences]
        spent = {one: Cost() for one in padded}
        unknown = ""
        if padded and not math.isfinite(self._validation):
            unknown = self._evaluate_start()
            spent[padded[0]] += Cost(flops=self._run.flops_per_evaluation)
        starts: dict[int, dict[InterventionSequence, Future]] = {}  # by their steps
        for one in dict.fromkeys(padded):
            known = self._cache.longest(one, steps, draw)
            end = self._cache.end(one, steps, draw, measure)
            measured = measure == "horizon" or end is not None
            if (known.steps < steps or not measured) and not known.ended:
                starts.setdefault(known.steps, {})[one] = known
        for _, group in sorted(starts.items()):
            if not unknown:
                self._train(group, steps, measure, draw, spent)
                continue
            for one in group:
                self._cache.add_error(one, steps, draw, unknown)
        # Steps that two sequences share, since they differ only later, are charged to the first.
        return [self._outcome(one, steps, measure, draw, spent.pop(one, Cost())) for one in padded]

    def future(self, sequence: Sequence[Intervention], steps: int, /, *, draw: int = 0) -> Future:
        """Return a future that was run for `steps` steps, or that ended before."""
        return self._cache.longest(self._padded(sequence, steps), steps, draw)

    def adopt(
        self, sequence: Sequence[Intervention], steps: int, /, *, draw: int = 0
    ) -> tuple[Telemetry, ...]:
        """Make the run a future that was trained, and return the telemetry of its steps.

        The steps are charged as the run's own. If the future starts from an earlier snapshot, the
        run first goes back there, as `Run.rewind` does.

        Args:
            sequence: Interventions of the future.
            steps: Optimizer steps of the future.
            draw: Order of the data that the future was trained on.

        Raises:
            UserError: The future was not run for `steps` steps, or it ended before; or the run was
                trained or changed since.
        """
        future = self.future(sequence, steps, draw=draw)
        if future.state is None or future.error or future.steps != steps:
            raise UserError(
                f"expected a future that was run for {steps} steps, found one of {future.steps}; "
                "run it first"
            )
        if self._unchanged != (self._run.step, self._run.applied, self._run.horizon):
            raise UserError(
                f"expected the run as it was when its rollouts were made, at step "
                f"{self._unchanged[0]}, found it trained or changed since, at step "
                f"{self._run.step}; make new Rollouts of it"
            )
        if self._run.retrains:
            return self._retrain(self._padded(sequence, steps), steps, draw)
        if self.past:
            self._run.rewind(self._start)
        flagged = self._run.flagged
        end = self._run.horizon.end
        self._run.restore(future.state)
        if self.past:
            # The future has neither the flags nor the shorter budget of the run that it leaves.
            self._run.flag(flagged)
            self._run.end_at(end)
        self._run.ledger.move("verify", self._run.purpose, future.flops)
        return future.telemetry

    def kept_flops(self, sequence: Sequence[Intervention], steps: int, /) -> float:
        """Return the FLOPs of a future that become the run's own if it is adopted."""
        if self._run.retrains:
            return 0.0
        return self.future(sequence, steps).flops

    def _retrain(
        self, sequence: InterventionSequence, steps: int, draw: int
    ) -> tuple[Telemetry, ...]:
        """Train the steps of a future once more, as the run's own; return their telemetry.

        Whoever follows the run then sees each of its steps once.
        """
        run = self._run
        flagged = run.flagged
        if self.past:
            run.rewind(self._start)
            run.restore(self._start)  # the future did not have the flags of the run that it leaves
        for _ in range(draw):
            run.apply(Intervention(data_reorder=True))
        telemetry: list[Telemetry] = []
        each = self._loop.decision_steps
        for decision, intervention in enumerate(sequence):
            run.apply(intervention)
            telemetry += run.advance(min(each, steps - decision * each))
        run.flag(flagged)
        return tuple(telemetry)

    def _evaluate_start(self) -> str:
        """Measure the validation loss at the start; return the error, empty if there is none."""
        try:
            run = self._run
            if self.past:
                run = fork_at(run, Start(state=self._start, draw=0, ledger=run.ledger))
            self._validation = run.evaluate()
        except Exception as error:  # whatever a model may raise
            return describe_error(error)
        if math.isfinite(self._validation):
            return ""
        return (
            "the validation loss is not finite where the branches start, "
            "so that there is nothing to compare them with"
        )

    @property
    def _cap(self) -> float:
        """Validation loss from which on a future has diverged, above that at the start."""
        return max(self._bound, 2 * self._validation)

    # ── training futures ──────────────────────────────────────────────────────────────────────────

    def _train(
        self,
        known: dict[InterventionSequence, Future],
        steps: int,
        measure: Measure,
        draw: int,
        spent: dict[InterventionSequence, Cost],
    ) -> None:
        """Train futures that are at the same step: together, or one at a time if that fails.

        Args:
            known: Sequences to train, each with the future that its training continues from.
            steps: Optimizer steps of a whole future.
            measure: Loss that is measured in addition to the validation loss.
            draw: Order of the data.
            spent: Cost of each sequence, which is added to.
        """
        error = ""
        try:
            fold = self._fold and len(known) > 1
            self._train_together(known, steps, measure, draw, spent, fold=fold)
        except Exception as raised:  # any error of a model, out of memory included
            error = describe_error(raised)
        if not error:
            return
        if len(known) == 1:
            self._cache.add_error(next(iter(known)), steps, draw, error)
            return
        # Not in the clause above: the exception keeps all those forks in memory.
        for sequence in known:
            future = self._cache.longest(sequence, steps, draw)
            if future.ended:
                continue
            flops = sum(cost.flops for cost in spent.values())
            flops += self.cost([sequence], steps, measure=measure, draw=draw).flops
            if flops > self._limit:
                why = f"{error} (and no budget is left to train it by itself)"
                self._cache.add_error(sequence, steps, draw, why)
            else:
                self._train({sequence: future}, steps, measure, draw, spent)

    def _train_together(
        self,
        known: dict[InterventionSequence, Future],
        steps: int,
        measure: Measure,
        draw: int,
        spent: dict[InterventionSequence, Cost],
        *,
        fold: bool,
    ) -> None:
        """See `_train`. An error that is not of one branch alone is raised."""
        ledgers = [Ledger() for _ in known]
        branches = [
            LiveBranch(sequence, future, future.evaluations or ((0, self._validation),))
            for sequence, future in known.items()
        ]
        # In folded runs the parameters of a group are one tensor.
        fold = fold and not any(one.clip in PER_TENSOR for sequence in known for one in sequence)
        together = self._forks(list(known.values()), draw, ledgers, fold=fold)
        try:
            sound = self._loop.train(together, branches, steps, cap=self._cap)
            for number, branch in enumerate(branches):
                branch.flops = branch.start.flops + ledgers[number]["verify"]
                if number in sound:
                    branch.state = together.snapshot(number)
            for branch in branches:
                if branch.new_steps or branch.error:
                    self._cache.add(branch.future(), draw)
            self._measure_end(together, branches, sound, steps, measure, draw)
        finally:
            for ledger in ledgers:
                for purpose in ("verify", "evaluate"):
                    self._run.ledger.charge(purpose, ledger[purpose])
            for branch, ledger in zip(branches, ledgers):  # failed ones too: they were paid for
                spent[branch.sequence] += Cost(
                    steps=branch.new_steps, flops=ledger["verify"] + ledger["evaluate"]
                )

    def _forks(
        self, futures: Sequence[Future], draw: int, ledgers: Sequence[Ledger], *, fold: bool
    ) -> RunGroup[Branchable]:
        starts = []
        for future, ledger in zip(futures, ledgers):
            start = Start(state=self._start, draw=draw, ledger=ledger)
            if future.state is not None:  # the data of that state are reordered already
                start = Start(state=future.state, draw=0, ledger=ledger)
            starts.append(start)
        return side_by_side(
            self._run, starts, fold=fold, workers=self._workers, executor=self._executor
        )

    def _measure_end(
        self,
        together: RunGroup[Branchable],
        branches: Sequence[LiveBranch],
        sound: list[int],
        steps: int,
        measure: Measure,
        draw: int,
    ) -> None:
        """Measure the loss of branches after the cool-down, or at the end of the run."""
        if measure == "horizon" or not sound:
            return
        after = self._after(steps, measure)
        train = partial(together.advance, after)
        if measure == "annealed" and after > 0:
            train = partial(cool_down, together, after)
        for number, fresh in ask_each(together, branches, sound, train):
            branches[number].new_steps += len(fresh)
        sound = [number for number in sound if not branches[number].error]
        for number, loss in ask_each(together, branches, sound, together.evaluate):
            self._cache.add_end(branches[number].sequence, steps, draw, measure, loss)
        for branch in branches:
            if branch.error:
                self._cache.add_error(branch.sequence, steps, draw, branch.error)

    def _after(self, steps: int, measure: Measure) -> int:
        """Return the steps from the end of a branch until its last loss is measured."""
        left = max(0, self._run.horizon.end - self._run.step - steps)
        return {"horizon": 0, "annealed": self._cooldown, "final": left}[measure]

    def _padded(self, sequence: Sequence[Intervention], steps: int) -> InterventionSequence:
        """Return one intervention for each decision before `steps`."""
        decisions = max(1, -(-steps // self._loop.decision_steps))
        return (*sequence, *NOTHING * decisions)[:decisions]

    def _outcome(
        self, padded: InterventionSequence, steps: int, measure: Measure, draw: int, spent: Cost
    ) -> Outcome:
        future = self._cache.longest(padded, steps, draw)
        evaluations = future.evaluations or ((0, self._validation),)
        end = self._cache.end(padded, steps, draw, measure)
        diverged = future.diverged or (end is not None and not end < self._cap)
        if end is None:
            end = math.nan
        readings = [t.reading.volatility for t in future.telemetry]
        volatility = math.nan
        if readings:
            volatility = sum(readings) / len(readings)
        return Outcome(
            looks=tuple(step for step, _ in evaluations),
            validation=tuple(loss for _, loss in evaluations),
            annealed=end if measure == "annealed" else math.nan,
            final=end if measure == "final" else math.nan,
            diverged=diverged,
            volatility=volatility,
            steps=spent.steps,
            flops=spent.flops,
            error=future.error or future.stopped,
        )
