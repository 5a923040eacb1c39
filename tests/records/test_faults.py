"""Faults are named once, however often they were met."""

from __future__ import annotations

from typing import Any

from trainenv.records.faults import each_once, faults_of


def event(step: int, kind: str, **detail: Any) -> dict[str, Any]:
    return {"line": 0, "step": step, "kind": kind, "detail": detail}


EVENTS = [
    event(4, "fired", index=100.0, loss=None),
    event(4, "non_finite", reason="the loss is not finite"),
    event(8, "skipped", reason="RuntimeError: it broke", fault=True, number=1),
    event(9, "skipped", reason="no draft promises enough", number=2),
    event(
        12,
        "decision",
        number=3,
        accepted=False,
        faults=["a branch failed: it broke", "RuntimeError: it broke"],
    ),
    event(16, "skipped", reason="RuntimeError: it broke", fault=True, number=4),
    event(20, "fired", index=3.0, loss=2.5),
    event(24, "non_finite", reason="the loss is not finite"),
]


def test_each_fault_with_where_it_was_first_met_and_how_often() -> None:
    assert faults_of(EVENTS) == [
        {"reason": "the loss is not finite", "step": 4, "times": 2},
        {"reason": "RuntimeError: it broke", "step": 8, "times": 3},
        {"reason": "a branch failed: it broke", "step": 12, "times": 1},
    ]
    assert faults_of([]) == []


def test_events_name_each_fault_once_and_lose_nothing_else() -> None:
    shown = [(one["step"], one["kind"], one["detail"].get("reason")) for one in each_once(EVENTS)]
    assert shown == [
        (4, "fault", "the loss is not finite"),  # the alarm at that step is about the same loss
        (8, "fault", "RuntimeError: it broke"),
        (9, "skipped", "no draft promises enough"),
        (12, "fault", "a branch failed: it broke"),
        (12, "decision", None),
        (20, "fired", None),
    ]
    assert all("faults" not in one["detail"] for one in each_once(EVENTS))
    assert EVENTS[4]["detail"]["faults"]  # what was read is left as it is


def test_an_event_without_detail_is_no_fault() -> None:
    bare = [{"step": 3, "kind": kind} for kind in ("skipped", "decision", "fired")]
    assert faults_of(bare) == []
    assert [one["kind"] for one in each_once(bare)] == ["skipped", "decision", "fired"]


def test_decisions_in_a_row_that_are_skipped_for_one_reason_are_one() -> None:
    skips = [event(step, "skipped", reason="no budget is left") for step in (4, 8, 12)]
    other, fired = (
        event(16, "skipped", reason="no draft promises enough"),
        event(10, "fired", index=3.0, loss=2.5),
    )
    shown = each_once(
        [
            *skips[:2],
            fired,
            skips[2],
            other,
            event(20, "decision", number=1),
            skips[0] | {"step": 24},
        ]
    )
    assert [(one["step"], one["kind"], one["detail"].get("times", 1)) for one in shown] == [
        (4, "skipped", 3),
        (10, "fired", 1),
        (16, "skipped", 1),
        (20, "decision", 1),
        (24, "skipped", 1),
    ]
    assert "times" not in skips[0]["detail"]
