"""Plan and run the branches of one snapshot.

All branches of a snapshot see the same batches, unless they reorder or skip data, and one of them
is a do-nothing control. If branches run one after the other, the control repeats the trunk bit for
bit. Folded into one batched program, it repeats it within rounding. All branches of a snapshot are
folded, or none, so they stay comparable.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal, get_args

import numpy as np

from trainenv.interventions import ActionCodec
from trainenv.rollouts.cooldown import cool_down
from trainenv.rollouts.group import InTurn
from trainenv.types import Fold, Intervention, Run, RunGroup, Snapshot, Telemetry
from trainenv.worldmodel.dataset.actions import Draw, spread
from trainenv.worldmodel.dataset.branch_points import Point
from trainenv.worldmodel.dataset.design import DECISIONS, Design, Lengths
from trainenv.worldmodel.dataset.faults import Fault, train
from trainenv.worldmodel.dataset.rng_streams import stream
from trainenv.worldmodel.dataset.trunks import Trunk

Kind = Literal["control", "nudged", "reordered", "single", "sequence", "every"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Phase = Literal["branch", "cooldown", "rest"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A branch to run.

    | kind | is |
    |---|---|
    | `control` | does nothing |
    | `nudged` | the control with each weight moved by one unit in the last place |
    | `reordered` | the control with the coming data reordered |
    | `single` | one random intervention at the start |
    | `sequence` | a random intervention at each of four decisions |
    | `every` | a given action at the start; a snapshot has all legal ones, or none |

    Nudged and reordered branches measure noise.

    Attributes:
        kind: Kind of branch.
        replica: Number among the branches of its kind; it seeds the nudge, and is the number of
            reorders.
        uniforms: Uniform random number in [0, 1) for each decision; empty if nothing is drawn.
        action: Action vector, for the kind `every`.
    """

    kind: Kind
    replica: int = 0
    uniforms: tuple[float, ...] = ()
    action: tuple[int, ...] = ()


@dataclass(kw_only=True)
class Played:
    """Measurements of a branch.

    A loss is NaN if the weights were non-finite before, or if it was not wanted.

    Attributes:
        plan: Plan of the branch.
        draws: Interventions, up to the end or until the weights were non-finite.
        validation: [9] clean validation losses at the start and at 8 evaluation points, nats per
            token.
        annealed: Validation loss after the reference cool-down.
        final: Validation loss at the end of the schedule.
        diverged_at: Steps into the branch; −1 if it did not diverge within the horizon.
        flops: FLOPs by phase, evaluation included.
        telemetry: Telemetry of each step, by phase.
    """

    plan: Plan
    draws: list[Draw] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    annealed: float = math.nan
    final: float = math.nan
    diverged_at: int = -1
    flops: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    telemetry: dict[Phase, list[Telemetry]] = field(
        default_factory=lambda: {phase: [] for phase in PHASES}
    )


def plans(trunk: Trunk, design: Design, place: int, run: Run) -> tuple[list[Plan], bool]:
    """Return the branches of a snapshot, the control first, and whether they run to the end.

    Args:
        trunk: Trunk of the snapshot.
        design: Numbers of branches of each kind.
        place: Number of the snapshot in its trunk.
        run: Run in the state of the snapshot, which tells what is legal.
    """
    rng = stream(trunk.seed, "branches", place)
    replicated, continued, exhaustive = (
        rng.random() < p for p in (design.replicated, design.continued, design.exhaustive)
    )
    listed = [Plan(kind="control")]
    if replicated:
        noise: tuple[Kind, ...] = ("nudged", "reordered")
        listed += [
            Plan(kind=kind, replica=1 + replica)
            for kind in noise
            for replica in range(design.replicas)
        ]
    singles = spread(rng, design.singles, 1)
    sequences = spread(rng, design.sequences, DECISIONS)
    listed += [
        Plan(kind="single", replica=k, uniforms=tuple(row))
        for k, row in enumerate(singles.tolist())
    ]
    listed += [
        Plan(kind="sequence", replica=k, uniforms=tuple(row))
        for k, row in enumerate(sequences.tolist())
    ]
    if exhaustive and design.folds(trunk.size.width):
        listed += [
            Plan(kind="every", replica=k, action=action) for k, action in enumerate(_every(run))
        ]
    return listed, continued


