"""What was kept and what was lost, against a run that remembers it, whatever rewinds, saves and kills it meets."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from trainenv.records.lineage import last_kept, last_saved

Step = tuple[int, int]  # line, step


def kept(recorded: list[Step], begun: list[dict[str, Any]]) -> list[Step]:
    last = last_kept(pd.DataFrame(recorded, columns=["line", "step"]), begun)
    return [(line, step) for line, step in recorded if step <= last[line]]


def saved(recorded: list[Step], begun: list[dict[str, Any]]) -> list[Step]:
    last = last_saved(begun)
    return [(line, step) for line, step in recorded if step <= last[line]]


moves = st.lists(
    st.tuples(st.sampled_from(["advance", "rewind", "save", "kill"]), st.integers(0, 12)),
    max_size=20,
)


@given(moves=moves)
def test_it_is_what_the_run_remembers(moves: list[tuple[str, int]]) -> None:
    step = line = rewinds = 0
    history: list[Step] = []
    happened: list[Step] = []  # what rewinds left behind included
    recorded: list[Step] = []
    begun: list[dict[str, Any]] = []
    checkpoint: tuple[int, int, list[Step], list[Step]] = (0, 0, [], [])
    for move, size in moves:
        if move == "advance":
            taken = [(line, step + ahead) for ahead in range(1, size + 1)]
            recorded, history, happened, step = (
                recorded + taken,
                history + taken,
                happened + taken,
                step + size,
            )
        elif move == "save":
            checkpoint = step, rewinds, history, happened
        else:
            if move == "rewind":
                step, rewinds = max(0, step - size), rewinds + 1
                history = [one for one in history if one[1] <= step]
            else:
                step, rewinds, history, happened = checkpoint
            line += 1
            begun.append({"line": line, "step": step, "rewinds": rewinds})
    assert kept(recorded, begun) == history
    assert saved(recorded, begun) == happened


def test_a_rewind_that_was_lost_with_its_process_is_as_if_it_had_not_been() -> None:
    recorded = [(0, step) for step in range(1, 9)]
    lost = {"line": 1, "step": 2, "rewinds": 1}
    resumed = {"line": 2, "step": 6, "rewinds": 0}
    assert kept([*recorded, (1, 3), (2, 7)], [lost, resumed]) == [*recorded[:6], (2, 7)]
    assert kept([*recorded, (1, 3)], [lost]) == [*recorded[:2], (1, 3)]
    assert saved([*recorded, (1, 3), (2, 7)], [lost, resumed]) == [*recorded[:6], (2, 7)]
    assert saved([*recorded, (1, 3)], [lost]) == [*recorded, (1, 3)]


def test_of_lines_that_say_nothing_of_rewinds_nothing_is_lost() -> None:
    """Those of older folders, and of folders of bare telemetry."""
    recorded = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert kept(recorded, []) == [(0, 1), (1, 2), (2, 3)]
    assert kept(recorded, [{"line": 3, "step": 1}, {"torn": 1}]) == [(0, 1)]
    bare = [{"line": 1, "step": 1}, {"line": 2, "step": 2}]
    assert kept(recorded, [*bare, {"line": 3, "step": 3, "rewinds": 0}]) == [(0, 1), (1, 2), (2, 3)]
    assert saved(recorded, bare) == recorded


def test_without_any_step() -> None:
    assert last_kept(pd.DataFrame({"line": [], "step": []}), []) == {0: math.inf}
