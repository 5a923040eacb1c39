"""The metrics of a run: harm by hand-made probe losses, rewinds, what was planted, decisions, and folders in any state."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainenv.config.schema import RunConfig, TrainingConfig
from trainenv.records.metrics import (
    Cluster,
    Harm,
    HarmEvent,
    HarmWatch,
    Instability,
    Row,
    clusters,
    harm_events,
    instability,
    measure,
    recovery,
)
from trainenv.records.run_folder import RunFolder
from trainenv.types import Telemetry, UserError

EVERY = 8
Probes = st.lists(st.sampled_from([2.0, 2.01, 2.05, 2.11, 2.3, 3.0]), min_size=1, max_size=50)


def rows(probes: Sequence[float], every: int = EVERY, line: int = 0, start: int = 0) -> list[Row]:
    """A line from step `start` on with a look at its first step and every few after."""
    return [
        Row(line, start + place * every + more + 1, 2.0, probe if more == 0 else math.nan)
        for place, probe in enumerate(probes)
        for more in range(every)
    ]


def lost(row: Row) -> Row:
    return row._replace(loss=math.nan, probe_loss=math.nan)


def spans(events: Sequence[HarmEvent]) -> list[tuple[int, int, bool]]:
    return [(event.step, event.lasted, event.recovered) for event in events]


# ── harm ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rise_that_lasts_is_an_event_from_its_first_look_to_the_first_that_is_back() -> None:
    (event,) = harm_events(rows([2.0] * 8 + [2.4, 2.5, 2.3, 2.03, 2.02, 2.0]))
    assert event == HarmEvent(
        line=0, step=65, taken=65, level=2.0, rise=0.5, lost=False, lasted=4 * EVERY, recovered=True
    )


@pytest.mark.parametrize(
    ("every", "looks", "found"),
    [(8, 1, 0), (8, 2, 1), (4, 2, 0), (4, 3, 1), (1, 8, 0), (1, 9, 1), (16, 2, 1)],
)
def test_it_must_last_for_eight_steps_however_often_one_looks(
    every: int, looks: int, found: int
) -> None:
    assert len(harm_events(rows([2.0] * 10 + [2.5] * looks + [2.0] * 10, every))) == found


@pytest.mark.parametrize(("high", "found"), [(2.0999, 0), (2.1, 1)])
def test_it_must_be_as_high_as_harm(high: float, found: int) -> None:
    assert len(harm_events(rows([2.0] * 8 + [high] * 3))) == found
    assert len(harm_events(rows([2.0] * 8 + [high + 0.2] * 3), Harm(rise=0.3))) == found


def test_odd_looks_and_rises_that_do_not_last_are_none() -> None:
    assert harm_events(rows([2.0, 2.0, 2.0, 2.5] * 20)) == []
    assert harm_events(rows([2.0] * 8 + [2.5, 2.0, 2.5, 2.0, 2.5, 2.0])) == []


@given(probes=st.lists(st.floats(-1e30, 1e30), max_size=60))
def test_a_falling_probe_never_is(probes: list[float]) -> None:
    assert harm_events(rows(sorted(probes, reverse=True), every=1)) == []


def test_neither_are_noise_nor_a_slow_drift() -> None:
    rng = np.random.Generator(np.random.Philox(key=1))
    falling = 2.0 + 3.0 * np.exp(-np.arange(4000) / 40)
    assert harm_events(rows((falling + 0.03 * rng.standard_normal(4000)).tolist())) == []
    assert harm_events(rows([2.0 + 0.02 * place for place in range(200)])) == []
    # A drift that is no longer slow is one event, not one a look.
    assert len(harm_events(rows([2.0 + 0.03 * place for place in range(200)]))) == 1


def test_no_level_no_event() -> None:
    assert harm_events(rows([2.0] * 2 + [3.0] * 2 + [2.0] * 9)) == []
    assert len(harm_events(rows([2.0] * 4 + [3.0] * 3 + [2.0] * 9))) == 1


def test_a_second_spike_before_the_first_has_healed_is_another() -> None:
    probes = [2.0] * 8 + [3.0] + [2.6] * 8 + [3.0] * 2 + [2.6] * 2 + [2.3] * 2 + [2.01]
    first, second = harm_events(rows(probes))
    assert (first.level, first.step, first.lasted, first.recovered) == (2.0, 65, 15 * EVERY, True)
    assert (second.level, second.step, second.lasted, second.recovered) == (
        2.6,
        137,
        2 * EVERY,
        True,
    )
    assert (first.rise, second.rise) == (1.0, pytest.approx(0.4))


def test_a_high_that_stays_is_one_event_that_is_never_over() -> None:
    events = harm_events(rows([2.0] * 8 + [3.0] * 40))
    assert spans(events) == [(65, 40 * EVERY - 1, False)]


def test_what_an_event_measured_is_no_level_once_it_is_over() -> None:
    """The next is judged by what was before the first, though more than half of the last looks were raised."""
    events = harm_events(rows([2.0] * 8 + [3.0] * 6 + [2.0] + [2.2] * 2 + [2.0]))
    assert [event.level for event in events] == [2.0, 2.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_lost_is_an_event_at_once(bad: float) -> None:
    calm = rows([2.0] * 12)
    calm[69] = calm[69]._replace(loss=bad)
    assert harm_events(calm) == [
        HarmEvent(
            line=0, step=70, taken=70, level=2.0, rise=0.0, lost=True, lasted=3, recovered=True
        )
    ]
    for place in range(69, 96):
        calm[place] = lost(calm[place])
    (event,) = harm_events(calm)
    assert (event.lasted, event.recovered) == (26, False)
    assert math.isnan(event.rise)


def test_a_probe_that_is_lost_and_a_loss_that_is_lost_before_there_is_a_level() -> None:
    (event,) = harm_events(rows([2.0] * 8 + [math.inf] + [2.0] * 2))
    assert (event.step, event.lost, event.lasted) == (65, True, 8)
    early = rows([2.0] * 4)
    early[1] = lost(early[1])
    (event,) = harm_events(early)
    assert (event.step, event.level, event.lasted, event.recovered) == (2, math.inf, 7, True)


def test_a_rise_that_ends_in_a_lost_loss_is_one_event() -> None:
    run = rows([2.0] * 8 + [3.0, 4.0, 4.0])
    assert spans(harm_events([*run[:78], *map(lost, run[78:])])) == [(65, 23, False)]
    # Lost before it had lasted: it counts from the first raised look on.
    assert spans(harm_events([*run[:68], *map(lost, run[68:])])) == [(65, 23, False)]


@given(probes=Probes)
def test_every_event_is_what_the_definition_says(probes: list[float]) -> None:
    run = rows(probes)
    events = harm_events(run)
    looks = {row.step: row.probe_loss for row in run if not math.isnan(row.probe_loss)}
    for event in events:
        assert looks[event.step] >= event.level + 0.1
        assert looks[event.step + EVERY] >= event.level + 0.1
        after = {
            step: look
            for step, look in looks.items()
            if event.step < step <= event.step + event.lasted
        }
        back = [step for step, look in after.items() if look <= event.level + 0.02]
        assert back == ([event.step + event.lasted] if event.recovered else [])
    if events:
        before = [look for step, look in looks.items() if step < events[0].step]
        assert events[0].level == median(before[-8:])


@given(probes=Probes, cut=st.integers(0, 400))
def test_nothing_is_known_before_it_is_measured(probes: list[float], cut: int) -> None:
    """What is said of the first steps does not change with those that follow, and an event is certain after `hold` steps."""
    run = rows(probes)
    first, whole = HarmWatch(), HarmWatch()
    said = [whole.update(row.step, row.loss, row.probe_loss) for row in run]
    assert [first.update(row.step, row.loss, row.probe_loss) for row in run[:cut]] == said[:cut]
    for row, change in zip(run, said):
        assert change.begun is None or change.begun.step == row.step - EVERY


@given(probes=Probes, cuts=st.lists(st.integers(0, 400), max_size=5))
def test_a_history_told_in_several_lines_is_the_same(probes: list[float], cuts: list[int]) -> None:
    whole = rows(probes)
    split = [row._replace(line=sum(row.step > cut for cut in cuts)) for row in whole]
    found, expected = harm_events(split), harm_events(whole)
    assert [replace(event, line=0) for event in found] == expected
    lines = [[event for event in found if event.line == line] for line in range(len(cuts) + 1)]
    assert sum(len(events) for events in lines) == len(expected)


@given(probes=Probes, cut=st.integers(0, 400))
def test_the_state_of_a_watch_goes_on_exactly(probes: list[float], cut: int) -> None:
    run = rows(probes)
    whole, first, second = HarmWatch(), HarmWatch(), HarmWatch()
    expected = [whole.update(row.step, row.loss, row.probe_loss) for row in run]
    for row in run[:cut]:
        first.update(row.step, row.loss, row.probe_loss)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert [second.update(row.step, row.loss, row.probe_loss) for row in run[cut:]] == expected[
        cut:
    ]
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    "wrong",
    [{"rise": 0.02}, {"back": -0.1}, {"hold": -1}, {"least": 0}, {"least": 9}, {"window": 300}],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="harm needs 0 ≤ back < rise"):
        Harm(**wrong)


# ── rewinds ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_recovery_counts_what_going_back_costs() -> None:
    """Raised at step 65, gone back at 80 to 32: over at the first look of the new line, after 15 steps and 1."""
    run = [*rows([2.0] * 8 + [3.0, 3.0]), *rows([2.0] * 8, line=1, start=32)]
    assert spans(harm_events(run)) == [(65, 16, True)]
    # Where the run was worse then, it must first come back to where it was.
    falling = [2.4, 2.35, 2.3, 2.25, 2.2, 2.18, 2.15, 2.12]
    run = [*rows([*falling, 3.0, 3.0]), *rows(falling[4:], line=1, start=32)]
    (event,) = harm_events(run)
    assert event.level == pytest.approx(2.225)
    assert event.lasted == 16
    assert spans(harm_events(run, Harm(window=4))) == [(65, 16 + EVERY, True)]


def test_the_level_of_a_line_is_that_of_the_history_it_grew_from() -> None:
    """The first line fell to 1.5; the second starts where it was 2.0 still, and is no event there."""
    first = rows([2.0] * 8 + [1.5] * 8)
    assert harm_events([*first, *rows([2.0] * 4, line=1, start=64)]) == []
    assert spans(harm_events([*first, *rows([2.0, 2.2, 2.2], line=1, start=64)])) == [
        (73, 15, False)
    ]
    assert spans(harm_events([*first, *rows([2.0] * 4, line=1, start=128)])) == [(129, 31, False)]


def test_a_spike_met_again_is_another_event_once_the_first_is_over() -> None:
    spike = rows([2.0] * 8 + [3.0, 3.0])
    again = rows([2.0] * 4 + [3.0, 3.0, 2.0], line=1, start=32)
    first, second = harm_events([*spike, *again])
    assert (first.line, first.step, second.line, second.step) == (0, 65, 1, 65)
    assert second.taken == 80 + 33
    # Gone back not far enough, the run is in the same rise still.
    assert spans(harm_events([*spike, *rows([3.0, 3.0, 2.0], line=1, start=72)])) == [
        (65, 32, True)
    ]


def test_an_event_within_others_is_over_no_later_than_they_are() -> None:
    """Gone back to where the level was 1.5 still, with an event open that was judged by 2.0: back at that, both are over."""
    run = [*rows([1.5] * 8 + [2.0] * 8 + [2.6] * 9), *rows([2.3, 2.3, 2.01], line=1, start=64)]
    outer, middle, inner = harm_events(run)
    assert [event.level for event in (outer, middle, inner)] == [1.5, 2.0, 2.0]
    assert [event.recovered for event in (outer, middle, inner)] == [False, True, True]


def test_a_raised_look_that_was_left_behind_makes_no_event() -> None:
    run = [*rows([2.0] * 8 + [3.0]), *rows([3.0] + [2.0] * 3, line=1, start=64)]
    assert harm_events(run) == []
    assert instability(0, run) == Instability(events=0, steps=72 + 32, per_100k=0.0, cut_short=1)
    # Raised for long enough it is an event and not cut short; gone on with from after the look, it is the same rise still.
    run = [*rows([2.0] * 8 + [3.0, 3.0]), *rows([2.0] * 3, line=1, start=64)]
    assert (len(harm_events(run)), instability(1, run).cut_short) == (1, 0)
    run = [*rows([2.0] * 8 + [3.0]), *rows([3.0, 3.0], line=1, start=68)]
    assert (spans(harm_events(run)), instability(1, run).cut_short) == ([(65, 23, False)], 0)


# ── recovery ────────────────────────────────────────────────────────────────────────────────────────────────────────


def lasting(*durations: int, open_: Sequence[int] = ()) -> list[HarmEvent]:
    made = [(lasted, True) for lasted in durations] + [(lasted, False) for lasted in open_]
    return [
        HarmEvent(
            line=0, step=1, taken=1, level=2.0, rise=1.0, lost=False, lasted=lasted, recovered=over
        )
        for lasted, over in made
    ]


def test_recovery_with_censored_events() -> None:
    assert recovery(lasting(10, 20, 60)).median == 20
    assert recovery(lasting(10, 20, 30, 60)).median == 20
    found = recovery(
        lasting(
            6, 6, 6, 7, 10, 13, 16, 22, 23, open_=[6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
        )
    )
    # The 6-MP arm of Freireich et al. 1963, the textbook's example: 23 weeks.
    assert (found.median, found.events, found.unrecovered) == (23, 21, 12)
    assert math.isnan(recovery(lasting(10, open_=[20, 20])).median)
    assert recovery(lasting(10, open_=[20, 30])).mean == 20
    assert recovery(lasting(10, open_=[4])).median == 10
    nothing = recovery([])
    assert (nothing.events, nothing.unrecovered) == (0, 0)
    assert math.isnan(nothing.mean)
    assert math.isnan(nothing.median)


@given(durations=st.lists(st.integers(1, 50), min_size=1))
def test_uncensored_the_median_is_the_lower_one(durations: list[int]) -> None:
    assert recovery(lasting(*durations)).median == sorted(durations)[(len(durations) - 1) // 2]


# ── what was planted ────────────────────────────────────────────────────────────────────────────────────────────────


def planted(run: list[Row], *places: tuple[int, str]) -> list[Row]:
    """With names at steps taken, from 1."""
    for place, name in places:
        run[place - 1] = run[place - 1]._replace(stressors=(*run[place - 1].stressors, name))
    return run


def test_events_near_what_was_planted() -> None:
    run = planted(
        rows([2.0] * 8 + [3.0, 3.0] + [2.0] * 8),
        (3, "rare"),
        (48, "burst"),
        (49, "rare"),
        (50, "rare"),
        (66, "late"),
    )
    events = harm_events(run)
    assert [event.step for event in events] == [65]
    assert clusters(run, events) == {
        "burst": Cluster(steps=1, near=17, events=0),
        "late": Cluster(steps=1, near=17, events=0),
        "rare": Cluster(steps=3, near=17 + 18, events=1),
    }
    assert clusters(run, events, near=17)["burst"].events == 1
    assert clusters(rows([2.0] * 9), []) == {}


def test_what_was_planted_on_a_line_that_was_left_is_near_nothing_of_the_next() -> None:
    left = planted(rows([2.0] * 9), (10, "early"), (70, "late"))
    run = [*left, *rows([2.0] * 2, line=1, start=16)]
    assert clusters(run, []) == {
        "early": Cluster(steps=1, near=17 + 10, events=0),
        "late": Cluster(steps=1, near=3, events=0),
    }


# ── decisions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def branch(
    place: int, delta: float | None, expected: tuple[float, float, float] | None, **outcome: Any
) -> dict[str, Any]:
    named = None if expected is None else dict(zip(("low", "median", "high"), expected))
    ran = {"steps": 25, "diverged": False, "error": "", **outcome}
    return {
        "place": place,
        "control": place == 0,
        "delta": delta,
        "expected": named,
        "outcome": ran,
    }


def decision(number: int, accepted: int | None, *branches: dict[str, Any]) -> dict[str, Any]:
    control = branch(0, 0.0, (0.0, 0.0, 0.0))
    cost = {"steps": 25 * (1 + len(branches)), "flops": 100.0, "seconds": 1.0, "wasted_steps": 25}
    return {
        "schema": 1,
        "number": number,
        "at": 100 * number,
        "step": 100 * number,
        "accepted": accepted,
        "branches": [control, *branches],
        "cost": cost,
    }


def write(folder: Path, *decisions: dict[str, Any] | str) -> None:
    for place, record in enumerate(decisions):
        path = folder / "branches" / str(900 - 100 * place) / "decision.json"
        path.parent.mkdir(parents=True)
        path.write_text(record if isinstance(record, str) else json.dumps(record), encoding="utf-8")


def telemetry(row: Row) -> Telemetry:
    return Telemetry(
        row.step, row.step, 8, row.loss, 1.0, 1.0, math.inf, 0.0, "none", 0.1, 1.0, 0.1, 1.0, -1, 0.0,
        probe_loss=row.probe_loss, stressors=row.stressors,
    )  # fmt: skip


SUMMARY: dict[str, Any] = {
    "ended": "budget spent",
    "step": 104,
    "final_validation_loss": 1.5,
    "flops": {
        "main": 700.0,
        "rewound": 60.0,
        "verify": 40.0,
        "plan": 8.0,
        "evaluate": 192.0,
        "model": 0.0,
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A finished run of two lines."""
    folder = RunFolder.create(tmp_path / "run", RunConfig.load("tiny"))
    left = planted(rows([2.0] * 8 + [3.0, 3.0]), (60, "random_tokens"))
    folder.telemetry.append([telemetry(row) for row in left])
    folder.telemetry.flush()
    folder.rewound(32)
    folder.telemetry.append([telemetry(row) for row in rows([2.0] * 9, line=1, start=32)], line=1)
    folder.telemetry.append(
        [telemetry(row) for row in rows([5.0] * 4, line=1, start=32)], line=1, purpose="verify"
    )
    folder.validation(0, 5.5)
    folder.validation(104, 1.5)
    folder.finish(SUMMARY)
    return folder


