"""Checks of hyperparameters: valid values pass, and each mistake has its sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from trainenv.tools.checks import choice, count, names, number, whole
from trainenv.types import UserError


@dataclass(frozen=True, kw_only=True)
class Strategy:
    width: int = 3
    depth: int = 2


@pytest.mark.parametrize("given", [0.5, np.float32(0.5), np.array([0.5]), torch.tensor(0.5)])
def test_a_number_comes_back_as_a_float(given: Any) -> None:
    found = number("share", given, above=0, most=0.5)
    assert type(found) is float
    assert found == 0.5


@pytest.mark.parametrize(
    ("check", "given", "found"), [(whole, 3, 3), (whole, np.int64(3), 3), (count, 3.0, 3)]
)
def test_a_whole_number_comes_back_as_an_int(
    check: Callable[..., int], given: Any, found: int
) -> None:
    assert type(check("width", given, least=3)) is int
    assert check("width", given, least=3) == found


@pytest.mark.parametrize(
    ("limits", "wrong", "sentence"),
    [
        ({}, math.nan, "share must be a finite number, found nan; give one or leave it out"),
        ({}, 10**400, "share must be a finite number, found 1"),
        ({}, True, "share must be a finite number, found True"),
        ({}, "1", "share must be a finite number, found '1'"),
        ({"above": 0}, 0, "a finite number, above 0, found 0"),
        ({"least": 0}, -0.1, "a finite number, at least 0, found -0.1"),
        ({"above": 0, "below": 1}, 1, "a finite number, above 0 and below 1, found 1"),
        ({"least": 0, "most": 1}, 1.1, "a finite number, at least 0 and at most 1, found 1.1"),
    ],
)
def test_numbers_out_of_range(limits: dict[str, float], wrong: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        number("share", wrong, **limits)
    assert sentence in str(error.value)


@pytest.mark.parametrize("check", [whole, count])
@pytest.mark.parametrize("wrong", [2, 3.5, math.inf, math.nan, True, "3", None, np.array([3, 4])])
def test_what_is_no_whole_number_from_3_on(check: Callable[..., int], wrong: Any) -> None:
    with pytest.raises(
        UserError,
        match=r"^width must be a whole number, at least 3, found .*; give one or leave it out$",
    ):
        check("width", wrong, least=3)


def test_only_count_takes_25_0_for_25() -> None:
    assert count("width", 25.0, least=1) == 25
    with pytest.raises(UserError, match=r"found 25\.0"):
        whole("width", 25.0, least=1)


def test_words_and_names() -> None:
    choice("mode", "mean", ("mean", "median"))
    with pytest.raises(
        UserError, match=r"^mode must be one of mean, median, found 'maen'; did you mean 'mean'\?$"
    ):
        choice("mode", "maen", ("mean", "median"))
    names("wide", Strategy, {"width": 1, "depth": 2})
    with pytest.raises(
        UserError,
        match=r"^wide has no hyperparameter 'with'; did you mean 'width'\?; it has: width, depth$",
    ):
        names("wide", Strategy, {"with": 1})
