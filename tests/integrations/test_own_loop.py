"""A loop of one's own, watched and steered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integrations.trainings import OFTEN, OwnLoop, all_equal, trying
from trainenv.integrations.attach import parts
from trainenv.records.run_folder import read_events

VARIANTS: dict[str, dict[str, Any]] = {
    "dropout": {},
    "accumulation": {"accumulation": 3, "examples": 235},
    "bf16": {"rounded": True},
    "two optimizers": {"several": True},
    "compiled": {"compiled": True},
    "averaged": {"averaged": True},
}


def decisions(loop: OwnLoop) -> int:
    """Return the number of decisions that a run has recorded."""
    return sum(event["kind"] == "decision" for event in read_events(loop.steer.report().folder))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_watched_loop_keeps_its_bits(variant: str, tmp_path: Path) -> None:
    plain = OwnLoop(**VARIANTS[variant]).plain()
    watched = OwnLoop(**VARIANTS[variant]).steered(tmp_path / "run", "watch")
    assert all_equal(plain.state(), watched.state())


@pytest.mark.parametrize("variant", VARIANTS)
def test_refused_branches_leave_no_trace(variant: str, tmp_path: Path) -> None:
    plain = OwnLoop(**VARIANTS[variant]).plain()
    refused = OwnLoop(**VARIANTS[variant])
    refused.steered(tmp_path / "run", callback=trying(accepts=False), config={"branching": OFTEN})
    assert decisions(refused) >= 1
    assert all_equal(plain.state(), refused.state())
