"""Branches: the control is the trunk going on, everything else is compared on the same batches, nothing is dropped."""

from __future__ import annotations

import argparse
import math
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import trainenv
from tests.support.toy_runs import SIZE, SMALL, make_run, trunks
from trainenv.interventions import ActionCodec
from trainenv.rollouts.cooldown import cool_down
from trainenv.rollouts.group import InTurn
from trainenv.worldmodel.dataset import Design, Trunk, sample
from trainenv.worldmodel.dataset.branch_points import Trained, train_trunk
from trainenv.worldmodel.dataset.branches import KINDS, Plan, nudge, plans, play_all, recovery
from trainenv.worldmodel.dataset.faults import Fault, train
from trainenv.worldmodel.dataset.tables import Tables, collect
from trainenv.worldmodel.dataset.texts import CORPORA

TEXTS: dict[str, dict[str, Any]] = {name: {} for name in CORPORA}
FAULTS = (Fault(kind="weight_kick", at=20, size=40.0), Fault(kind="random_tokens", at=31, steps=4))
FAULTY = replace(
    trunks(1)[0], steps=60, faults=FAULTS, setting="faulty", lr_factor=1.0, clip="zclip"
)
DESIGN = replace(SMALL, replicated=1.0, continued=1.0, singles=1, sequences=1, after_faults=2)


def trained(trunk: Trunk, design: Design = DESIGN) -> tuple[Any, Trained]:
    run = make_run(trunk.overrides(TEXTS))
    return run, train_trunk(run, trunk, design)


@pytest.fixture(scope="module")
def tables() -> Tables:
    return collect(FAULTY, DESIGN, make_run, TEXTS)


def of(tables: Tables, table: str, **keys: Any) -> list[dict[str, Any]]:
    return [row for row in tables[table] if all(row[key] == value for key, value in keys.items())]


def test_a_trunk_with_branches_ends_as_one_that_was_just_trained(tables: Tables) -> None:
    plain = make_run(FAULTY.overrides(TEXTS))
    (telemetry,) = train(InTurn([plain]), FAULTY.steps, FAULTY.faults)
    assert tables["trunks"][0]["fingerprint"] == plain.fingerprint()
    assert [row["loss"] for row in tables["trunk_steps"]] == [t.loss for t in telemetry]
    assert tables["trunks"][0]["final"] == plain.evaluate()


def test_the_control_is_the_trunk_going_on(tables: Tables) -> None:
    final = tables["trunks"][0]["final"]
    assert len(tables["snapshots"]) == 5
    for snapshot in tables["snapshots"]:
        assert snapshot["control_is_trunk"]
        number = snapshot["snapshot"]
        steps = [
            row
            for row in of(tables, "branch_steps", snapshot=number, branch=0)
            if row["phase"] != "cooldown"
        ]
        going_on = tables["trunk_steps"][snapshot["step"] :]
        assert [(row["data_index"], row["loss"], row["lr"]) for row in steps] == [
            (row["data_index"], row["loss"], row["lr"]) for row in going_on
        ]
        assert of(tables, "branches", snapshot=number, branch=0)[0]["final"] == final


def test_branches_of_a_snapshot_see_the_same_batches(tables: Tables) -> None:
    compared = 0
    for snapshot in tables["snapshots"]:
        seen = {}
        for branch in of(tables, "branches", snapshot=snapshot["snapshot"]):
            steps = of(
                tables,
                "branch_steps",
                snapshot=snapshot["snapshot"],
                branch=branch["branch"],
                phase="branch",
            )
            assert len(steps) == branch["steps"]
            indices = [row["data_index"] for row in steps]
            if branch["kind"] == "reordered":
                assert indices != seen[0]
            elif not any(branch["data_reorder"]) and not any(branch["skip_batch"]):
                seen[branch["branch"]] = indices
        assert len({tuple(indices) for indices in seen.values()}) == 1
        compared += len(seen)
    assert compared > 2 * len(tables["snapshots"])


def test_noise_repeats_the_control_nearly(tables: Tables) -> None:
    for snapshot in tables["snapshots"]:
        by_kind = {
            row["kind"]: row for row in of(tables, "branches", snapshot=snapshot["snapshot"])
        }
        control, nudged = by_kind["control"], by_kind["nudged"]
        assert (
            nudged["annealed"] != control["annealed"]
            or nudged["validation"] != control["validation"]
        )
        assert nudged["validation"][-1] == pytest.approx(control["validation"][-1], abs=1e-4)
        assert by_kind["reordered"]["validation"][-1] == pytest.approx(
            control["validation"][-1], abs=0.5
        )


