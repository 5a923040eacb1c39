"""Branches of one snapshot: which are run, and what running one measures.

All branches of a snapshot see the same batches (but where they reorder or skip) and stand beside a do-nothing control, which is
bit for bit the trunk going on. `play_all` takes all branches of a snapshot at once: folding them into one batched program
changes this function alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from trainenv.interventions import ActionCodec
from trainenv.types import Intervention, Telemetry
from worldmodel.dataset.actions import Draw, spread
from worldmodel.dataset.contract import Run
from worldmodel.dataset.design import DECISIONS, Design, Lengths
from worldmodel.dataset.faults import Fault, train
from worldmodel.dataset.points import Point
from worldmodel.dataset.streams import stream
from worldmodel.dataset.trunks import Trunk

Kind = Literal["control", "nudged", "reordered", "single", "sequence"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Phase = Literal["branch", "cooldown", "rest"]
PHASES: tuple[Phase, ...] = get_args(Phase)
_STAIRS = 16  # of the cool-down: a call a step would cost a twentieth of it


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A branch to be run.

    Attributes:
        kind: the do-nothing *control*; the same with every weight *nudged* by one unit in the last place, or with the data to
            come *reordered*: what then differs is noise; a *single* intervention at the start; a *sequence* of four.
        replica: which of several of the kind; it says how to nudge, and how often to reorder.
        uniforms: a number in [0, 1) for each decision, for its policy to draw at; empty where nothing is drawn.
    """

    kind: Kind
    replica: int = 0
    uniforms: tuple[float, ...] = ()


@dataclass(kw_only=True)
class Played:
    """What a branch measured. A loss is NaN where there is none: the weights were lost before, or it was not asked for.

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
    telemetry: dict[Phase, list[Telemetry]] = field(default_factory=lambda: {phase: [] for phase in PHASES})


def plans(trunk: Trunk, design: Design, place: int) -> tuple[list[Plan], bool]:
    """The branches of the snapshot at `place` among its trunk's, the control first, and whether they go on to the end."""
    rng = stream(trunk.seed, "branches", place)
    replicated, continued = rng.random() < design.replicated, rng.random() < design.continued
    listed = [Plan(kind="control")]
    if replicated:
        noise: tuple[Kind, ...] = ("nudged", "reordered")
        listed += [Plan(kind=kind, replica=1 + replica) for kind in noise for replica in range(design.replicas)]
    singles, sequences = spread(rng, design.singles, 1), spread(rng, design.sequences, DECISIONS)
    listed += [Plan(kind="single", replica=k, uniforms=tuple(row)) for k, row in enumerate(singles.tolist())]
    listed += [Plan(kind="sequence", replica=k, uniforms=tuple(row)) for k, row in enumerate(sequences.tolist())]
    return listed, continued


def play_all(run: Run, point: Point, listed: Sequence[Plan], trunk: Trunk, design: Design, *, to_end: bool) -> list[Played]:
    """Run the branches of a point, one after the other. The run is left wherever the last one ended."""
    return [_play(run, point, plan, trunk, design, to_end=to_end) for plan in listed]


def _play(run: Run, point: Point, plan: Plan, trunk: Trunk, design: Design, *, to_end: bool) -> Played:
    lengths = design.lengths(trunk.steps)
    run.restore(point.snapshot)
    run.flag(point.flagged)
    played = Played(plan=plan, validation=[point.validation])
    if plan.kind == "nudged":
        nudge(run, trunk.seed, plan.replica)
    for _ in range(plan.replica if plan.kind == "reordered" else 0):
        run.apply(Intervention(data_reorder=True))
    _horizon(run, played, lengths, trunk.faults, design)
    if not math.isfinite(played.validation[-1]):
        played.validation += [math.nan] * (1 + lengths.horizon // lengths.look - len(played.validation))
        return played
    there = run.snapshot() if to_end else None
    spent = run.ledger.total
    played.telemetry["cooldown"] = cool_down(run, lengths.cooldown)
    played.annealed = run.evaluate()
    played.flops["cooldown"] = run.ledger.total - spent
    if there is not None:
        run.restore(there)
        spent = run.ledger.total
        played.telemetry["rest"] = train(run, trunk.steps - run.step, trunk.faults)
        played.final = run.evaluate()
        played.flops["rest"] = run.ledger.total - spent
    return played


def _horizon(run: Run, played: Played, lengths: Lengths, faults: Sequence[Fault], design: Design) -> None:
    """The decisions of a branch and the steps after each, up to the horizon or to the loss of the weights."""
    codec = ActionCodec(run.config.interventions)
    start, spent, cap = run.step, run.ledger.total, design.divergence * run.uniform_loss
    for decision in range(DECISIONS):
        draw = Draw(Intervention(), 1.0)
        if decision < len(played.plan.uniforms):
            policy = design.first if played.plan.kind == "single" else design.later
            draw = policy.draw(codec, run, played.plan.uniforms[decision])
        run.apply(draw.intervention)
        played.draws.append(draw)
        for _ in range(lengths.decision // lengths.look):
            fresh = train(run, lengths.look, faults)
            played.telemetry["branch"] += fresh
            played.validation.append(run.evaluate())
            if played.diverged_at < 0:
                lost = [t.step - start for t in fresh if not math.isfinite(t.loss)]
                beyond = [] if played.validation[-1] < cap else [run.step - start]
                played.diverged_at = min(lost + beyond, default=-1)
            if not math.isfinite(played.validation[-1]):
                played.flops["branch"] = run.ledger.total - spent
                return
    played.flops["branch"] = run.ledger.total - spent


def cool_down(run: Run, steps: int) -> list[Telemetry]:
    """The reference cool-down: the learning rate of the schedule times a line that falls to 0 over `steps`, in 16 stairs."""
    scale, start = run.lr_scale, run.step
    measured: list[Telemetry] = []
    bounds = sorted({round(stair * steps / _STAIRS) for stair in range(_STAIRS + 1)})
    for bound in bounds[1:]:
        # No interventions: they are bounded below, and would stand in the run's record.
        middle = (run.step - start + bound) / 2
        run.lr_scale = scale * (1 - middle / steps)
        measured += run.advance(bound - (run.step - start))
    return measured


def nudge(run: Run, seed: int, replica: int) -> None:
    """Move every weight to the next float above or below it, at random."""
    import torch

    generator = torch.Generator().manual_seed(int(stream(seed, "nudge", replica).integers(2**62)))
    with torch.no_grad():
        for parameter in run.model.parameters():
            up = torch.rand(parameter.shape, generator=generator) < 0.5
            towards = torch.where(up, math.inf, -math.inf).to(parameter)
            parameter.copy_(torch.nextafter(parameter, towards))


def recovery(validation: Sequence[float], level: float, tolerance: float, look: int) -> tuple[int, bool]:
    """Steps until the validation loss is back at `level` + `tolerance`, and whether it came back.

    If not, the time is right-censored: the number of steps up to the last measurement.

    Args:
        validation: the loss at the start and every `look` steps, nats per token; NaN from where the weights were lost.
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
