"""Futures of a run, trained for real: forks that see the same batches, side by side.

The run is left as it is.

    rollouts = Rollouts(run, decision_steps=25, cooldown=100) outcomes =
    rollouts.run([(Intervention(),), (Intervention(lr_scale=0.8),)], 50, measure="annealed")
    rollouts.adopt((Intervention(lr_scale=0.8),), 50)          # the run becomes that future: those
    steps are not trained again

Tiny models are folded into one (`trainenv.rollouts.folded`), others are trained in turn, a stretch
each, or in worker processes (`trainenv.rollouts.remote`). What a future has come to is kept, so
that going on with it costs only what is new. A future that fails (out of memory, an error of the
model's) says so in its outcome and the others go on; one whose validation loss is not finite, or
beyond all bounds, has diverged and is not trained further. With `stopping`, a clear loser against
doing nothing is stopped early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from trainenv.rollouts.cooldown import cool_down
from trainenv.rollouts.fork import Start, fork_at
from trainenv.rollouts.future import Future, Growing, Sequenced, over
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

NOTHING: Sequenced = (Intervention(),)


Stopping = Callable[[Sequence[Telemetry], Sequence[Telemetry]], str]
"""(steps of a future, the same steps of doing nothing) → why it is stopped here; empty: it goes on."""


class Rollouts:
    """A `trainenv.types.Executor` over a live run.

    Args:
        run: forked as it is now; until `adopt` it is only read.
        start: an earlier snapshot that futures start from instead: they are what the run could have
            done since.
        decision_steps: steps from one intervention of a sequence to the next.
        cooldown: steps of the reference cool-down, for the measure `annealed`.
        look: steps between looks at the validation loss; None: only where a future ends.
        validation: the run's loss now where it is known, so that it is not measured again.
        stopping: stops futures that clearly lose, asked after each quarter of the steps.
        fold: whether tiny models are folded.
        workers: processes that train what is not folded; 0: in turn, in this one.
        limit: FLOPs beyond which no future is trained a second time, by itself, after all together
            have failed.

    Attributes:
        past: whether futures start before where the run is.

    Raises:
        UserError: a step count is below 1 (`cooldown`: below 0), or the run has not come as far as
            `start`.
    """

    def __init__(
        self,
        run: Run,
        *,
        decision_steps: int,
        start: Snapshot | None = None,
        cooldown: int = 0,
        look: int | None = None,
        validation: float = math.nan,
        stopping: Stopping | None = None,
        fold: bool = True,
        workers: int = 0,
        limit: float = math.inf,
    ) -> None:
        if decision_steps < 1 or cooldown < 0 or workers < 0 or (look is not None and look < 1):
            raise UserError(
                f"decision_steps and look must be at least 1 and cooldown and workers at least 0, found {decision_steps}, "
                f"{look}, {cooldown} and {workers}"
            )
        if start is not None and start.step > run.step:
            raise UserError(
                f"start must be a snapshot of step {run.step} or before, found step {start.step}"
            )
        self._run = run
        self._decision = decision_steps
        self._cooldown = cooldown
        self._look = look
        self._stopping = stopping
        self._fold = fold
        self._workers = workers
        self._limit = limit
        self._start = run.snapshot() if start is None else start
        self._validation = validation
        self.past = start is not None
        self._standing = run.step, run.applied, run.horizon
        # A loss that is not of tokens has no scale that we know: any finite one may be usual.
        self._bound = (
            math.inf
            if run.vocabulary is None
            else run.config.environment.divergence_loss * run.uniform_loss
        )
        self._futures: dict[int, list[Future]] = {}  # of each draw, the longest last
        self._ends: dict[
            tuple[int, Sequenced, int, Measure], float
        ] = {}  # annealed or final losses

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
        looked = 0 if math.isfinite(self._validation) else 1
        for padded in dict.fromkeys(self._padded(sequence, steps) for sequence in sequences):
            known = self._known(padded, steps, draw)
            if over(known):
                continue
            end = measure != "horizon" and (draw, padded, steps, measure) not in self._ends
            trained = steps - known.steps + self._after(steps, measure) * end
            taken = taken + trained
            probed = probed + run.flops_of_probes(trained)
            looked += self._looks(known.steps, steps) + end
        return Cost(
            steps=taken, flops=taken * run.flops_ahead + probed + looked * run.flops_per_evaluation
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
        starts: dict[int, dict[Sequenced, Future]] = {}
        for one in dict.fromkeys(padded):
            known = self._known(one, steps, draw)
            measured = measure == "horizon" or (draw, one, steps, measure) in self._ends
            if (known.steps < steps or not measured) and not over(known):
                starts.setdefault(known.steps, {})[one] = known
        for group in (starts[known_steps] for known_steps in sorted(starts)):
            if unknown:
                for one in group:
                    self._fail(one, steps, draw, unknown)
            else:
                self._train(group, steps, measure, draw, spent)
        # What two sequences share, for they differ only later on, is charged to the first.
        return [self._outcome(one, steps, measure, draw, spent.pop(one, Cost())) for one in padded]

    def future(self, sequence: Sequence[Intervention], steps: int, /, *, draw: int = 0) -> Future:
        """What became of a future that was run for so many steps, or ended before."""
        return self._known(self._padded(sequence, steps), steps, draw)

    def adopt(
        self, sequence: Sequence[Intervention], steps: int, /, *, draw: int = 0
    ) -> tuple[Telemetry, ...]:
        """The run becomes a future that was run; its steps are charged as the run's own.

        Returns what they measured.

        Of futures that start earlier: it goes back there first, as `Run.rewind` does.

        Raises:
            UserError: it was not run for so many steps, or has ended before; or the run was trained
                or changed since.
        """
        future = self.future(sequence, steps, draw=draw)
        if future.state is None or future.error or future.steps != steps:
            raise UserError(
                f"expected a future that was run for {steps} steps, found one of {future.steps}; run it first"
            )
        if self._standing != (self._run.step, self._run.applied, self._run.horizon):
            raise UserError(
                f"the run has gone on or was changed since step {self._start.step}, it is now at {self._run.step}; "
                "make new Rollouts of it"
            )
        if self.past:
            self._run.rewind(self._start)
        flagged = self._run.flagged
        end = self._run.horizon.end
        self._run.restore(future.state)
        if (
            self.past
        ):  # the future knows nothing of what was learned, and spent, since it has branched off
            self._run.flag(flagged)
            self._run.end_at(end)
        self._run.ledger.move("verify", self._run.purpose, future.flops)
        return future.telemetry

    def _evaluate_start(self) -> str:
        """Measure the validation loss at the start. Returns why that fails; empty: it is known."""
        try:
            run = self._run
            if self.past:
                run = fork_at(run, Start(state=self._start, draw=0, ledger=run.ledger))
            self._validation = run.evaluate()
        except Exception as error:  # whatever a model may raise
            return describe_error(error)
        if math.isfinite(self._validation):
            return ""
        return "the validation loss is not finite where the branches start, so that there is nothing to compare them with"

    @property
    def _cap(self) -> float:
        """The validation loss from which on a future has diverged; above what it starts from, whatever the scale of the loss."""
        return max(self._bound, 2 * self._validation)

    # ── training futures ──────────────────────────────────────────────────────────────────────────

    def _train(
        self,
        group: dict[Sequenced, Future],
        steps: int,
        measure: Measure,
        draw: int,
        spent: dict[Sequenced, Cost],
    ) -> None:
        """Train futures that have come equally far; where that fails for all together, one at a time."""
        error = ""
        try:
            self._go_on(group, steps, measure, draw, spent, fold=self._fold and len(group) > 1)
        except Exception as raised:  # whatever a model may raise, memory that is out among it
            error = describe_error(raised)
        if not error:
            return
        if len(group) == 1:
            self._fail(next(iter(group)), steps, draw, error)
            return
        for (
            one
        ) in group:  # not in the clause above: what was raised keeps all those forks in memory
            known = self._known(one, steps, draw)
            if over(known):
                continue
            flops = (
                sum(cost.flops for cost in spent.values())
                + self.cost([one], steps, measure=measure, draw=draw).flops
            )
            if flops > self._limit:
                self._fail(
                    one, steps, draw, f"{error} (and no budget is left to train it by itself)"
                )
            else:
                self._train({one: known}, steps, measure, draw, spent)

    def _fail(self, one: Sequenced, steps: int, draw: int, error: str) -> None:
        """Note that a future could not be trained, or measured, from where it has come to."""
        self._futures.setdefault(draw, []).append(
            replace(self._known(one, steps, draw), done=one, error=error)
        )

    def _go_on(
        self,
        group: dict[Sequenced, Future],
        steps: int,
        measure: Measure,
        draw: int,
        spent: dict[Sequenced, Cost],
        *,
        fold: bool,
    ) -> None:
        ledgers = [Ledger() for _ in group]
        branches = [Growing(one, known, self._start_losses(known)) for one, known in group.items()]
        together = self._forks(list(group.values()), draw, ledgers, fold=fold)
        try:
            sound = self._horizon(together, branches, steps)
            for number, branch in enumerate(branches):
                branch.flops = group[branch.sequence].flops + ledgers[number]["verify"]
                if number in sound:
                    branch.state = together.snapshot(number)
            for branch in branches:
                if branch.new_steps or branch.error:
                    self._futures.setdefault(draw, []).append(branch.future())
            self._beyond(together, branches, sound, steps, measure, draw)
        finally:
            for ledger in ledgers:
                for purpose in ("verify", "evaluate"):
                    self._run.ledger.charge(purpose, ledger[purpose])
            for branch, ledger in zip(branches, ledgers):  # also of what failed: it was spent
                spent[branch.sequence] += Cost(
                    steps=branch.new_steps, flops=ledger["verify"] + ledger["evaluate"]
                )

    def _forks(
        self, futures: Sequence[Future], draw: int, ledgers: Sequence[Ledger], *, fold: bool
    ) -> RunGroup[Branchable]:
        starts = [
            Start(
                state=future.state or self._start, draw=0 if future.steps else draw, ledger=ledger
            )
            for future, ledger in zip(futures, ledgers)
        ]
        return side_by_side(self._run, starts, fold=fold, workers=self._workers)

    def _horizon(
        self, together: RunGroup[Branchable], branches: Sequence[Growing], steps: int
    ) -> list[int]:
        """Train to `steps`; the numbers of those that got there."""
        sound = list(range(len(branches)))
        done = branches[0].steps
        control = next((b for b in branches if all(part.does_nothing for part in b.sequence)), None)
        start = done
        quarter = max(1, (steps - done) // 4)
        while done < steps and sound:
            if done % self._decision == 0:
                for number in sound:
                    branches[number].put_in_force(together.runs[number], done // self._decision)
                sound = [number for number in sound if not branches[number].over]
            ends = [
                self._decision - done % self._decision,
                quarter - (done - start) % quarter,
                steps - done,
            ]
            stretch = min(*ends, *([self._look - done % self._look] if self._look else []))
            for number, fresh in ask_each(
                together, branches, sound, partial(together.advance, stretch)
            ):
                branches[number].see(fresh)
            done += stretch
            sound = [number for number in sound if not branches[number].over]
            if sound and (done == steps or (self._look and done % self._look == 0)):
                for number, loss in ask_each(together, branches, sound, together.evaluate):
                    branches[number].looked(done, loss, self._cap)
            if (
                control is not None
                and self._stopping is not None
                and (done - start) % quarter == 0
                and done < steps
            ):
                for number in sound:
                    if branches[number] is not control and not control.over:
                        branches[number].stopped = self._stopping(
                            branches[number].telemetry, control.telemetry
                        )
            sound = [number for number in sound if not branches[number].over]
        return sound

    def _beyond(
        self,
        together: RunGroup[Branchable],
        branches: Sequence[Growing],
        sound: list[int],
        steps: int,
        measure: Measure,
        draw: int,
    ) -> None:
        """The loss after the cool-down, or at the end of the run."""
        after = self._after(steps, measure)
        if measure == "horizon" or not sound:
            return
        annealed = measure == "annealed" and after > 0
        train = (
            partial(cool_down, together, after) if annealed else partial(together.advance, after)
        )
        for number, fresh in ask_each(together, branches, sound, train):
            branches[number].new_steps += len(fresh)
        sound = [number for number in sound if not branches[number].error]
        for number, loss in ask_each(together, branches, sound, together.evaluate):
            self._ends[draw, branches[number].sequence, steps, measure] = loss
        for branch in branches:
            if branch.error:
                self._fail(branch.sequence, steps, draw, branch.error)

    def _after(self, steps: int, measure: Measure) -> int:
        """Steps from the end of a branch on, until its last loss is measured."""
        left = max(0, self._run.horizon.end - self._run.step - steps)
        return {"horizon": 0, "annealed": self._cooldown, "final": left}[measure]

    # ── what is known ─────────────────────────────────────────────────────────────────────────────

    def _padded(self, sequence: Sequence[Intervention], steps: int) -> Sequenced:
        """What is put in force at each decision before `steps`."""
        decisions = max(1, -(-steps // self._decision))
        return (*sequence, *NOTHING * decisions)[:decisions]

    def _known(self, padded: Sequenced, steps: int, draw: int) -> Future:
        """The future that has come farthest on the way, or the start."""
        fitting = [
            one
            for one in self._futures.get(draw, ())
            if one.steps <= steps and one.done == padded[: len(one.done)]
        ]
        return max(fitting, key=lambda one: (one.steps, over(one)), default=Future())

    def _looks(self, start: int, end: int) -> int:
        """How often the loss is measured on the way, at the end included."""
        if start == end or self._look is None:
            return int(start < end)
        return end // self._look - start // self._look + (end % self._look > 0)

    def _start_losses(self, start: Future) -> tuple[tuple[int, float], ...]:
        return start.looks or ((0, self._validation),)

    def _outcome(
        self, padded: Sequenced, steps: int, measure: Measure, draw: int, spent: Cost
    ) -> Outcome:
        future = self._known(padded, steps, draw)
        end = self._ends.get((draw, padded, steps, measure))
        readings = [t.reading.volatility for t in future.telemetry]
        return Outcome(
            looks=tuple(step for step, _ in future.looks) or (0,),
            validation=tuple(loss for _, loss in future.looks) or (self._validation,),
            annealed=math.nan if end is None or measure != "annealed" else end,
            final=math.nan if end is None or measure != "final" else end,
            diverged=future.diverged or (end is not None and not end < self._cap),
            volatility=sum(readings) / len(readings) if readings else math.nan,
            steps=spent.steps,
            flops=spent.flops,
            error=future.error or future.stopped,
        )
