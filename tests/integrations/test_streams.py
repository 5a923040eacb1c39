"""Streams that save their place, attached like data with positions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import trainenv
from tests.integrations.hf_trainings import Examples, state_of, trainer
from tests.integrations.trainings import (
    OFTEN,
    OwnLoop,
    Sequences,
    all_equal,
    kinds,
    loss_of,
    trying,
)
from trainenv.types import UserError

STEPS = 40


class Counting(IterableDataset[Any]):
    """Examples of a data set in their order, from a place that is saved.

    Args:
        examples: Data set.
    """

    def __init__(self, examples: Any) -> None:
        self._examples = examples
        self._place = 0

    def __iter__(self) -> Iterator[Any]:
        while self._place < len(self._examples):
            self._place += 1
            yield self._examples[self._place - 1]
        self._place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self._place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._place = state["place"]


def loop(place: int = 0) -> OwnLoop:
    """Return a loop over a stream."""
    made = OwnLoop(epochs=1)
    made.loader = DataLoader(Counting(Sequences(4 * STEPS)), batch_size=4)  # type: ignore[arg-type]
    return made


def test_refused_branches_over_a_stream_leave_no_trace(tmp_path: Path) -> None:
    plain = loop().plain()
    steered = loop()
    config = {"branching": OFTEN}
    steered.steered(tmp_path / "run", callback=trying(accepts=False), config=config, steps=STEPS)
    assert "decision" in kinds(tmp_path / "run")
    assert all_equal(plain.state(), steered.state())


class Stopped(Exception):
    """The training is broken off."""


def test_an_interrupted_run_over_a_stream_resumes_to_the_same_end(tmp_path: Path) -> None:
    def train(folder: str, made: OwnLoop, **settings: Any) -> OwnLoop:
        callback = trying(accepts=True, factors=(0.9,))
        config = {"branching": OFTEN}
        return made.steered(
            tmp_path / folder, callback=callback, config=config, steps=STEPS, **settings
        )

    whole = train("whole", loop())
    cut = loop()

    def failing(model: Any, batch: Any) -> torch.Tensor:
        if len(cut.losses) >= 30 and model.training:
            raise Stopped
        return loss_of(model, batch)

    cut.loss = failing
    with pytest.raises(Stopped):
        train("cut", cut)
    cut.steer.close()
    resumed = train("cut", loop(), resume=True)
    resumed.losses = whole.losses
    assert all_equal(whole.state(), resumed.state())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_trainer_over_a_stream_keeps_its_bits(tmp_path: Path) -> None:
    def made(folder: str) -> Any:
        data = Counting(Examples(300))
        return trainer(tmp_path / folder, data=data, max_steps=STEPS, eval_strategy="no")

    plain = made("plain")
    plain.train()
    attached = made("attached")
    config = {"branching": OFTEN}
    trainenv.attach(attached, out=tmp_path / "run", callback=trying(accepts=False), config=config)
    attached.train()
    assert "decision" in kinds(tmp_path / "run")
    assert all_equal(state_of(plain), state_of(attached))


class Drifting(Counting):
    """A stream that loads no place."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return


def test_a_stream_that_does_not_come_back_is_refused(tmp_path: Path) -> None:
    made = loop()
    made.loader = DataLoader(Drifting(Sequences(40)), batch_size=4)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a stream must come back to its place exactly"):
        made.steered(tmp_path / "run", steps=8)