def test_the_whole_of_a_run(folder: RunFolder) -> None:
    found = measure(folder.path)
    assert (found.ended, found.steps, found.taken, found.notes) == ("budget spent", 104, 152, ())
    assert (found.final_loss, found.log_final_loss, found.perplexity) == (
        1.5,
        math.log(1.5),
        math.exp(1.5),
    )
    assert found.instability.events == 1
    assert found.instability.per_100k == pytest.approx(1e5 / 152)
    assert found.recovery == recovery(lasting(16))
    assert (found.total_flops, found.wasted, found.drafting) == (1000.0, 0.1, 0.008)
    assert found.stressors == {"random_tokens": Cluster(steps=1, near=17, events=1)}
    assert found.decisions is None
    assert found.events == tuple(
        harm_events([*rows([2.0] * 8 + [3.0, 3.0]), *rows([2.0] * 9, line=1, start=32)])
    )
    as_json = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert as_json["instability"] == {
        "events": 1,
        "steps": 152,
        "per_100k": found.instability.per_100k,
        "cut_short": 0,
    }
    assert as_json["events"][0]["rise"] == 1.0


def test_decisions(folder: RunFolder) -> None:
    write(
        folder.path,
        decision(
            3,
            None,
            branch(1, 0.03, (-0.02, 0.0, 0.02)),
            branch(2, None, (-0.1, 0.0, 0.1), diverged=True),
        ),
        decision(
            1,
            1,
            branch(1, -0.02, (-0.02, -0.01, 0.0)),
            branch(2, 0.5, None),
            branch(3, None, None, error="OOM", steps=3),
        ),
        decision(2, 0, branch(1, None, (-0.1, 0.0, 0.1), steps=0)),
        decision(4, 0, branch(1, 0.02, (-0.1, 0.0, 0.1))),
    )
    found = measure(folder.path).decisions
    assert found is not None
    assert (found.invoked, found.verified, found.accepted) == (4, 3, 1)
    assert found.invoke_rate == pytest.approx(4000 / 152)
    assert found.accept_rate == pytest.approx(1 / 3)
    assert (found.branches, found.compared, found.covered_of) == (6, 3, 4)
    assert found.gap == pytest.approx((0.01 + 0.03 + 0.02) / 3)
    assert found.bias == pytest.approx((-0.01 + 0.03 + 0.02) / 3)
    assert found.sign == pytest.approx(1 / 3)
    assert found.coverage == 0.5
    assert (found.verify_steps, found.verify_flops, found.verify_share) == (
        25 * (3 + 4 + 2 + 2),
        400.0,
        0.4,
    )
    assert [(point.number, point.at, point.accepted) for point in found.over_time] == [
        (1, 100, True),
        (3, 300, False),
        (4, 400, False),
    ]
    assert [point.rate for point in found.over_time] == pytest.approx([1, 1 / 2, 1 / 3])


