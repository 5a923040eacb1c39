"""Pass@k against enumeration, its interval, and exact match."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainenv.evaluation import bootstrapped, exact_match, is_exact, mean_pass_at_k, pass_at_k
from trainenv.types import UserError


def enumerated(samples: int, right: int, k: int) -> float:
    """Share of all choices of k samples with a right one among them."""
    choices = list(combinations(range(samples), k))
    return sum(any(one < right for one in choice) for choice in choices) / len(choices)


@pytest.mark.parametrize("samples", range(1, 9))
def test_it_is_the_share_of_choices_with_a_right_one(samples: int) -> None:
    for right in range(samples + 1):
        for k in range(1, samples + 1):
            assert math.isclose(
                pass_at_k(samples, right, k), enumerated(samples, right, k), abs_tol=1e-12
            )


@given(st.data())
def test_it_is_the_ratio_of_binomials(data: st.DataObject) -> None:
    samples = data.draw(st.integers(1, 300))
    right = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    exact = 1 - math.comb(samples - right, k) / math.comb(samples, k)
    assert math.isclose(pass_at_k(samples, right, k), exact, abs_tol=1e-9)


def test_it_is_unbiased() -> None:
    """The mean over binomial draws is 1 − (1 − p)^k, which the naive estimate is not."""
    p, samples, k = 0.3, 10, 4
    chances = [math.comb(samples, c) * p**c * (1 - p) ** (samples - c) for c in range(samples + 1)]
    mean = sum(chance * pass_at_k(samples, c, k) for c, chance in enumerate(chances))
    naive = sum(chance * (1 - (1 - c / samples) ** k) for c, chance in enumerate(chances))
    assert math.isclose(mean, 1 - (1 - p) ** k, abs_tol=1e-12)
    assert abs(naive - mean) > 0.01


@pytest.mark.parametrize(
    ("samples", "right", "k", "sentence"),
    [
        (10, 1, 100, "pass@100 needs at least 100 samples of each task, found 10"),
        (10, 11, 1, "at most 10 of 10 samples can be right, found 11"),
        (10, 1, 0, "k of pass@k must be 1 or more, found 0"),
        (10, -1, 1, "the number of right samples must be 0 or more, found -1"),
    ],
)
def test_what_does_not_fit_is_a_sentence(samples: int, right: int, k: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        pass_at_k(samples, right, k)


def test_the_interval_is_of_the_tasks() -> None:
    values = [0.0] * 50 + [1.0] * 50
    share = bootstrapped(values)
    assert share == bootstrapped(values)
    uneven = [one / 7 for one in range(30)]
    assert bootstrapped(uneven) != bootstrapped(uneven, seed=1)
    assert share.value == 0.5
    # The deviation of the mean is 0.05.
    assert 0.37 < share.low < 0.43
    assert 0.57 < share.high < 0.63
    assert bootstrapped([1.0] * 5).low == 1.0


def test_the_mean_is_over_tasks() -> None:
    share = mean_pass_at_k([(10, 0), (10, 10), (20, 10)], 1)
    assert math.isclose(share.value, 0.5)
    assert share.tasks == 3
    with pytest.raises(UserError, match="needs at least one task"):
        mean_pass_at_k([], 1)


def test_exact_match_ignores_blanks_at_ends_only() -> None:
    assert is_exact(" a = 1  \n\nb\n", "a = 1\nb")
    assert not is_exact("a  = 1", "a = 1")
    assert not is_exact("A", "a")
    assert not is_exact("a\n  b", "a\nb")
    assert np.isclose(exact_match(["1", "2", "x "], ["1", "3", "x"]).value, 2 / 3)
    with pytest.raises(UserError, match="found 1 and 2"):
        exact_match(["1"], ["1", "2"])
