"""Losses and errors by token difficulty and by head, against hand-made tables."""

from __future__ import annotations

import json

import numpy as np
import pytest

from trainenv.evaluation import token_errors
from trainenv.types import UserError


def test_classes_have_equally_many_tokens() -> None:
    difficulty = np.arange(8.0)
    losses = np.stack([difficulty, 2 * difficulty])
    right = np.stack([difficulty < 4, difficulty < 6])
    table = token_errors(losses, difficulty, right=right, classes=4)
    assert table.counts.tolist() == [[2, 2, 2, 2]] * 2
    assert table.losses.tolist() == [[0.5, 2.5, 4.5, 6.5], [1, 5, 9, 13]]
    assert table.errors.tolist() == [[0, 0, 1, 1], [0, 0, 0, 1]]


def test_tokens_of_one_difficulty_stay_together() -> None:
    table = token_errors(np.ones(6), [0, 0, 0, 0, 0, 5], classes=3)
    assert table.counts.sum() == 6
    assert sorted(table.counts[0][table.counts[0] > 0]) == [1, 5]


def test_a_head_without_a_token_counts_none() -> None:
    losses = [[1.0, 2.0], [3.0, np.nan]]
    table = token_errors(losses, [0, 1], classes=2)
    assert table.counts.tolist() == [[1, 1], [1, 0]]
    assert table.record()["losses"] == [[1.0, 2.0], [3.0, None]]
    assert table.record()["errors"] == [[None, None], [None, None]]
    json.dumps(table.record(), allow_nan=False)


@pytest.mark.parametrize(
    ("losses", "difficulty", "right"),
    [([[1.0, 2.0]], [1.0], None), ([], [], None), ([1.0], [1.0], [[True], [False]])],
)
def test_shapes_that_do_not_fit_are_a_sentence(losses: list, difficulty: list, right: list) -> None:
    with pytest.raises(UserError, match="shape"):
        token_errors(losses, difficulty, right=right)
