"""Branches of one snapshot: which are run, and what running one measures.

All branches of a snapshot see the same batches (but where they reorder or skip) and stand beside a
do-nothing control. One after the other, the control is bit for bit the trunk going on; folded into
one batched program, it is within rounding of it, and folded as all that it is compared with.
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
from trainenv.types import Fold, Intervention, Run, RunGroup, Telemetry
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
    """A branch to be run.

    Attributes:
        kind: the do-nothing *control*; the same with every weight *nudged* by one unit in the last
            place, or with the data to come *reordered*: what then differs is noise; a *single*
            intervention at the start; a *sequence* of four; *every* legal action by itself at the
            start.
        replica: which of several of the kind; it says how to nudge, and how often to reorder.
        uniforms: a number in [0, 1) for each decision, for its policy to draw at; empty where
            nothing is drawn.
        action: the action vector, where none is drawn.
    """

    kind: Kind
    replica: int = 0
    uniforms: tuple[float, ...] = ()
    action: tuple[int, ...] = ()


@dataclass(kw_only=True)
class Played:
    """What a branch measured.

    A loss is NaN where there is none: the weights were lost before, or it was not asked for.

    Attributes:
        draws: what was decided, up to the end or to the loss of the weights.
        validation: [9] clean validation loss at the start and at each of 8 looks, nats per token.
        annealed: that after the reference cool-down; `final` that at the end of the schedule.
        diverged_at: steps into the branch; −1 if it did not diverge within the horizon.
        flops: by phase, evaluation included.
        telemetry: of every step, by phase.
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
    """The branches of the snapshot at `place` among its trunk's, the control first, and whether they go on to the end.

    Args:
        trunk: that the snapshot is of.
        design: how many of which kind.
        place: of the snapshot in its trunk.
        run: in the snapshot's state, which says what is legal.
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
    """Every legal action vector but doing nothing, data reorder and skipping left out."""
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
    """Run the branches of a point, folded where that is faster, else one after the other; in the order listed.

    The run is left in the state of the point, or wherever the last branch ended.
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
            fork.ledger = copy.deepcopy(run.ledger)  # so that each branch's own compute can be told
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
    """Branches side by side, from runs that are in the state of the point."""
    lengths = design.lengths(trunk.steps)
    runs = together.runs
    branches = [Played(plan=plan, validation=[point.validation]) for plan in listed]
    for run, plan in zip(runs, listed):
        if plan.kind == "nudged":
            nudge(run, trunk.seed, plan.replica)
        for _ in range(plan.replica if plan.kind == "reordered" else 0):
            run.apply(Intervention(data_reorder=True))
    meter = _Meter(runs, branches)
    sound = _horizon(together, branches, lengths, trunk.faults, design)
    meter.read("branch")
    for played in branches:
        played.validation += [math.nan] * (
            1 + lengths.horizon // lengths.look - len(played.validation)
        )
    there = {number: runs[number].snapshot() for number in sound} if to_end else {}
    _note(branches, sound, "cooldown", cool_down(together, lengths.cooldown, sound))
    for number, loss in zip(sound, together.evaluate(sound) if sound else ()):
        branches[number].annealed = loss
    meter.read("cooldown")
    if there:
        for number, snapshot in there.items():
            runs[number].restore(snapshot)
        left = trunk.steps - runs[sound[0]].step
        _note(branches, sound, "rest", train(together, left, trunk.faults, sound))
        for number, loss in zip(sound, together.evaluate(sound)):
            branches[number].final = loss
        meter.read("rest")
    return branches


class _Meter:
    """What each branch has spent since it was last asked."""

    def __init__(self, runs: Sequence[Run], branches: Sequence[Played]) -> None:
        self._runs = runs
        self._branches = branches
        self._before = [run.ledger.total for run in runs]

    def read(self, phase: Phase) -> None:
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
    """The decisions of branches and the steps after each, up to the horizon.

    Returns those whose weights were not lost.
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
            for number, telemetry, loss in zip(
                sound, fresh, together.evaluate(sound) if sound else ()
            ):
                played = branches[number]
                run = runs[number]
                played.validation.append(loss)
                if played.diverged_at < 0:
                    lost = [t.step - start for t in telemetry if not math.isfinite(t.loss)]
                    beyond = [] if loss < cap else [run.step - start]
                    played.diverged_at = min(lost + beyond, default=-1)
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
    """Steps until the validation loss is back at `level` + `tolerance`, and whether it came back.

    If not, the time is right-censored: the number of steps up to the last measurement.

    Args:
        validation: the loss at the start and every `look` steps, nats per token; NaN from where the
            weights were lost.
        level: the loss before whatever happened.
        tolerance: nats above it that still count as recovered.
        look: steps.
    """
    losses = np.asarray(validation)
    back = np.flatnonzero(losses <= level + tolerance)  # never where NaN
    if len(back):
        return int(back[0]) * look, True
    measured = np.flatnonzero(np.isfinite(losses))
    return int(measured[-1]) * look if len(measured) else 0, False
