"""Histories and models made up for tests: a run's telemetry as smooth functions, networks that nobody has trained."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from tests.support.made_examples import world
from trainenv.types import Reading, RunHistory, Telemetry
from trainenv.worldmodel.calibration import Calibrations
from trainenv.worldmodel.examples import Examples
from trainenv.worldmodel.model import Model
from trainenv.worldmodel.networks import Architecture, Dynamics, Networks

SMALL = Architecture(members=3, width=8, hidden=12)


def telemetry(steps: int = 64, *, first: int = 1, **changes: Any) -> list[Telemetry]:
    """A smooth run with some noise; what is in `changes` holds at every step, or where it is a list, step by step."""
    rng = np.random.default_rng(0)
    made = []
    for place in range(steps):
        step = first + place
        loss = 3.0 * step**-0.1 * math.exp(0.02 * rng.normal())
        norm = 1.5 * step**-0.2 * math.exp(0.2 * rng.normal())
        every = step % 4 == 0
        one = Telemetry(
            step=step,
            data_index=step,
            tokens=32,
            loss=loss,
            grad_norm=norm,
            grad_norm_clipped=min(norm, 1.0),
            clip_threshold=1.0,
            clip_score=norm,
            clip="arc",
            lr=1e-3 * min(1.0, step / 10),
            lr_scale=1.0,
            weight_decay=0.1,
            weight_decay_scale=1.0,
            steps_since_reset=-1,
            progress=step / 200,
            hypergradient_cosine=0.02 if every else math.nan,
            update_ratio=2e-3 if every else math.nan,
            probe_loss=loss * 1.02 if every else math.nan,
            attention_entropy=0.6,
            activation_entropy=0.4,
            embedding_rms=1.1,
            shortcut_ratio=0.9,
            reading=Reading(
                volatility=0.5,
                entropy=0.2,
                disagreement=0.1,
                index=0.4,
                threshold=3.0,
                fired=step == 50,
            ),
        )
        values = {
            name: value[place] if isinstance(value, list) else value
            for name, value in changes.items()
        }
        made.append(replace(one, **values))
    return made


def history(steps: int = 64, *, left: int = 100, decision: int = 4, **changes: Any) -> RunHistory:
    """A history with a rate that falls along a line; `changes` are of its fields, or `rows` for its telemetry."""
    rows = changes.pop("rows", None)
    whole = RunHistory(
        telemetry=telemetry(steps) if rows is None else rows,
        lrs_ahead=[1e-3 * (1 - place / left) for place in range(left)],
        base_lr=1e-3,
        uniform_loss=math.log(257),
        decision_steps=decision,
        validation=2.0,
        flagged_ahead=2,
    )
    return replace(whole, **changes)


def networks(seed: int = 0, *, dynamics: Dynamics = "mlp", loud: float = 3.0) -> Networks:
    """Random weights, `loud` enough that what is forecast differs from action to action."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Networks(Architecture(members=3, width=8, hidden=12, dynamics=dynamics)).eval()
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if name.endswith("second.weight") or name.startswith("gate"):
                    parameter.mul_(loud)
    return made


@cache
def calibration_examples() -> Examples:
    """Branches of 24 trunks to calibrate on."""
    return world(24, seed=5)[0]


@cache
def model(seed: int = 0, *, dynamics: Dynamics = "mlp") -> Model:
    """Calibrated, if not trained."""
    bare = Model(networks(seed, dynamics=dynamics))
    examples = calibration_examples()
    return Model(
        bare.networks, Calibrations.fit(examples, bare.raw(examples)), {"made": "for tests"}
    )