def test_acceptance_over_time_forgets(folder: RunFolder) -> None:
    tried = branch(1, 0.0, None)
    write(folder.path, *(decision(number, 1 if number < 4 else None, tried) for number in range(9)))
    found = measure(folder.path).decisions
    assert found is not None
    assert [point.rate for point in found.over_time][-2:] == [4 / 8, 3 / 8]
    assert math.isnan(found.gap)
    assert math.isnan(found.coverage)


@pytest.mark.parametrize(
    "torn",
    [
        "",
        "{",
        "[]",
        "null",
        '"x"',
        '{"schema": 1}',
        '{"schema": 2}',
        "[" * 100_000,
        "\x00",
        '{"schema": 1, "branches": 3}',
        json.dumps(decision(2, 7)),
        json.dumps({**decision(2, None), "number": math.inf}),
        json.dumps({**decision(2, None), "cost": None}),
        json.dumps(decision(2, None, {**branch(1, 0.0, None), "outcome": "lost"})),
    ],
)
def test_torn_decisions_are_noted_and_passed_over(folder: RunFolder, torn: str) -> None:
    write(folder.path, decision(1, 1, branch(1, 0.0, (-1.0, 0.0, 1.0))), torn)
    (folder.path / "branches" / "77").mkdir()
    (folder.path / "branches" / "stray.txt").touch()
    found = measure(folder.path)
    assert found.decisions is not None
    assert (found.decisions.invoked, found.decisions.coverage) == (1, 1.0)
    unfinished, broken = found.notes
    assert unfinished == "branches/77 has no decision.json: a decision that was never finished"
    assert broken.startswith(("branches/800/decision.json is skipped: ", "decision 2 is skipped: "))


