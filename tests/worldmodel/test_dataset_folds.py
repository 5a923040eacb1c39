"""Branches side by side are the branches one after the other: to the bit beside each other, to rounding where folded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import trainenv
from tests.support.toy_runs import SIZE, SMALL, Beside, make_gpt2, make_run, trunks
from trainenv.config.schema import InterventionConfig
from trainenv.interventions import ActionCodec
from trainenv.rollouts.folded import Folded
from trainenv.types import Intervention
from trainenv.worldmodel.dataset import Dataset, Design, Run, Size, generate
from trainenv.worldmodel.dataset.branch_points import Trained, train_trunk
from trainenv.worldmodel.dataset.branches import PHASES, Plan, Played, plans, play_all
from trainenv.worldmodel.dataset.faults import Fault
from trainenv.worldmodel.dataset.generate import cost
from trainenv.worldmodel.dataset.tables import Tables, collect
from trainenv.worldmodel.dataset.texts import CORPORA

TEXTS: dict[str, dict[str, Any]] = {name: {} for name in CORPORA}
FAULTS = (
    Fault(kind="weight_kick", at=20, size=40.0),
    Fault(kind="lost_moments", at=31),
    Fault(kind="random_tokens", at=36, steps=2),
)
FAULTY = replace(
    trunks(1)[0], steps=60, faults=FAULTS, setting="faulty", lr_factor=1.0, clip="zclip"
)
DESIGN = replace(
    SMALL, replicated=1.0, continued=1.0, after_faults=0, fired=0, rewound=0, fold=(48, 3)
)
FLOPS = tuple(f"flops_{phase}" for phase in PHASES)


def assert_same_rows(ours: Tables, theirs: Tables) -> None:
    """All of it; FLOPs are sums in another order."""
    assert ours.keys() == theirs.keys()
    for table, rows in ours.items():
        plain, others = (
            [{k: v for k, v in row.items() if k not in FLOPS} for row in one]
            for one in (rows, theirs[table])
        )
        assert repr(plain) == repr(others), table  # as text: a NaN equals a NaN
    for row, other in zip(ours["branches"], theirs["branches"]):
        assert [row[name] for name in FLOPS] == pytest.approx(
            [other[name] for name in FLOPS], rel=1e-9
        )
        assert row["flops_rest"] > 0


def trained(design: Design = DESIGN) -> tuple[Run, Trained]:
    run = make_run(FAULTY.overrides(TEXTS))
    return run, train_trunk(run, FAULTY, design)


# ── side by side ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_side_by_side_is_one_after_the_other() -> None:
    """Groups of at most three, of even sizes: the listed order is kept, and every number of every step."""
    sizes = []

    def fold(runs: Sequence[Run]) -> Beside:
        sizes.append(len(runs))
        return Beside(runs)

    design = replace(DESIGN, random=2)
    looped, beside = (
        collect(FAULTY, design, make_run, TEXTS),
        collect(FAULTY, design, make_run, TEXTS, fold),
    )
    assert len(looped["branches"]) == 8 * len(looped["snapshots"]) > 8
    assert sizes == [3, 3, 2] * len(looped["snapshots"])
    assert_same_rows(beside, looped)
    assert all(row["control_is_trunk"] for row in beside["snapshots"])


def test_what_is_too_wide_is_not_folded() -> None:
    def fold(runs: Sequence[Run]) -> Beside:
        raise AssertionError("folded")

    narrow = replace(DESIGN, fold=(SIZE.width - 1, 16), singles=1, sequences=0, replicated=0.0)
    assert collect(FAULTY, narrow, make_run, TEXTS, fold)["branches"]
    with pytest.raises(AssertionError, match="folded"):
        collect(FAULTY, replace(narrow, fold=(SIZE.width, 16)), make_run, TEXTS, fold)


def test_a_lost_branch_drops_out_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    run, done = trained()
    point, evaluate = done.points[0], trainenv.TrainingRun.evaluate
    start = point.step

    def lost_when_faster(run: trainenv.TrainingRun) -> float:
        return math.nan if run.lr_scale > 1.05 and run.step > start + 1 else evaluate(run)

    monkeypatch.setattr(trainenv.TrainingRun, "evaluate", lost_when_faster)
    listed = [
        Plan(kind="control"),
        Plan(kind="every", action=(3, 0, 0, 0, 0, 0)),
        Plan(kind="every", action=(1, 0, 0, 0, 0, 0)),
    ]
    found = [
        play_all(run, point, listed, FAULTY, DESIGN, to_end=True, fold=fold)
        for fold in (None, Beside)
    ]
    for looped, beside in zip(*found):
        assert repr(replace(looped, flops={})) == repr(replace(beside, flops={}))
        assert looped.flops == pytest.approx(beside.flops)
    control, lost, slower = found[1]
    assert lost.diverged_at == 2
    assert [math.isfinite(loss) for loss in lost.validation] == [True] * 2 + [False] * 7
    assert math.isnan(lost.annealed)
    assert math.isnan(lost.final)
    assert len(lost.telemetry["branch"]) == 2
    assert lost.flops["branch"] > lost.flops["cooldown"] == lost.flops["rest"] == 0
    for sound in (control, slower):
        assert sound.diverged_at == -1
        assert all(math.isfinite(loss) for loss in (*sound.validation, sound.annealed, sound.final))
        assert len(sound.telemetry["rest"]) == FAULTY.steps - start - 8


@pytest.mark.parametrize("fold", [None, Beside])
def test_where_all_are_lost_nothing_more_is_asked(
    monkeypatch: pytest.MonkeyPatch, fold: Any
) -> None:
    run, done = trained()
    monkeypatch.setattr(trainenv.TrainingRun, "evaluate", lambda self: math.nan)
    for played in play_all(
        run, done.points[0], [Plan(kind="control")] * 2, FAULTY, DESIGN, to_end=True, fold=fold
    ):
        assert played.diverged_at == 1
        assert [len(played.telemetry[phase]) for phase in PHASES] == [1, 0, 0]
        assert played.flops["rest"] == 0


# ── folded ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def both() -> tuple[Tables, Tables]:
    """Looped, and folded by four."""
    design = replace(DESIGN, fold=(48, 4))
    looped, folded = (collect(FAULTY, design, make_gpt2, TEXTS, fold) for fold in (None, Folded))
    return looped, folded


def test_folded_branches_agree_with_looped_ones(both: tuple[Tables, Tables]) -> None:
    looped, folded = both
    assert repr(looped["trunks"]) == repr(folded["trunks"])
    assert len(looped["branches"]) == len(folded["branches"]) == 8
    for one, other in zip(looped["branches"], folded["branches"]):
        for name in one.keys() - {
            *FLOPS,
            "validation",
            "annealed",
            "final",
            "recovery_steps",
            "recovered",
            "fired",
        }:
            assert one[name] == other[name], name
        losses = [[*row["validation"], row["annealed"], row["final"]] for row in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert [one[name] for name in FLOPS] == pytest.approx(
            [other[name] for name in FLOPS], rel=1e-9
        )
    effects = {round(row["annealed"], 3) for row in looped["branches"]}
    assert len(effects) > len(looped["branches"]) / 2  # what agrees differs from branch to branch
    for one, other in zip(looped["branch_steps"], folded["branch_steps"], strict=True):
        known = (
            "snapshot",
            "branch",
            "phase",
            "step",
            "data_index",
            "lr",
            "lr_scale",
            "clip",
            "tokens",
            "stressors",
        )
        assert [one[name] for name in known] == [other[name] for name in known]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_the_folded_control_is_nearly_the_trunk(both: tuple[Tables, Tables]) -> None:
    looped, folded = both
    assert all(row["control_is_trunk"] for row in looped["snapshots"])
    for snapshot in folded["snapshots"]:
        control = [
            row
            for row in folded["branch_steps"]
            if (row["snapshot"], row["branch"]) == (snapshot["snapshot"], 0)
        ]
        steps, going_on = (
            [row for row in control if row["phase"] != "cooldown"],
            folded["trunk_steps"][snapshot["step"] :],
        )
        for ours, theirs in zip(steps, going_on, strict=True):
            assert (ours["data_index"], ours["lr"]) == (theirs["data_index"], theirs["lr"])
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    controls = [row for row in folded["branches"] if row["kind"] == "control"]
    assert [row["final"] for row in controls] == pytest.approx(
        [folded["trunks"][0]["final"]] * len(controls), rel=1e-4
    )


# ── every action ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def where(**values: Any) -> Any:
    config = SimpleNamespace(
        interventions=InterventionConfig(
            allow_spam=True, allow_data_reorder=True, allow_skip_batch=True
        )
    )
    return SimpleNamespace(
        **{
            "lr_scale": 1.0,
            "weight_decay_scale": 1.0,
            "clip": "zclip",
            "flagged_ahead": (),
            **values,
        },
        config=config,
    )


@pytest.mark.parametrize(
    "run",
    [where(), where(lr_scale=9.9, clip="spam"), where(weight_decay_scale=8.0, flagged_ahead=(3,))],
)
def test_exhaustive_is_every_legal_action_once_but_for_the_data(run: Any) -> None:
    design = replace(DESIGN, exhaustive=1.0)
    listed, _ = plans(FAULTY, design, 0, run)
    codec = ActionCodec(run.config.interventions)
    legal = {i for i in codec.all_legal(run) if not i.data_reorder and not i.skip_batch} - {
        Intervention()
    }
    every = [plan for plan in listed if plan.kind == "every"]
    assert [codec.decode(plan.action) for plan in every] == list(
        dict.fromkeys(codec.decode(plan.action) for plan in every)
    )
    assert {codec.decode(plan.action) for plan in every} == legal
    assert [plan.replica for plan in every] == list(range(len(every)))
    assert (
        listed[: len(listed) - len(every)]
        == plans(FAULTY, replace(design, exhaustive=0.0), 0, run)[0]
    )  # comes on top
    assert len(every) > 40


def test_a_share_of_snapshots_is_exhaustive_where_models_are_folded() -> None:
    design, run = replace(DESIGN, exhaustive=0.25), where()
    drawn = [plans(trunk, design, place, run)[0] for trunk in trunks(60) for place in range(4)]
    exhaustive = [any(plan.kind == "every" for plan in listed) for listed in drawn]
    assert sum(exhaustive) / 240 == pytest.approx(0.25, abs=0.08)
    wide = replace(FAULTY, size=Size(width=64, layers=1, heads=2))
    assert all(
        plan.kind != "every" for plan in plans(wide, replace(design, exhaustive=1.0), 0, run)[0]
    )
    assert cost(FAULTY, replace(design, exhaustive=1.0)) > 2 * cost(FAULTY, design)


def test_every_acts_once_and_is_not_drawn() -> None:
    run, done = trained()
    codec = ActionCodec(run.config.interventions)
    actions = [(1, 0, 0, 0, 0, 0), (0, 2, 1, 1, 0, 0)]
    listed = [
        Plan(kind="control"),
        *(Plan(kind="every", replica=k, action=action) for k, action in enumerate(actions)),
    ]
    control, *rest = play_all(
        run, done.points[0], listed, FAULTY, DESIGN, to_end=False, fold=Beside
    )
    for action, played in zip(actions, rest):
        assert [draw.intervention for draw in played.draws] == [
            codec.decode(action),
            *[Intervention()] * 3,
        ]
        assert all(draw.propensity == 1 and not draw.wide for draw in played.draws)
        assert played.validation[0] == control.validation[0]
        assert played.validation[1:] != control.validation[1:]


# ── building ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

BUILT = replace(DESIGN, singles=1, sequences=1, replicated=0.0, continued=0.5)
TRUNKS = trunks(2, seed=2)


def shards(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in (folder / "shards").rglob("*")
        if path.is_file()
    }


def test_an_interrupted_folded_build_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    report = generate(whole, TRUNKS, make_gpt2, design=BUILT, fold=Folded, workers=0)
    assert not report.failed
    asked = iter([False, True])
    assert generate(
        parts, TRUNKS, make_gpt2, design=BUILT, fold=Folded, workers=0, stop=lambda: next(asked)
    ).interrupted
    assert 0 < len(shards(parts)) < len(shards(whole))
    assert len(generate(parts, TRUNKS, make_gpt2, design=BUILT, fold=Folded, workers=0).made) == 1
    assert shards(parts) == shards(whole)
    data = Dataset.open(whole)
    data.verify()
    assert data.design == BUILT
    assert not report.failed


def test_played_starts_with_nothing_measured() -> None:
    fresh = Played(plan=Plan(kind="control"))
    assert list(fresh.flops) == list(fresh.telemetry) == list(PHASES)