def test_outcomes_are_all_measured_and_paid_for(tables: Tables) -> None:
    for branch in tables["branches"]:
        assert len(branch["validation"]) == 9
        assert all(
            math.isfinite(loss)
            for loss in (*branch["validation"], branch["annealed"], branch["final"])
        )
        assert min(branch["flops_branch"], branch["flops_cooldown"]) > 0
        assert branch["steps"] == tables["trunks"][0]["horizon"] == 8
        assert [len(branch[part]) for part in ("lr_scale", "clip", "propensity", "wide")] == [4] * 4
        assert all(p == 1 for p in branch["propensity"][0 if branch["kind"] in KINDS[:3] else 4 :])
    assert {row["kind"] for row in tables["branches"]} == set(KINDS) - {"every"}


def test_points_have_every_origin_and_know_what_came_before(tables: Tables) -> None:
    origins = [row["origin"] for row in tables["snapshots"]]
    assert origins.count("random") == 1
    assert origins.count("after_fault") == 2
    assert set(origins) == {"random", "after_fault", "fired", "rewound"}
    assert [row["step"] for row in tables["snapshots"]] == sorted(
        row["step"] for row in tables["snapshots"]
    )
    rewound = of(tables, "snapshots", origin="rewound")[0]
    fired = of(tables, "snapshots", origin="fired")[0]
    assert rewound["step"] < rewound["event"] <= fired["step"]
    kicked = next(
        row for row in of(tables, "snapshots", origin="after_fault") if row["event"] == 20
    )
    assert kicked["step"] > 20
    assert kicked["level"] < kicked["validation"]
    assert all(row["level"] <= row["validation"] for row in tables["snapshots"])


def test_blows_that_are_still_to_come_fall_on_every_branch() -> None:
    run, done = trained(FAULTY)
    early = min(done.points, key=lambda point: point.step)
    late = replace(FAULTY, faults=(Fault(kind="weight_kick", at=early.step + 2, size=40.0),))
    struck, calm = (
        play_all(run, early, [Plan(kind="control")], trunk, DESIGN, to_end=False)[0]
        for trunk in (late, replace(late, faults=()))
    )
    assert struck.validation[2] == calm.validation[2]  # 2 steps in, the blow has not fallen yet
    assert struck.validation[3] != calm.validation[3]


def test_a_rewound_branch_may_skip_what_was_flagged() -> None:
    run, done = trained(FAULTY)
    point = next(point for point in done.points if point.origin == "rewound")
    run.restore(point.snapshot)
    assert not run.flagged_ahead
    run.flag(point.flagged)
    assert run.flagged_ahead
    assert ActionCodec(run.config.interventions).masks(run)[5].tolist() == [True, True]


