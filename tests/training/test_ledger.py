"""The ledger: compute that was spent stays spent, and a model's FLOPs by the published formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainenv.config.schema import RunConfig
from trainenv.models import build
from trainenv.models.spec import DEFAULT
from trainenv.training.ledger import Ledger
from trainenv.types import PURPOSES, UserError


def test_purposes() -> None:
    assert PURPOSES == ("main", "rewound", "verify", "plan", "evaluate", "model")
    assert Ledger().as_dict() == dict.fromkeys(PURPOSES, 0.0)
    assert Ledger().total == 0


@given(charges=st.lists(st.tuples(st.sampled_from(PURPOSES), st.integers(0, 2**40)), max_size=30))
def test_charges_add_up(charges: list[tuple[Any, int]]) -> None:
    ledger = Ledger()
    for purpose, flops in charges:
        ledger.charge(purpose, flops)
    for purpose in PURPOSES:
        assert ledger[purpose] == sum(flops for name, flops in charges if name == purpose)
    assert ledger.total == sum(flops for _, flops in charges)
    assert list(ledger.as_dict()) == list(PURPOSES)


@given(have=st.integers(0, 1000), wanted=st.integers(0, 2000))
def test_moving_keeps_the_total_and_moves_no_more_than_there_is(have: int, wanted: int) -> None:
    ledger = Ledger()
    ledger.charge("main", have)
    ledger.move("main", "rewound", wanted)
    assert ledger["rewound"] == min(have, wanted)
    assert ledger["main"] == have - min(have, wanted)
    assert ledger.total == have


def test_unknown_purpose() -> None:
    with pytest.raises(
        UserError,
        match="purpose must be one of main, rewound, verify, plan, evaluate, model, found 'fun'",
    ):
        Ledger().charge("fun", 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("flops", [-1.0, math.nan])
def test_impossible_charge(flops: float) -> None:
    ledger = Ledger()
    with pytest.raises(UserError, match="a charge must be 0 FLOPs or more"):
        ledger.charge("main", flops)
    assert ledger.total == 0


def test_what_it_gives_away_is_a_copy() -> None:
    ledger = Ledger()
    ledger.as_dict()["main"] = 3.0
    assert ledger.total == 0


def test_going_on_from_an_earlier_process() -> None:
    ledger, other = Ledger(), Ledger()
    ledger.charge("main", 5)
    ledger.charge("plan", 2)
    other.charge("model", 1)
    other.load(ledger.as_dict())
    assert other.as_dict() == ledger.as_dict()
    other.load({"main": 1.0})
    assert other.as_dict() == {**dict.fromkeys(PURPOSES, 0.0), "main": 1.0}


def test_repr() -> None:
    ledger = Ledger()
    assert repr(ledger) == "Ledger(empty)"
    ledger.charge("main", 1.5e9)
    assert repr(ledger) == "Ledger(main 1.5e+09)"


def test_flops_of_a_plain_module() -> None:
    assert DEFAULT.flops_per_token(nn.Linear(10, 20, bias=False), 64) == 6 * 200


def test_flops_of_gpt2_by_the_palm_formula() -> None:
    config = RunConfig.load("tiny")
    model = build.build(config, 256, torch.device("cpu"))
    width, layers, context = 64, 2, 64
    parameters = 256 * width + layers * (12 * width**2 + 13 * width) + 2 * width
    assert DEFAULT.flops_per_token(model, context) == 6 * parameters + 12 * layers * width * context
    assert DEFAULT.flops_per_token(model) == 6 * parameters
