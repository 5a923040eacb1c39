"""What a model learns from and what it is asked with are the same numbers: data sets and live runs give one state vector."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests.support.toy_runs import SMALL, make_run, trunks
from trainenv.rollouts.group import InTurn
from trainenv.training.history import history_of
from trainenv.types import CLIP_NAMES, Intervention, RunHistory, Telemetry
from trainenv.worldmodel import features
from trainenv.worldmodel.dataset import Dataset, Design, Run, Trunk, generate
from trainenv.worldmodel.dataset.faults import Fault, train
from trainenv.worldmodel.dataset.run_histories import scheduled
from trainenv.worldmodel.dataset.texts import CORPORA
from trainenv.worldmodel.examples import Examples
from trainenv.worldmodel.features import ACTION, STATE
from trainenv.worldmodel.law_prior import prior
from trainenv.worldmodel.model import action_features

TEXTS: dict[str, dict[str, Any]] = {name: {} for name in CORPORA}
FLAGGED = STATE.index("flagged")
DESIGN = replace(
    SMALL,
    random=2,
    fired=0,
    rewound=0,
    singles=1,
    sequences=2,
    replicated=0.0,
    continued=0.0,
    cooldown_share=0.01,
)
PLAIN = replace(
    trunks(1)[0],
    steps=84,
    setting="faulty",
    lr_factor=0.05,
    clip="none",
    schedule="cosine",
    final=0.1,
    faults=(),
)
TRUNKS = (
    replace(PLAIN, index=0, faults=(Fault(kind="lr_spike", at=40, steps=6, size=3.0),)),
    replace(PLAIN, index=1, schedule="wsd", final=0.0, clip="zclip", seed=7),
    replace(
        PLAIN, index=2, clip="spam", seed=8, faults=(Fault(kind="weight_kick", at=45, size=20.0),)
    ),
)


def make_watched_run(overrides: Mapping[str, Any]) -> Run:
    """A toy run. SPAM resets its moments every 25 steps, so that it warms up again and again."""
    clip = dict(overrides["clip"])
    if clip["policy"] == "spam":
        clip["options"] = {"spam": {"interval": 25, "warmup": 5}}
    return make_run({**overrides, "clip": clip})


@dataclass(frozen=True)
class Made:
    """A data set of toy runs, its examples, and where to train the same runs again."""

    data: Dataset
    examples: Examples

    def live(self, trunk: Trunk) -> Iterator[tuple[int, Any, list[Telemetry]]]:
        """For each snapshot of a trunk: its row, the run trained up to there once more, and its telemetry."""
        run: Any = make_watched_run(trunk.overrides(TEXTS))
        telemetry: list[Telemetry] = []
        rows = self.data.snapshots[self.data.snapshots["trunk"] == trunk.name]
        for row, step in zip(rows.index, rows["step"]):
            if step < features.LEAST_STEPS:
                continue  # too few for a forecast
            telemetry += train(InTurn([run]), int(step) - run.step, trunk.faults)[0]
            yield int(row), run, telemetry


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("branches")
    generate(folder, TRUNKS, make_watched_run, design=DESIGN, workers=0)
    data = Dataset.open(folder)
    return Made(data, Examples.of(data))


def seen(run: Any, telemetry: list[Telemetry], trunk: Trunk) -> RunHistory:
    horizon = DESIGN.lengths(trunk.steps).horizon
    return history_of(run, telemetry, horizon=horizon, validation=run.evaluate())


def same(found: Any, expected: Any, names: tuple[str, ...] = STATE) -> None:
    """Equal but for rounding, and NaN where NaN."""
    wrong = [
        (name, a, b)
        for name, a, b in zip(names, found, expected)
        if not (math.isnan(a) and math.isnan(b))
        and not math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    ]
    assert wrong == []


@pytest.mark.parametrize("trunk", TRUNKS, ids=lambda trunk: f"{trunk.schedule}-{trunk.clip}")
def test_a_live_run_and_the_data_set_have_one_state(made: Made, trunk: Trunk) -> None:
    """And one law, one encoding of actions, one state after each decision: a momentum reset warms the steps to come up."""
    for row, run, telemetry in made.live(trunk):
        columns, now = features.read(seen(run, telemetry, trunk))
        same(features.state(columns, now), made.examples.states[row])
        those = np.flatnonzero(made.examples.snapshot == row)
        done = [interventions(branch) for _, branch in made.data.branches.iloc[those].iterrows()]
        actions = action_features(done)
        np.testing.assert_allclose(made.examples.actions[those], actions, atol=1e-12)
        law = prior(columns, now, actions[..., 0])
        assert np.abs(law).max() > 1e-4
        np.testing.assert_allclose(made.examples.law[those], law, rtol=1e-9, atol=1e-12)
        there = run.snapshot()
        for number, sequence in zip(those, done):
            run.restore(there)
            for count, state in enumerate(played(run, sequence, telemetry, trunk)):
                state[FLAGGED] = made.examples.after[
                    number, count, FLAGGED
                ]  # of a branch it is not recorded
                same(state, made.examples.after[number, count])
        run.restore(there)
    assert made.examples.actions[..., ACTION.index("reset")].any()


def played(
    run: Any, sequence: list[Intervention], telemetry: list[Telemetry], trunk: Trunk
) -> Iterator[Any]:
    """The features of a live run after each of its decisions."""
    behind, decision = list(telemetry), DESIGN.lengths(trunk.steps).decision
    for intervention in sequence:
        run.apply(intervention)
        behind += train(InTurn([run]), decision, trunk.faults)[0]
        yield features.state(*features.read(seen(run, behind, trunk)))


def interventions(branch: Any) -> list[Intervention]:
    """What was done in a branch, decision by decision, as its row says."""
    names = ("lr_scale", "weight_decay_scale", "momentum_reset", "data_reorder", "skip_batch")
    return [
        Intervention(
            clip=None if clip == "keep" else clip,
            **{name: type(getattr(Intervention(), name))(branch[name][place]) for name in names},
        )
        for place, clip in enumerate(branch["clip"])
    ]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_a_trunk_is_planned_as_its_run_is(schedule: str) -> None:
    spike = Fault(kind="lr_spike", at=30, steps=4, size=5.0)
    trunk = replace(PLAIN, schedule=schedule, final=0.1, faults=(spike,))
    run: Any = make_run(trunk.overrides(TEXTS))
    np.testing.assert_allclose(run.lrs_ahead(), scheduled(trunk), rtol=1e-12)
    telemetry = run.advance(60)
    trained = np.array([t.lr for t in telemetry]) / scheduled(trunk)[:60]
    np.testing.assert_allclose(np.delete(trained, range(30, 34)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        trained[30:34], 5.0, rtol=1e-6
    )  # what was planted was trained with, and never planned
    np.testing.assert_allclose(run.lrs_ahead(), scheduled(trunk)[60:], rtol=1e-12)


def test_the_clip_policies_of_both_have_one_code() -> None:
    (columns, _), (other, _) = (features.read(history_with(clip)) for clip in ("arc", "mine"))
    assert columns["clip"][-1] == CLIP_NAMES.index("arc")
    assert other["clip"][-1] == -1


def history_with(clip: str) -> RunHistory:
    run: Any = make_run(PLAIN.overrides(TEXTS))
    telemetry = [replace(t, clip=clip) for t in run.advance(16)]
    return history_of(run, telemetry, horizon=8)


def test_no_run_learned_from_is_longer_than_what_is_looked_at() -> None:
    steps, decisions = features._RECENT
    for budget in range(40, 2000):
        assert budget <= max(steps, decisions * Design().lengths(budget).decision)
