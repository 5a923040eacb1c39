"""An attached Trainer that is killed at any moment and resumed ends as if it had not been."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.integrations.killed_runs import complete, kill_after, plain_end, trained

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_a_killed_training_ends_the_same(tmp_path: Path) -> None:
    began = time.perf_counter()
    whole = trained(tmp_path / "whole")
    lasts = time.perf_counter() - began
    moments = random.Random(3)
    for number in range(2):
        folder = tmp_path / str(number)
        kill_after(moments.uniform(0.1, 1.0) * lasts, folder)
        kill_after(moments.uniform(0.1, 0.5) * lasts, folder)
        assert trained(folder) == whole


def test_its_newest_checkpoint_loads_without_us(tmp_path: Path) -> None:
    trained(tmp_path)
    assert complete(tmp_path)
    assert plain_end(tmp_path, "branches") == 76
