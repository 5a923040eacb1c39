"""A loop of one's own, watched and steered."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import trainenv
from tests.integrations.trainings import (
    OFTEN,
    InOrder,
    OwnLoop,
    all_equal,
    assert_shard_was_skipped,
    batches,
    kinds,
    leave_out,
    loss_of,
    trying,
)
from trainenv.integrations.attach import parts
from trainenv.records.telemetry_log import read_telemetry
from trainenv.types import UserError

VARIANTS: dict[str, dict[str, Any]] = {
    "dropout": {},
    "accumulation": {"accumulation": 3, "examples": 235},
    "bf16": {"rounded": True},
    "two optimizers": {"several": True},
    "compiled": {"compiled": True},
    "averaged": {"averaged": True},
}


def refused(tmp_path: Path, **variant: Any) -> OwnLoop:
    """Return a training in which branches were tried and refused."""
    loop = OwnLoop(**variant)
    loop.steered(tmp_path / "run", callback=trying(accepts=False), config={"branching": OFTEN})
    assert kinds(tmp_path / "run").count("decision") >= 1
    return loop


def scheduled(step: int) -> float:
    """Return the rate that the schedule of `OwnLoop` has after some steps."""
    return 3e-3 * 0.5 * (1 + math.cos(math.pi * step / 60))


# ── bits ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_watched_loop_keeps_its_bits(variant: str, tmp_path: Path) -> None:
    plain = OwnLoop(**VARIANTS[variant]).plain()
    watched = OwnLoop(**VARIANTS[variant]).steered(tmp_path / "run", "watch")
    assert all_equal(plain.state(), watched.state())


@pytest.mark.parametrize("variant", VARIANTS)
def test_refused_branches_leave_no_trace(variant: str, tmp_path: Path) -> None:
    plain = OwnLoop(**VARIANTS[variant]).plain()
    assert all_equal(plain.state(), refused(tmp_path, **VARIANTS[variant]).state())


def test_the_loop_computes_held_out_losses_where_no_function_does(tmp_path: Path) -> None:
    plain = OwnLoop().plain()
    loop = OwnLoop()
    loop.steered(
        tmp_path / "run", loss=None, callback=trying(accepts=False), config={"branching": OFTEN}
    )
    assert kinds(tmp_path / "run").count("decision") >= 1
    assert all_equal(plain.state(), loop.state())


@pytest.mark.parametrize(
    "part", ["model", "optimizer 0", "optimizer 1", "scheduler 1", "also[0]", "generators"]
)
def test_each_part_of_the_state_is_needed(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = {"several": True, "averaged": True}
    plain = OwnLoop(**variant).plain()
    leave_out(part, monkeypatch)
    assert not all_equal(plain.state(), refused(tmp_path, **variant).state())


def test_buffers_are_part_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = OwnLoop().plain()
    monkeypatch.setattr(parts.ModelPart, "_load_buffer", lambda *arguments: None)
    assert not all_equal(plain.state(), refused(tmp_path).state())


# ── changes ───────────────────────────────────────────────────────────────────────────────────────


def test_an_accepted_rate_is_in_force_and_the_schedule_stays_its_own(tmp_path: Path) -> None:
    plain = OwnLoop().plain()
    loop = OwnLoop()
    config = {"branching": {**OFTEN, "every": 20}}
    loop.steered(tmp_path / "run", callback=trying(accepts=True, factors=(0.5,)), config=config)
    assert all_equal(
        [one.state_dict() for one in plain.schedulers],
        [one.state_dict() for one in loop.schedulers],
    )
    telemetry = read_telemetry(tmp_path / "run", kept_only=True)
    assert telemetry["step"].tolist() == list(range(1, 53))
    factors = [1.0] * 20 + [0.5] * 32
    expected = [scheduled(step) * factor for step, factor in enumerate(factors)]
    assert telemetry["lr"].tolist() == pytest.approx(expected, rel=1e-6)
    assert len(loop.losses) == 52
    assert loop.losses[:21] == plain.losses[:21]
    assert loop.losses[21] != plain.losses[21]


def test_rules_skip_a_bad_shard_and_lower_the_rate(tmp_path: Path) -> None:
    data = batches(300, bad=range(250, 258))
    loop = InOrder(data, lr=1e-2)
    loop.steered(tmp_path / "run", "rules")
    assert_shard_was_skipped(loop.steer.run, tmp_path / "run", steps=300, bad=range(250, 254))


@pytest.mark.parametrize("mode", ["rules", "branching"])
def test_a_rate_that_gets_too_high_is_lowered(mode: str, tmp_path: Path) -> None:
    high: dict[str, Any] = {"lr": 1e-2, "from_step": 200, "factor": 100.0}
    plain = InOrder(batches(300), **high).plain()
    loop = InOrder(batches(300), **high)
    loop.steered(tmp_path / "run", mode, max_waste=0.5)
    assert loop.steer.run.lr_scale < 1
    assert loop.final < plain.final


def test_an_included_budget_ends_earlier_and_annealed(tmp_path: Path) -> None:
    loop = OwnLoop()
    loop.steered(
        tmp_path / "run",
        budget="included",
        callback=trying(accepts=False),
        config={"branching": OFTEN},
    )
    assert loop.steer.run.step < 52
    assert len(loop.losses) == loop.steer.run.step
    last = read_telemetry(tmp_path / "run", kept_only=True)["lr"].iloc[-1]
    assert scheduled(52) < last < scheduled(48) < scheduled(loop.steer.run.step)


# ── records ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stop", [3, 20, 27, 45])
def test_an_interrupted_run_resumes_to_the_same_end(stop: int, tmp_path: Path) -> None:
    def training(folder: str, **settings: Any) -> OwnLoop:
        loop = OwnLoop(averaged=True)
        callback = trying(accepts=True, factors=(0.9,))
        loop.steered(tmp_path / folder, callback=callback, config={"branching": OFTEN}, **settings)
        return loop

    whole = training("whole")

    class Stopped(Exception):
        pass

    cut = OwnLoop(averaged=True)

    def failing(model: Any, batch: Any) -> torch.Tensor:
        if len(cut.losses) >= stop and model.training:
            raise Stopped
        return loss_of(model, batch)

    cut.loss = failing
    with pytest.raises(Stopped):
        cut.steered(
            tmp_path / "cut",
            callback=trying(accepts=True, factors=(0.9,)),
            config={"branching": OFTEN},
        )
    cut.steer._session.close()
    resumed = training("cut", resume=True)
    assert resumed.losses == whole.losses[-len(resumed.losses) :]
    resumed.losses = whole.losses
    assert all_equal(whole.state(), resumed.state())


def test_rules_roll_a_resumed_run_back_to_the_same_state(tmp_path: Path) -> None:
    def training() -> InOrder:
        return InOrder(batches(150, bad=range(100, 106)), lr=1e-2)

    whole = training()
    whole.steered(tmp_path / "whole", "rules")
    assert kinds(tmp_path / "whole").count("rewind") >= 1

    class Stopped(Exception):
        pass

    cut = training()

    def failing(model: Any, batch: Any) -> torch.Tensor:
        if len(cut.losses) >= 97:
            raise Stopped
        return loss_of(model, batch)

    cut.loss = failing
    with pytest.raises(Stopped):
        cut.steered(tmp_path / "cut", "rules")
    cut.steer._session.close()
    resumed = training()
    resumed.steered(tmp_path / "cut", "rules", resume=True)
    resumed.losses = whole.losses
    assert all_equal(whole.state(), resumed.state())
    assert whole.steer.run.applied == resumed.steer.run.applied


def test_a_report_shows_the_run(tmp_path: Path) -> None:
    loop = OwnLoop().steered(tmp_path / "run")
    assert loop.steer.report().summary["ended"] == "budget spent"
    assert loop.steer.report().html().is_file()


def test_costs_are_stated_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = OwnLoop().steered(tmp_path / "run")
    assert loop.steer.statement in capsys.readouterr().err
    assert "at most 5 further steps, on top of its budget" in loop.steer.statement


# ── what cannot be steered ────────────────────────────────────────────────────────────────────────


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Any:
        return iter(batches(8))


class NoState:
    param_groups = ()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"validation": None}, "held-out data are needed"),
        ({"loader": DataLoader(Stream())}, "a stream"),
        ({"loader": iter(batches(8)), "steps": 8}, "must have positions"),
        ({"loader": DataLoader(batches(8), num_workers=1)}, "num_workers=1"),
        ({"loader": iter(batches(8)), "mode": "watch"}, "steps must be given"),
        ({"optimizer": NoState()}, "must have param_groups and state_dict"),
        ({"mode": "brnching"}, "mode must be one of watch, rules, branching"),
        ({"budget": "none"}, "budget must be one of extra, included"),
        ({"config": {"branchin": {"every": 3}}}, "unknown key 'branchin'"),
        ({"also": [object()]}, "without state_dict"),
        ({"model": torch.zeros(1)}, "model must be a module"),
    ],
)
def test_what_cannot_be_steered_is_refused_in_a_sentence(
    changed: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    loop = OwnLoop()
    usual: dict[str, Any] = {
        "model": loop.model,
        "optimizer": loop.optimizers[0],
        "loader": loop.loader,
        "validation": loop.held_out,
    }
    with pytest.raises(UserError, match=sentence):
        trainenv.steer(**{**usual, **changed}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("here")
    with pytest.raises(UserError, match="out must be a new folder or an empty one"):
        OwnLoop().steered(tmp_path / "run")


def test_a_stream_can_be_watched(tmp_path: Path) -> None:
    loop = OwnLoop()
    steer = trainenv.steer(
        loop.model,
        loop.optimizers[0],
        DataLoader(Stream(), batch_size=None),
        out=tmp_path / "run",
        mode="watch",
        steps=8,
    )
    for batch in steer:
        loss = loss_of(loop.model, batch)
        loss.backward()
        steer.step(loss)
    assert steer.report().summary["step"] == 8
