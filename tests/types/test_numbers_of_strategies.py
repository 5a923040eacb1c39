"""Numbers that strategies and runs are given: NumPy's and tensors' are taken as Python's, anything else is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.own_runs import net, run_of
from trainenv.agents.baselines.rollback_rule import RollbackRule
from trainenv.types import Intervention, UserError
from trainenv.verification.verify import Verification

TWO = [np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), 2.0, Decimal(2)]
TAKEN: dict[str, Callable[[Any], Any]] = {
    "rewind": lambda two: RollbackRule(rewind=two).rewind,
    "repeats": lambda two: RollbackRule(repeats=two).repeats,
    "style": lambda two: RollbackRule.in_style("palm", two).skip,
    "top_k": lambda two: Verification(top_k=two).top_k,
    "verify_steps": lambda two: Verification(verify_steps=two).verify_steps,
    "cooldown": lambda two: Verification(cooldown=two).cooldown,
}
REFUSED: dict[str, Callable[[Any], Any]] = TAKEN | {
    "lr_scale": lambda value: RollbackRule(lr_scale=value),
    "drops": lambda value: RollbackRule(drops=value),
    "worth": lambda value: Verification(worth=value),
    "workers": lambda value: Verification(workers=value),
    "steps": lambda value: run_of().advance(value),
    "upcoming": lambda value: run_of().upcoming(value),
}


@pytest.mark.parametrize("two", TWO, ids=lambda two: type(two).__name__)
@pytest.mark.parametrize("name", TAKEN)
def test_numbers_of_any_kind_are_plain_ones(name: str, two: Any) -> None:
    assert type(TAKEN[name](two)) is int


@pytest.mark.parametrize("value", ["2", "no", float("nan"), [2], 1j], ids=repr)
@pytest.mark.parametrize("name", REFUSED)
def test_other_values_are_refused_by_name(name: str, value: Any) -> None:
    named = "steps" if name in ("style", "upcoming") else name
    with pytest.raises(UserError, match=f"{named} must be"):
        REFUSED[name](value)


def test_decimals_are_numbers() -> None:
    assert Intervention(lr_scale=Decimal("0.9")).lr_scale == 0.9  # type: ignore[arg-type]


def test_a_rate_that_is_a_tensor_is_a_run_s_own() -> None:
    rate = torch.tensor(1e-2)
    for _ in range(2):  # as in a sweep that makes the rate once
        model = net()
        run = run_of(
            model, torch.optim.AdamW([{"params": [p]} for p in model.parameters()], lr=rate)
        )
        run.advance(2)
        assert run.base_lr == pytest.approx(1e-2)
    assert float(rate) == pytest.approx(1e-2)