def test_no_action_is_illegal(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    apply = trainenv.TrainingRun.apply

    def checked(run: trainenv.TrainingRun, intervention: trainenv.Intervention) -> None:
        codec = ActionCodec(run.config.interventions)
        if intervention.lr_scale in codec.config.lr_scales:
            assert codec.legal(codec.encode(intervention), run)[1] == ()
        seen.append(intervention)
        apply(run, intervention)

    monkeypatch.setattr(trainenv.TrainingRun, "apply", checked)
    collect(
        FAULTY,
        replace(DESIGN, replicated=0.0, sequences=6, continued=0.0, cooldown_share=0.01),
        make_run,
        TEXTS,
    )
    assert len(set(seen)) > 20


def test_diverged_branches_are_kept_with_when() -> None:
    # Weights grow by lr · weight decay a step: soon they are infinite.
    lost = replace(FAULTY, faults=(), lr_factor=3e4, weight_decay=1.0, clip="none", final=1.0)
    point = trained(replace(FAULTY, faults=()))[1].points[0]
    run = make_run(lost.overrides(TEXTS))
    point = replace(point, snapshot=run.snapshot(), step=0, validation=run.evaluate(), flagged=())
    plan = Plan(kind="sequence", uniforms=(0.99,) * 4)
    calm, wild = play_all(run, point, [Plan(kind="control"), plan], lost, DESIGN, to_end=True)
    for played in (calm, wild):
        assert 0 < played.diverged_at <= 8
        assert len(played.validation) == 9
    whole = collect(replace(lost, lr_factor=3e8), DESIGN, make_run, TEXTS)
    assert 0 < whole["trunks"][0]["diverged_at"] < 20
    assert whole["trunks"][0]["final"] is None
    assert len(whole["trunk_steps"]) < 60


def test_after_the_weights_are_lost_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    run, done = trained(FAULTY)
    point = done.points[0]
    losses = iter([2.0, 2.1, math.nan])
    monkeypatch.setattr(type(run), "evaluate", lambda self: next(losses))
    (played,) = play_all(
        run, point, [Plan(kind="sequence", uniforms=(0.5,) * 4)], FAULTY, DESIGN, to_end=True
    )
    assert played.validation[:3] == [point.validation, 2.0, 2.1]
    assert all(math.isnan(loss) for loss in (*played.validation[3:], played.annealed, played.final))
    assert len(played.validation) == 9
    assert played.diverged_at == 3
    assert len(played.draws) == 2
    assert len(played.telemetry["branch"]) == 3
    assert not played.telemetry["rest"]


def test_recovery_is_the_first_return_and_censored_without_one() -> None:
    nan = math.nan
    assert recovery([3.0, 2.6, 2.51, 2.4], 2.5, 0.02, 5) == (10, True)
    assert recovery([2.5, 2.6, 2.7, 2.8], 2.5, 0.02, 5) == (0, True)
    assert recovery([3.0, 2.9, 2.8, 2.7], 2.5, 0.02, 5) == (15, False)
    assert recovery([3.0, 2.9, nan, nan], 2.5, 0.02, 5) == (5, False)
    assert recovery([nan, nan], 2.5, 0.02, 5) == (0, False)


def test_the_cool_down_ends_near_zero_and_is_no_intervention() -> None:
    run: Any = make_run(FAULTY.overrides(TEXTS))
    run.advance(30)
    (telemetry,) = cool_down(InTurn([run]), 40)
    scales = [t.lr_scale for t in telemetry]
    assert len(scales) == 40
    assert scales == sorted(scales, reverse=True)
    assert sum(scales) == pytest.approx(20, rel=1e-6)  # the area of a triangle
    assert scales[-1] < 0.04
    assert run.applied == ()
    assert [t.lr_scale for t in cool_down(InTurn([run]), 1)[0]] == [scales[-1] / 2]
    assert cool_down(InTurn([run]), 4, ()) == []


def test_a_nudge_moves_every_weight_by_one_unit_in_the_last_place() -> None:
    run: Any = make_run(FAULTY.overrides(TEXTS))
    before = [p.detach().clone() for p in run.model.parameters()]
    nudge(run, 3, 1)
    for old, new in zip(before, run.model.parameters()):
        assert torch.equal(torch.nextafter(old, new.detach()), new.detach())
        assert not (old == new).any()
        assert (new > old).any()
        assert (new < old).any()


def test_shares_of_snapshots_are_replicated_and_continued() -> None:
    design = Design(replicated=0.3, continued=0.4, exhaustive=0.0)
    run = make_run(FAULTY.overrides(TEXTS))
    drawn = [
        plans(trunk, design, place, run) for trunk in sample(200, seed=0) for place in range(4)
    ]
    assert sum(to_end for _, to_end in drawn) / 800 == pytest.approx(0.4, abs=0.05)
    assert sum(len(listed) > 15 for listed, _ in drawn) / 800 == pytest.approx(0.3, abs=0.05)
    assert all(listed[0] == Plan(kind="control") for listed, _ in drawn)
    assert {len(listed) for listed, _ in drawn} == {1 + 8 + 6, 1 + 2 * 2 + 8 + 6}


def test_a_real_run_is_branched_too(tmp_path: Path) -> None:
    size = replace(SIZE, width=16, context=16)
    (trunk,) = sample(1, seed=1, sizes=(size,), steps=(40, 40))
    trunk = replace(
        trunk,
        faults=(Fault(kind="lost_moments", at=12),),
        corpus="stdlib",
        stressor="long_sequence",
        stressor_rate=0.2,
    )
    design = Design(
        random=0,
        after_faults=1,
        fired=0,
        rewound=0,
        singles=1,
        sequences=1,
        exhaustive=0.0,
        replicated=1.0,
        replicas=1,
        continued=1.0,
    )
    text = tmp_path / "code.txt"
    text.write_text("".join(Path(module.__file__).read_text() for module in (argparse, typing)))
    texts = {"stdlib": {"name": "text", "path": str(text)}}
    tables = collect(
        trunk, design, lambda overrides: trainenv.TrainingRun.from_config("tiny", overrides), texts
    )
    assert all(row["control_is_trunk"] for row in tables["snapshots"])
    assert {row["kind"] for row in tables["branches"]} == set(KINDS) - {"every"}
    assert any(row["attention_entropy"] is not None for row in tables["branch_steps"])
    assert any("long_sequence" in row["stressors"] for row in tables["trunk_steps"])