def _every(run: Run) -> list[tuple[int, ...]]:
    """All legal action vectors except doing nothing, without data reorder and skipping."""
    masks = ActionCodec(run.config.interventions).masks(run)[:4]
    whole = product(*(np.flatnonzero(mask).tolist() for mask in masks))
    return [(*action, 0, 0) for action in whole if any(action)]


def play_all(
    run: Run,
    point: Point,
    listed: Sequence[Plan],
    trunk: Trunk,
    design: Design,
    *,
    to_end: bool,
    fold: Fold | None = None,
) -> list[Played]:
    """Run the branches of a point, folded where that is faster, and return them in order.

    Afterwards the run is in the state of the point or at the end of a branch.
    """
    if fold is None or not design.folds(trunk.size.width):
        return [_play_alone(run, point, plan, trunk, design, to_end=to_end) for plan in listed]
    played: list[Played] = []
    most = design.fold[1]
    groups = -(-len(listed) // most)
    for number in range(groups):  # of even sizes
        group = listed[number::groups]
        _start(run, point)
        forks = [run.fork() for _ in group]
        for fork in forks:
            fork.ledger = copy.deepcopy(run.ledger)  # to count each branch's compute separately
        played += _play(fold(forks), point, group, trunk, design, to_end=to_end)
    order = [place for number in range(groups) for place in range(number, len(listed), groups)]
    return [one for _, one in sorted(zip(order, played), key=lambda pair: pair[0])]


def _play_alone(
    run: Run, point: Point, plan: Plan, trunk: Trunk, design: Design, *, to_end: bool
) -> Played:
    _start(run, point)
    (played,) = _play(InTurn([run]), point, [plan], trunk, design, to_end=to_end)
    return played


def _start(run: Run, point: Point) -> None:
    run.restore(point.snapshot)
    run.flag(point.flagged)


def _play(
    together: RunGroup[Run],
    point: Point,
    listed: Sequence[Plan],
    trunk: Trunk,
    design: Design,
    *,
    to_end: bool,
) -> list[Played]:
    """Run branches side by side, from runs in the state of the point."""
    lengths = design.lengths(trunk.steps)
    runs = together.runs
    branches = [Played(plan=plan, validation=[point.validation]) for plan in listed]
    for run, plan in zip(runs, listed):
        if plan.kind == "nudged":
            nudge(run, trunk.seed, plan.replica)
        if plan.kind == "reordered":
            for _ in range(plan.replica):
                run.apply(Intervention(data_reorder=True))
    meter = _Meter(runs, branches)
    sound = _horizon(together, branches, lengths, trunk.faults, design)
    meter.read("branch")
    points = 1 + lengths.horizon // lengths.look
    for played in branches:
        played.validation += [math.nan] * (points - len(played.validation))
    at_horizon: dict[int, Snapshot] = {}
    if to_end:
        at_horizon = {number: runs[number].snapshot() for number in sound}
    _note(branches, sound, "cooldown", cool_down(together, lengths.cooldown, sound))
    for number, loss in zip(sound, _evaluate(together, sound)):
        branches[number].annealed = loss
    meter.read("cooldown")
    if at_horizon:
        for number, snapshot in at_horizon.items():
            runs[number].restore(snapshot)
        left = trunk.steps - runs[sound[0]].step
        _note(branches, sound, "rest", train(together, left, trunk.faults, sound))
        for number, loss in zip(sound, together.evaluate(sound)):
            branches[number].final = loss
        meter.read("rest")
    return branches


def _evaluate(together: RunGroup[Run], among: Sequence[int]) -> list[float]:
    if not among:
        return []
    return together.evaluate(among)


class _Meter:
    """Meter of the FLOPs that each branch spends in a phase."""

    def __init__(self, runs: Sequence[Run], branches: Sequence[Played]) -> None:
        self._runs = runs
        self._branches = branches
        self._before = [run.ledger.total for run in runs]

    def read(self, phase: Phase) -> None:
        """Note the FLOPs since the last reading as those of a phase."""
        now = [run.ledger.total for run in self._runs]
        for played, before, total in zip(self._branches, self._before, now):
            played.flops[phase] = total - before
        self._before = now


def _note(
    branches: Sequence[Played], among: Sequence[int], phase: Phase, fresh: Sequence[list[Telemetry]]
) -> None:
    for number, telemetry in zip(among, fresh):
        branches[number].telemetry[phase] += telemetry


def _horizon(
    together: RunGroup[Run],
    branches: Sequence[Played],
    lengths: Lengths,
    faults: Sequence[Fault],
    design: Design,
) -> list[int]:
    """Run the decisions of branches and the steps after each, up to the horizon.

    Returns:
        Numbers of the branches whose weights stayed finite.
    """
    runs = together.runs
    codec = ActionCodec(runs[0].config.interventions)
    start = runs[0].step
    cap = design.divergence * runs[0].uniform_loss
    sound = list(range(len(branches)))
    for decision in range(DECISIONS):
        for number in sound:
            draw = _decide(codec, runs[number], branches[number].plan, decision, design)
            runs[number].apply(draw.intervention)
            branches[number].draws.append(draw)
        for _ in range(lengths.decision // lengths.look):
            fresh = train(together, lengths.look, faults, sound)
            _note(branches, sound, "branch", fresh)
            for number, telemetry, loss in zip(sound, fresh, _evaluate(together, sound)):
                played = branches[number]
                played.validation.append(loss)
                if played.diverged_at < 0:
                    bad = [t.step - start for t in telemetry if not math.isfinite(t.loss)]
                    if not loss < cap:
                        bad.append(runs[number].step - start)
                    played.diverged_at = min(bad, default=-1)
            sound = [number for number in sound if math.isfinite(branches[number].validation[-1])]
    return sound


def _decide(codec: ActionCodec, run: Run, plan: Plan, decision: int, design: Design) -> Draw:
    if plan.action and decision == 0:
        return Draw(codec.decode(plan.action), 1.0)
    if decision >= len(plan.uniforms):
        return Draw(Intervention(), 1.0)
    policy = design.first if plan.kind == "single" else design.later
    return policy.draw(codec, run, plan.uniforms[decision])


def nudge(run: Run, seed: int, replica: int) -> None:
    """Move every weight to the next float above or below it, at random."""
    import torch

    generator = torch.Generator().manual_seed(int(stream(seed, "nudge", replica).integers(2**62)))
    with torch.no_grad():
        for parameter in run.model.parameters():
            up = torch.rand(parameter.shape, generator=generator) < 0.5
            towards = torch.where(up, math.inf, -math.inf).to(parameter)
            parameter.copy_(torch.nextafter(parameter, towards))


def recovery(
    validation: Sequence[float], level: float, tolerance: float, look: int
) -> tuple[int, bool]:
    """Return the steps until the validation loss has recovered, and whether it has.

    If it has not, the time is right-censored: the steps up to the last measurement.

    Args:
        validation: Validation loss at the start and every `look` steps, nats per token; NaN once
            the weights are non-finite.
        level: Loss before the fault, nats per token.
        tolerance: Difference to the level that counts as recovered, nats.
        look: Steps between two evaluation points.
    """
    losses = np.asarray(validation)
    back = np.flatnonzero(losses <= level + tolerance)  # never where NaN
    if len(back):
        return int(back[0]) * look, True
    measured = np.flatnonzero(np.isfinite(losses))
    return max(measured.tolist(), default=0) * look, False
