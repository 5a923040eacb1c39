"""What was known at a snapshot is what the run itself would have said; what was tried there is looked up at its real cost."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.support.toy_runs import SMALL, make_run, trunks
from trainenv.interventions import ActionCodec
from trainenv.planners import Score, make
from trainenv.training.history import history_of
from trainenv.types import Budget, Intervention, PlanningProblem, UserError
from trainenv.worldmodel import features
from trainenv.worldmodel.dataset import Dataset, effects, generate
from trainenv.worldmodel.dataset.recorded_executor import RecordedExecutor, exhaustive_snapshots
from trainenv.worldmodel.dataset.run_histories import recorded_history
from trainenv.worldmodel.examples import Examples

TEXTS: dict[str, dict[str, str]] = {"stdlib": {}, "topics": {}, "words": {}}  # toy runs read none


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("tried") / "branches"
    design = replace(
        SMALL,
        after_faults=0,
        rewound=0,
        fired=0,
        replicated=0.0,
        singles=0,
        sequences=0,
        exhaustive=1.0,
        continued=1.0,
    )
    assert not generate(
        folder, trunks(1, seed=5, steps=(40, 40)), make_run, design=design, workers=0
    ).failed
    return Dataset.open(folder)


def test_a_recorded_history_has_the_features_of_the_examples(data: Dataset) -> None:
    examples = Examples.of(data)
    for row in range(len(data.snapshots)):
        history = recorded_history(data, row)
        np.testing.assert_array_equal(features.state(*features.read(history)), examples.states[row])
        assert history.telemetry[-1].step == data.snapshots["step"].iloc[row]
        assert history.decision_steps == examples.decision_steps[row]
        run = make_run(trunks(1, seed=5, steps=(40, 40))[0].overrides(TEXTS))
        own = history_of(
            run, run.advance(len(history.telemetry)), horizon=4 * history.decision_steps
        )
        np.testing.assert_allclose(history.lrs_ahead, own.lrs_ahead, rtol=1e-12)
        assert (history.base_lr, history.uniform_loss) == (own.base_lr, own.uniform_loss)


def test_a_recorded_history_is_that_of_the_run() -> None:
    """Telemetry that is written and read back is the same, NaN and infinities included."""
    import pandas as pd
    import pyarrow as pa

    from trainenv.records.telemetry_log import arrow_schema, row, telemetry_of

    trunk = trunks(1, seed=5)[0]
    run = make_run(trunk.overrides(TEXTS))
    telemetry = run.advance(20)
    rows: pd.DataFrame = pa.Table.from_pylist(
        [row(t, 0, "main") for t in telemetry], schema=arrow_schema()
    ).to_pandas()
    assert repr(telemetry_of(rows)) == repr(telemetry)


def test_what_was_tried_is_looked_up(data: Dataset) -> None:
    (row, *_), truth = exhaustive_snapshots(data).tolist(), effects(data)
    tried = RecordedExecutor(data, row)
    assert math.prod(int(mask.sum()) for mask in tried.masks) == len(tried.rows)
    assert all(mask[1:].sum() == 0 for mask in tried.masks_after(()))
    trunk, snapshot = data.snapshots[["trunk", "snapshot"]].iloc[row]
    truth = truth[(truth["trunk"] == trunk) & (truth["snapshot"] == snapshot)].set_index("branch")
    control = tried.run([[Intervention()]], tried.horizon, measure="annealed")[0]
    for option, place in tried.rows.items():
        branch, fresh = data.branches.iloc[place], tried.fresh()
        outcome = fresh.run([[option]], tried.horizon, measure="annealed")[0]
        assert outcome.validation == pytest.approx(tuple(branch["validation"]), nan_ok=True)
        assert outcome.looks == tuple(range(0, tried.horizon + 1, tried.look))
        if branch["kind"] == "every" and not (outcome.diverged or control.diverged):
            assert Score().measured(outcome, control) == pytest.approx(
                truth["annealed"][branch["branch"]], abs=1e-12
            )
        end = fresh.run([[option]], tried.look, measure="final")[0]
        assert end.final == pytest.approx(branch["final"], nan_ok=True)


def test_only_what_is_new_is_paid_for(data: Dataset) -> None:
    tried = RecordedExecutor(data, int(exhaustive_snapshots(data)[0]))
    one = next(
        option
        for option in tried.rows
        if data.branches["steps"].iloc[tried.rows[option]] == tried.horizon
    )

    def paid(steps: int, measure: str, draw: int = 0) -> int:
        cost = tried.cost([[one]], steps, measure=measure, draw=draw)  # type: ignore[arg-type]
        outcome = tried.run([[one]], steps, measure=measure, draw=draw)[0]  # type: ignore[arg-type]
        assert outcome.error == ""
        assert (outcome.steps, outcome.flops) == (cost.steps, cost.flops)
        assert outcome.flops > 0 or outcome.steps == 0
        return outcome.steps

    assert paid(1, "horizon") == tried.look  # on to the first look
    assert paid(tried.look + 1, "annealed") == tried.look  # nothing cooled down from there
    assert paid(tried.horizon, "annealed") == tried.horizon - 2 * tried.look + tried.cooldown
    assert paid(tried.horizon, "annealed") == 0
    assert paid(tried.horizon, "annealed", draw=1) == tried.horizon + tried.cooldown
    left = len(recorded_history(data, int(exhaustive_snapshots(data)[0])).lrs_ahead)
    assert paid(tried.horizon, "final") == max(0, left - tried.horizon)


def test_what_was_not_tried_is_said(data: Dataset) -> None:
    tried = RecordedExecutor(data, int(exhaustive_snapshots(data)[0]))
    one = Intervention(lr_scale=0.8)
    late, twice, beyond, unknown = (
        tried.run([sequence], steps, measure="horizon")[0]
        for sequence, steps in (
            ([one, one], tried.horizon // 4),  # the second would come after the end
            ([one, one], tried.horizon // 4 + 1),
            ([one], tried.horizon + 1),
            ([Intervention(data_reorder=True)], tried.horizon),
        )
    )
    assert late.error == ""
    assert "not tried" in twice.error
    assert "not tried" in unknown.error
    assert "asked for" in beyond.error
    assert (twice.steps, beyond.steps, unknown.steps) == (0, 0, 0)


def test_a_planner_that_tries_all_finds_the_oracle(data: Dataset) -> None:
    row = int(exhaustive_snapshots(data)[0])
    tried = RecordedExecutor(data, row)
    problem = PlanningProblem(
        history=recorded_history(data, row),
        codec=ActionCodec(),
        masks=tried.masks,
        masks_after=tried.masks_after,
        generator=np.random.default_rng(0),
        executor=tried,
        budget=Budget(),
    )
    plan = make("grid", judge="executor", steps=tried.horizon).plan(problem)
    assert plan.faults == ()
    assert len(plan.candidates) == len(tried.rows)
    losses = data.branches["annealed"].iloc[list(tried.rows.values())].astype(float)
    assert data.branches["annealed"].iloc[tried.rows[plan.best.interventions[0]]] == losses.min()


def test_a_snapshot_with_a_hole_is_refused(data: Dataset) -> None:
    row = int(exhaustive_snapshots(data)[0])
    hole = RecordedExecutor(data, row).rows[Intervention(lr_scale=0.9, weight_decay_scale=2.0)]
    holed = Dataset(
        data._shards, data.design, data.trunks, data.snapshots, data.branches.drop(index=hole)
    )
    with pytest.raises(UserError, match=r"every legal intervention.*1 combinations missing"):
        RecordedExecutor(holed, row)