def test_a_run_without_decisions_has_none_and_one_whose_trigger_never_fired_has_zero(
    folder: RunFolder,
) -> None:
    assert measure(folder.path).to_json()["decisions"] is None
    (folder.path / "branches").mkdir()
    found = measure(folder.path).to_json()["decisions"]
    assert (found["invoked"], found["accept_rate"], found["over_time"]) == (0, None, [])


# ── final loss, folders in any state ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("config", "uniform"),
    [
        ({}, math.log(256)),
        ({"corpus.tokenizer": "bpe", "corpus.vocab_size": 300}, math.log(300)),
        ({"corpus.tokenizer": "gpt2"}, math.log(50257)),
    ],
)
def test_a_diverged_run_counts_as_a_uniform_guess(
    tmp_path: Path, config: dict[str, Any], uniform: float
) -> None:
    folder = RunFolder.create(tmp_path / "run", RunConfig.load("tiny", config))
    folder.telemetry.append([telemetry(row) for row in rows([2.0])])
    folder.finish({**SUMMARY, "ended": "diverged", "final_validation_loss": None})
    assert measure(folder.path).final_loss == pytest.approx(uniform)
    assert measure(folder.path, uniform_loss=3.0).final_loss == 3.0
    folder.finish({**SUMMARY, "final_validation_loss": math.nan, "uniform_loss": 4.0})
    assert measure(folder.path).final_loss == 4.0


