"""Rows of a trunk's tables; `configs/branches_schema.json` describes each column."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from trainenv.records.telemetry_log import row
from trainenv.types import Fold, Telemetry
from trainenv.worldmodel.dataset.branch_points import Point, Trained, train_trunk
from trainenv.worldmodel.dataset.branches import PHASES, Played, plans, play_all, recovery
from trainenv.worldmodel.dataset.contract import MakeRun, Run
from trainenv.worldmodel.dataset.design import Design
from trainenv.worldmodel.dataset.faults import PLANTED
from trainenv.worldmodel.dataset.texts import Texts
from trainenv.worldmodel.dataset.trunks import Trunk

Rows = list[dict[str, Any]]
Tables = dict[str, Rows]


def collect(
    trunk: Trunk, design: Design, make_run: MakeRun, texts: Texts, fold: Fold | None = None
) -> Tables:
    """Train a trunk, branch it at each of its points, and return the rows of all its tables."""
    run = make_run(trunk.overrides(texts))
    trained = train_trunk(run, trunk, design)
    tables: Tables = {
        "trunks": [_trunk_row(run, trunk, design, trained)],
        "trunk_steps": _steps(trained.telemetry, purpose="main"),
        "snapshots": [],
        "branches": [],
        "branch_steps": [],
    }
    for place, point in enumerate(trained.points):
        run.restore(point.snapshot)
        listed, to_end = plans(trunk, design, place, run)
        branches = play_all(run, point, listed, trunk, design, to_end=to_end, fold=fold)
        tables["snapshots"].append(
            _snapshot_row(run, trunk, design, place, point, trained, branches[0], to_end)
        )
        for number, played in enumerate(branches):
            keys = {"trunk": trunk.name, "snapshot": place, "branch": number}
            tables["branches"].append(keys | _branch_row(played, point, design, trunk))
            for phase in PHASES:
                steps = _steps(played.telemetry[phase], purpose="verify")
                tables["branch_steps"] += [
                    {"snapshot": place, "branch": number, "phase": phase, **values}
                    for values in steps
                ]
    return tables


def _steps(telemetry: Sequence[Telemetry], *, purpose: str) -> Rows:
    return [row(t, 0, purpose) for t in telemetry]


def _trunk_row(run: Run, trunk: Trunk, design: Design, trained: Trained) -> dict[str, Any]:
    lengths = design.lengths(trunk.steps)
    size = trunk.size
    steps, losses = zip(*trained.validations)
    snapshot = run.snapshot()
    final = None
    if steps[-1] == trunk.steps:
        final = _measured(losses[-1])
    return {
        "trunk": trunk.name,
        "seed": trunk.seed,
        "setting": trunk.setting,
        "width": size.width,
        "layers": size.layers,
        "context": size.context,
        "batch_size": size.batch_size,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "corpus": trunk.corpus,
        "budget": trunk.steps,
        "lr": size.lr * trunk.lr_factor,
        "lr_factor": trunk.lr_factor,
        "beta2": trunk.beta2,
        "weight_decay": trunk.weight_decay,
        "clip": trunk.clip,
        "schedule": trunk.schedule,
        "stressor": trunk.stressor,
        "faults": [fault.kind for fault in trunk.faults],
        "fault_steps": [fault.at for fault in trunk.faults],
        "horizon": lengths.horizon,
        "decision": lengths.decision,
        "look": lengths.look,
        "cooldown": lengths.cooldown,
        "uniform_loss": run.uniform_loss,
        "validation_steps": list(steps),
        "validation": [_measured(loss) for loss in losses],
        "final": final,
        "diverged_at": trained.diverged_at,
        "flops": run.ledger.total,
        "fingerprint": trained.fingerprint,
        "numerics": json.dumps(snapshot.state.get("numerics", {}), sort_keys=True),
        "recipe": json.dumps(trunk.to_json(), sort_keys=True),
    }


def _snapshot_row(
    run: Run,
    trunk: Trunk,
    design: Design,
    place: int,
    point: Point,
    trained: Trained,
    control: Played,
    to_end: bool,
) -> dict[str, Any]:
    lengths = design.lengths(trunk.steps)
    run.restore(point.snapshot)
    run.flag(point.flagged)
    trunk_steps = trained.telemetry[point.step : point.step + len(control.telemetry["branch"])]
    ahead = [fault for fault in trunk.faults if fault.end > point.step]
    reach = point.step + lengths.horizon
    return {
        "trunk": trunk.name,
        "snapshot": place,
        "step": point.step,
        "origin": point.origin,
        "event": point.event,
        "validation": _measured(point.validation),
        "level": _measured(point.level),
        "lr_scale": run.lr_scale,
        "weight_decay_scale": run.weight_decay_scale,
        "clip": run.clip,
        "flagged_ahead": len(run.flagged_ahead),
        "faults_ahead": sum(fault.at < reach for fault in ahead),
        "faults_in_cooldown": sum(
            fault.kind in PLANTED and fault.at < reach + lengths.cooldown and fault.end > reach
            for fault in ahead
        ),
        "continued": to_end,
        "control_is_trunk": [_comparable(t) for t in control.telemetry["branch"]]
        == [_comparable(t) for t in trunk_steps],
    }


def _branch_row(played: Played, point: Point, design: Design, trunk: Trunk) -> dict[str, Any]:
    look = design.lengths(trunk.steps).look
    taken = [draw.intervention for draw in played.draws]
    steps, recovered = recovery(played.validation, point.level, design.tolerance, look)
    telemetry = played.telemetry["branch"]
    return {
        "kind": played.plan.kind,
        "replica": played.plan.replica,
        "lr_scale": [action.lr_scale for action in taken],
        "weight_decay_scale": [action.weight_decay_scale for action in taken],
        "clip": [action.clip or "keep" for action in taken],
        "momentum_reset": [action.momentum_reset for action in taken],
        "data_reorder": [action.data_reorder for action in taken],
        "skip_batch": [action.skip_batch for action in taken],
        "propensity": [draw.propensity for draw in played.draws],
        "wide": [draw.wide for draw in played.draws],
        "validation": [_measured(loss) for loss in played.validation],
        "annealed": _measured(played.annealed),
        "final": _measured(played.final),
        "diverged_at": played.diverged_at,
        "steps": len(telemetry),
        "fired": [t.step - point.step for t in telemetry if t.reading.fired],
        "recovery_steps": steps,
        "recovered": recovered,
        **{f"flops_{phase}": played.flops[phase] for phase in PHASES},
    }


def _comparable(telemetry: Telemetry) -> tuple[Any, ...]:
    # As text, so that NaN equals NaN.
    return telemetry.data_index, repr(telemetry.loss), repr(telemetry.grad_norm), repr(telemetry.lr)


def _measured(loss: float) -> float | None:
    if not math.isfinite(loss):
        return None
    return loss
