"""Sparse telemetry: features of a long run are those of a short run of the same shape."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.made_models import history
from trainenv.training.history import KEPT, sparse_of, stride_of
from trainenv.types import Reading, RunHistory, Telemetry, UserError
from trainenv.worldmodel.features import STATE
from trainenv.worldmodel.paths.inputs import read_state

SCALE = 6
TIMED = ("decision", "decay")  # these grow with the number of steps, as they should


def stretched(short: RunHistory) -> RunHistory:
    """A run SCALE times as long whose every SCALE-th step looks like a step of the short one."""
    telemetry: list[Telemetry] = []
    for one in short.telemetry:
        later: dict[str, Any] = {"step": one.step * SCALE}
        if one.steps_since_reset >= 0:
            later["steps_since_reset"] = one.steps_since_reset * SCALE
        telemetry.append(replace(one, **later))
    return replace(
        short,
        telemetry=telemetry[-1:],
        sparse=telemetry,
        stride=SCALE,
        lrs_ahead=np.repeat(short.lrs_ahead, SCALE).tolist(),
    )


@pytest.mark.parametrize(("budget", "stride"), [(200, 1), (1000, 1), (1499, 1), (6000, 6)])
def test_a_stride_keeps_as_many_entries_a_share_of_the_budget(budget: int, stride: int) -> None:
    assert stride_of(budget) == stride


def test_features_of_a_long_run_are_those_of_a_short_one() -> None:
    short = history(400, left=600)
    found, level, _, _ = read_state(short)
    long_found, long_level, _, _ = read_state(stretched(short))
    assert long_level == pytest.approx(level, abs=1e-12)
    for name, one, other in zip(STATE, found, long_found):
        if name in TIMED:
            assert other == pytest.approx(one + math.log(SCALE), abs=0.2)
        elif math.isnan(one):
            assert math.isnan(other), name
        else:
            assert other == pytest.approx(one, abs=0.02 + 0.02 * abs(one)), name


def test_entries_hold_what_was_measured_at_any_of_their_steps() -> None:
    steps = list(history(40).telemetry)
    last = steps[-1].step
    some = [replace(one, probe_loss=math.nan, update_ratio=math.nan) for one in steps]
    some[21] = replace(some[21], probe_loss=1.5, reading=Reading(index=9.0, fired=True))
    entries = sparse_of(some, SCALE)
    assert [one.step for one in entries] == [n for n in range(1, last + 1) if n % SCALE == 0]
    place = some[21].step
    for one in entries:
        holds = one.step - SCALE < place <= one.step
        assert (one.probe_loss == 1.5) == holds
        assert one.reading.fired == holds
        assert one.loss == some[one.step - steps[0].step].loss
        assert math.isnan(one.update_ratio)


@pytest.mark.parametrize("sizes", [(1,), (5,), (6,), (7, 3, 11)])
def test_entries_do_not_depend_on_how_steps_arrive(sizes: tuple[int, ...]) -> None:
    steps = list(history(64).telemetry)
    steps = [
        one if n % 8 == 1 else replace(one, probe_loss=math.nan) for n, one in enumerate(steps)
    ]
    whole = sparse_of(steps, SCALE)
    found: list[Telemetry] = []
    place = 0
    turn = 0
    while place < len(steps):
        window = steps[place : place + sizes[turn % len(sizes)]]
        recent = steps[max(0, place + 1 - SCALE) : place + len(window)]
        found += sparse_of(recent, SCALE, after=window[0].step - 1)
        place += len(window)
        turn += 1
    assert [one.step for one in found] == [one.step for one in whole]
    assert [repr(one.probe_loss) for one in found] == [repr(one.probe_loss) for one in whole]
    assert sparse_of([], SCALE) == []


def test_steps_between_entries_are_checked() -> None:
    long = stretched(history())
    with pytest.raises(UserError, match="consecutive"):
        read_state(replace(long, stride=SCALE - 1))


def test_few_entries_are_not_read() -> None:
    short = history()
    few = replace(short, sparse=short.telemetry[:4], stride=SCALE)
    assert np.array_equal(read_state(few)[0], read_state(short)[0], equal_nan=True)
    assert KEPT >= 512
