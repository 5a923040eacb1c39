"""What a module keeps beside its tensors, by `get_extra_state`, is a part of the run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.own_runs import assert_value, net, run_of


class Counting(nn.Module):
    """Grows louder with each call in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = net(), 0

    def get_extra_state(self) -> dict[str, Any]:
        return {"calls": self.calls, "scale": torch.tensor(0.01)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]

    def forward(self, seen: Tensor) -> Tensor:
        self.calls += self.training
        logits: Tensor = self.inner(seen)
        return logits * (1 + self.calls / 50)


def test_extra_state_of_a_module_is_restored() -> None:
    assert_value(lambda: run_of(Counting()))