def test_a_model_of_one_s_own_has_no_known_uniform_guess(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", TrainingConfig(steps=9))
    folder.telemetry.append([telemetry(row) for row in rows([math.nan] * 4)])
    folder.finish({**SUMMARY, "ended": "diverged", "final_validation_loss": None})
    found = measure(folder.path)
    assert math.isnan(found.final_loss)
    assert math.isnan(found.instability.per_100k)
    assert [note.split(":")[0] for note in found.notes] == [
        "the clean probe was never measured",
        "the loss of a uniform guess, which this run counts as, is not known; give uniform_loss",
    ]


def test_a_run_that_goes_on_counts_as_it_is_now(folder: RunFolder) -> None:
    (folder.path / "summary.json").unlink()
    found = measure(folder.path)
    assert (found.ended, found.final_loss, found.steps) == ("", 1.5, 104)
    assert found.notes == ("there is no summary.json",)
    assert found.to_json()["wasted"] is None


def test_a_torn_part_of_the_telemetry_is_passed_over(folder: RunFolder) -> None:
    part = folder.path / "telemetry" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:200])
    found = measure(folder.path)
    assert (found.taken, found.instability.events) == (72, 0)
    assert found.notes == ("telemetry/part-00000.parquet is skipped: ArrowInvalid",)


def test_an_empty_folder_and_none(tmp_path: Path) -> None:
    found = measure(tmp_path)
    assert (found.taken, found.steps) == (0, 0)
    assert len(found.notes) == 4
    json.dumps(found.to_json(), allow_nan=False)
    with pytest.raises(UserError, match=r"expected the folder of a run at .*none; give one that"):
        measure(tmp_path / "gone")


@given(data=st.data())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_is_torn_there_are_metrics(folder: RunFolder, data: st.DataObject) -> None:
    if not (folder.path / "branches").is_dir():
        write(folder.path, decision(1, 1, branch(1, 0.0, (-1.0, 0.0, 1.0))))
    copy = folder.path.with_name("torn")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder.path, copy)
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        content = path.read_bytes()
        what = data.draw(st.sampled_from(["whole", "whole", "gone", "cut", "bytes", "folder"]))
        if what != "whole":
            path.unlink()
        if what == "cut":
            path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        elif what == "bytes":
            path.write_bytes(data.draw(st.binary(max_size=40)))
        elif what == "folder":
            path.mkdir()
    json.dumps(measure(copy).to_json(), allow_nan=False)
