"""The adaptive level: the paper's recursion, its bound for any outcomes and any delay, and a state that can be saved."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.types import UserError
from trainenv.worldmodel.conformal import CQR, AdaptiveLevel


def test_follows_the_papers_recursion() -> None:
    rule = AdaptiveLevel(alpha=0.1, gamma=0.05)
    state, expected = rule.init(), 0.1
    for miss in (True, False, False, True, False):
        ticket, level = rule.issue(state, run="a")
        assert level == pytest.approx(max(expected, 0))
        rule.learn(state, {ticket: miss})
        expected += 0.05 * (0.1 - miss)
    assert state["alpha"] == pytest.approx(expected) == pytest.approx(0.025)
    ticket, _ = rule.issue(state, run="a")
    rule.learn(state, {ticket: True})
    assert (
        state["alpha"] < 0 == rule.level(state)
    )  # the level in force stops at 0, the state goes on


@settings(max_examples=80, deadline=None)
@given(
    st.data(),
    st.integers(1, 8),
    st.sampled_from([0.02, 0.05, 0.3]),
    st.sampled_from([0.05, 0.1, 0.4]),
)
def test_misses_stay_below_the_bound_whatever_happens(
    data: Any, most: int, gamma: float, alpha: float
) -> None:
    # An adversary chooses what misses, wherever the interval is finite, and when and in what order labels come.
    rule = AdaptiveLevel(alpha=alpha, gamma=gamma)
    state, waiting = rule.init(), {}
    moves = data.draw(
        st.lists(
            st.tuples(st.booleans(), st.sampled_from([0, 1, 1]), st.integers(0, 7)), max_size=120
        )
    )
    for issues, miss, which in moves:
        if issues and len(waiting) < most:
            ticket, level = rule.issue(state, run="a")
            waiting[ticket] = bool(miss) and level > 0
        elif waiting:
            ticket = sorted(waiting)[which % len(waiting)]
            rule.learn(state, {ticket: waiting.pop(ticket)})
        report = rule.report(state)
        assert report["missed"] <= report["bound"] + 1e-9
        assert 0 <= report["level"] <= rule.highest
        assert state["most_waiting"] <= most


def test_a_long_run_of_misses_everywhere_settles_at_the_aim() -> None:
    rule = AdaptiveLevel()
    state, waiting = rule.init(), []
    for _ in range(2000):
        ticket, level = rule.issue(state, run="a")
        waiting.append((ticket, level > 0))
        if len(waiting) == 6:
            rule.learn(state, dict([waiting.pop(3)]))
    report = rule.report(state)
    assert report["missed"] == pytest.approx(0.1, abs=0.005)
    assert report["bound"] == pytest.approx(0.1 + (0.1 + 0.05 * 0.9 * 6) / (0.05 * 1995))


def test_easy_years_need_not_be_paid_back() -> None:
    rule = AdaptiveLevel(highest=0.3)
    state = rule.init()
    for _ in range(1000):
        ticket, _ = rule.issue(state, run="a")
        rule.learn(state, {ticket: False})
    assert state["alpha"] == 0.3
    for _ in range(7):
        ticket, _ = rule.issue(state, run="a")
        rule.learn(state, {ticket: True})
    assert rule.level(state) == 0


def test_regains_coverage_after_a_drift_where_a_fixed_level_does_not() -> None:
    rng, fixed, adaptive = np.random.default_rng(0), [], []
    for _ in range(10):
        zero = np.zeros(99)
        calibration = CQR().fit(zero, zero, rng.normal(0, 1, 99), trunks=range(99))
        rule = AdaptiveLevel()
        state, late = rule.init(), {}
        for t in range(300):
            y = rng.normal(0, 1 if t < 100 else 1.7)
            ticket, level = rule.issue(state, run=str(t % 5))
            hits = [abs(y) <= calibration.interval([0], [0], alpha=a)[1][0] for a in (0.1, level)]
            late[ticket] = not hits[1]
            if t % 7 == 6:  # in batches
                rule.learn(state, late)
                late = {}
            if t >= 150:
                fixed.append(hits[0])
                adaptive.append(hits[1])
    assert np.mean(fixed) < 0.75
    assert np.mean(adaptive) == pytest.approx(0.9, abs=0.02)


def test_labels_of_one_call_and_in_the_middle_of_the_range_come_in_any_order() -> None:
    rule, rng = AdaptiveLevel(), np.random.default_rng(1)
    states = []
    for _ in range(3):
        state = rule.init()
        tickets = [rule.issue(state, run=f"run {i % 3}")[0] for i in range(12)]
        rule.learn(state, {tickets[i]: i % 5 == 0 for i in rng.permutation(12)})
        states.append(state)
    assert states[0] == states[1] == states[2]


def test_reports_what_was_measured_by_run_and_in_all() -> None:
    rule = AdaptiveLevel()
    state = rule.init()
    assert rule.report(state) == {
        "labels": 0, "misses": 0, "missed": 0.0, "bound": 1.0, "worst_run": 0.0, "waiting": 0, "forgotten": 0, "level": 0.1,
    }  # fmt: skip
    tickets = [rule.issue(state, run="ab"[i % 2])[0] for i in range(6)]
    rule.learn(state, {tickets[0]: True, tickets[1]: False, tickets[2]: False})
    rule.forget(state, tickets[4:])
    report = rule.report(state)
    assert [
        report[k] for k in ("labels", "misses", "missed", "worst_run", "waiting", "forgotten")
    ] == [3, 1, 1 / 3, 0.5, 1, 2]
    assert report["bound"] == 1.0  # three labels promise nothing


def test_goes_on_from_a_saved_state_as_if_nothing_had_happened() -> None:
    rule = AdaptiveLevel()
    one = rule.init()
    tickets = [rule.issue(one, run="a")[0] for _ in range(9)]
    rule.learn(one, {tickets[3]: True})
    two = json.loads(json.dumps(one, allow_nan=False))
    for state in (one, two):
        rule.learn(state, {tickets[8]: True, tickets[0]: False})
        rule.issue(state, run="b")
    assert one == two


def test_bad_tickets_and_settings_are_refused() -> None:
    rule = AdaptiveLevel()
    state = rule.init()
    ticket, _ = rule.issue(state, run="a")
    before = json.dumps(state)
    with pytest.raises(UserError, match="found '7'"):
        rule.learn(state, {ticket: True, "7": False})
    with pytest.raises(UserError, match="found '7'"):
        rule.forget(state, ["7"])
    assert json.dumps(state) == before
    rule.learn(state, {ticket: True})
    with pytest.raises(UserError, match="give each label once"):
        rule.learn(state, {ticket: True})
    for change in (
        {"alpha": 0},
        {"alpha": 1},
        {"gamma": 0},
        {"gamma": math.nan},
        {"highest": 0.05},
        {"highest": 1},
    ):
        with pytest.raises(UserError, match="found"):
            AdaptiveLevel(**change)
