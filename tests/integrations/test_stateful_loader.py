"""torchdata's StatefulDataLoader, attached like a stream that saves its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integrations.test_streams import Counting
from tests.integrations.trainings import OFTEN, OwnLoop, Sequences, all_equal, kinds, trying

pytest.importorskip("torchdata")
# torchdata calls a function of torch that newer versions of torch advise against.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")

STEPS = 40


def loop(data: Any, **settings: Any) -> OwnLoop:
    """Return a loop over a StatefulDataLoader."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    made = OwnLoop(epochs=1)
    made.loader = StatefulDataLoader(data, batch_size=4, **settings)
    return made


def over_a_stream() -> OwnLoop:
    """Return a loop over a stream that saves its place."""
    return loop(Counting(Sequences(4 * STEPS)))


def over_places() -> OwnLoop:
    """Return a loop over a data set with places, shuffled."""
    return loop(Sequences(4 * STEPS), shuffle=True)


LOOPS = pytest.mark.parametrize("made", [over_a_stream, over_places])


@LOOPS
def test_refused_branches_leave_no_trace(made: Any, tmp_path: Path) -> None:
    plain = made().plain()
    steered = made()
    config = {"branching": OFTEN}
    steered.steered(tmp_path / "run", callback=trying(accepts=False), config=config, steps=STEPS)
    assert "decision" in kinds(tmp_path / "run")
    assert all_equal(plain.state(), steered.state())


@LOOPS
def test_an_interrupted_run_resumes_to_the_same_end(made: Any, tmp_path: Path) -> None:
    def train(folder: str, cut_at: int | None = None, **settings: Any) -> OwnLoop:
        one: OwnLoop = made()
        own = one.loss

        def stopping(model: Any, batch: Any) -> Any:
            if cut_at is not None and len(one.losses) >= cut_at and model.training:
                raise InterruptedError
            return own(model, batch)

        one.loss = stopping
        callback = trying(accepts=True, factors=(0.9,))
        try:
            one.steered(
                tmp_path / folder,
                callback=callback,
                config={"branching": OFTEN},
                steps=STEPS,
                **settings,
            )
        except InterruptedError:
            one.steer.close()
        return one

    whole = train("whole")
    train("cut", cut_at=30)
    resumed = train("cut", resume=True)
    resumed.losses = whole.losses
    assert all_equal(whole.state(), resumed.state())
