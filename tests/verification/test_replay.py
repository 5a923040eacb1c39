"""A recorded decision, trained again: the same to the bit, and a record that was changed is found out."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.branched_runs import SMALL, draft, forecast, lr
from trainenv.agents.branching.branching_loop import Branching
from trainenv.cli.replay import replay_command
from trainenv.config.presets import configs_folder
from trainenv.config.schema import RunConfig
from trainenv.loop import train
from trainenv.records.decision_files import NAME, read_decisions
from trainenv.records.run_folder import RunFolder
from trainenv.run import TrainingRun
from trainenv.types import Plan, PlanningProblem, UserError
from trainenv.verification.replay import Replay
from trainenv.verification.rules import Annealed
from trainenv.verification.verify import Verification

Change = Callable[[dict[str, Any]], Any]
BRANCHING = {
    "triggers": ["checkpoint"],
    "every": 30,
    "horizon": 32,
    "top_k": 3,
    "verify_steps": 6,
    "max_waste": 0.9,
    "min_gain": 0.0,
}


@dataclass(frozen=True)
class Scripted:
    """Drafts the same every time."""

    def plan(self, problem: PlanningProblem, /) -> Plan:
        return draft(
            lr(0.8),
            (*lr(1.1), *lr(0.9)),
            lr(1e9),
            forecasts=[forecast(), forecast(-0.5, 0.5), forecast()],
        )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with some decisions, by two rules."""
    config = RunConfig.load("tiny", {**SMALL, "branching": BRANCHING, "steps": 100})
    folder = RunFolder.create(tmp_path_factory.mktemp("runs") / "run", config)
    verification = Verification(top_k=3, verify_steps=6, rule=Annealed(margin=0.0), cooldown=3)
    train(
        TrainingRun.from_config(config),
        folder,
        callback=Branching(planner=Scripted(), verification=verification),
    )
    shutil.copytree(folder.path / "branches" / "30", folder.path / "branches" / "30-2")
    return folder.path


@pytest.fixture
def copied(recorded: Path, tmp_path: Path) -> Path:
    """One of its own, to spoil."""
    return shutil.copytree(recorded, tmp_path / "run")


def change(folder: Path, how: Change) -> None:
    path = folder / "branches" / "30" / NAME
    told = json.loads(path.read_text(encoding="utf-8"))
    how(told)
    path.write_text(json.dumps(told), encoding="utf-8")


def command(
    folder: Path, step: str = "30", *overrides: str, as_json: bool = False
) -> tuple[dict[str, Any], int]:
    return replay_command(
        argparse.Namespace(folder=folder, step=step, set=list(overrides), json=as_json)
    )


def test_what_a_loop_records_is_as_the_schema_says(recorded: Path) -> None:
    schema = json.loads((configs_folder() / "decision_schema.json").read_text(encoding="utf-8"))
    decisions = read_decisions(recorded)
    assert len(decisions) >= 2
    for decision in decisions:
        jsonschema.Draft202012Validator(schema).validate(decision)
    assert {branch["fate"] for decision in decisions for branch in decision["branches"]} >= {
        "control",
        "accepted",
    }


def test_every_decision_is_replayed_to_the_bit(recorded: Path) -> None:
    before = {path: path.read_bytes() for path in recorded.rglob("*") if path.is_file()}
    for path in sorted((recorded / "branches").iterdir()):
        replay = Replay.of(recorded, path.name)
        assert replay.agrees, replay.reason
        assert (replay.off, replay.numerics) == (0, ())
        assert replay.reason == "every loss is the same to the bit"
        assert replay.rows[0].fates == ("control", "control")
    assert {path: path.read_bytes() for path in recorded.rglob("*") if path.is_file()} == before


def test_under_other_numeric_settings_it_is_told_how_far_off_it_is(recorded: Path) -> None:
    replay = Replay.of(recorded, "30", {"deterministic": True})
    assert replay.numerics == ("deterministic was False, is True",)
    assert replay.agrees
    assert "under other numeric settings: deterministic was False, is True" in replay.reason


def one_bit(told: dict[str, Any]) -> None:
    losses = told["branches"][1]["losses"]
    losses[-1] = math.nextafter(losses[-1], 0.0)


def look(told: dict[str, Any]) -> None:
    told["branches"][0]["outcome"]["validation"][-1] += 1e-9


def annealed(told: dict[str, Any]) -> None:
    told["branches"][0]["outcome"]["annealed"] = None


def shorter(told: dict[str, Any]) -> None:
    told["branches"][0]["losses"].pop()


def fate(told: dict[str, Any]) -> None:
    told["branches"][0]["fate"] = "passed"


def accepted(told: dict[str, Any]) -> None:
    told["accepted"] = 1 if told["accepted"] != 1 else None


def fingerprint(told: dict[str, Any]) -> None:
    told["start"]["fingerprint"] = "0" * 32


def another(told: dict[str, Any]) -> None:
    told["branches"][1]["interventions"] = [{"lr_scale": 0.81}]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (one_bit, "nats off"),
        (look, "nats off"),
        (another, "nats off"),
        (annealed, "not all that was measured"),
        (shorter, "not all that was measured"),
        (fate, "judged otherwise"),
        (accepted, "judged otherwise"),
        (fingerprint, "is not the one that was recorded"),
    ],
)
def test_a_record_that_was_changed_is_found_out(copied: Path, how: Change, said: str) -> None:
    change(copied, how)
    result, code = command(copied, as_json=True)
    assert (code, result["agrees"]) == (1, False)
    assert said in result["reason"]


def test_the_command(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, code = command(recorded, "30-2")
    shown = capsys.readouterr().out
    assert code == 0
    assert "agrees: every loss is the same to the bit" in shown
    assert "LR ×0.8" in shown
    assert json.loads(json.dumps(result, allow_nan=False))["agrees"] is True
    assert result["branches"][0]["fate"] == {"then": "control", "now": "control"}
    assert command(recorded, as_json=True)[1] == 0
    assert capsys.readouterr().out == ""


def without_checkpoint(told: dict[str, Any]) -> None:
    told["start"]["checkpoint"] = None


def torn(told: dict[str, Any]) -> None:
    del told["verification"]["fold"]


def own_rule(told: dict[str, Any]) -> None:
    told["verification"] |= {"rule": "Mine", "settings": "Mine()"}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (without_checkpoint, "branching.replayable"),
        (torn, "decision_schema.json says, found KeyError: 'fold'"),
        (own_rule, "by the rules of trainenv"),
        (lambda told: told["branches"].clear(), "decision_schema.json"),
        (lambda told: told.update(step=31), "31"),
    ],
)
def test_records_that_cannot_be_replayed(copied: Path, how: Change, said: str) -> None:
    change(copied, how)
    with pytest.raises(UserError, match=said):
        command(copied)


@pytest.mark.parametrize("step", ["31", "30-3", "", "..", "30/..", "last"])
def test_a_step_that_there_is_not_names_those_there_are(recorded: Path, step: str) -> None:
    with pytest.raises(UserError, match="take one of 30, 30-2"):
        command(recorded, step)


def test_other_mistakes(recorded: Path, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found no config\.yaml"):
        command(tmp_path / "nowhere")
    with pytest.raises(UserError, match="--set takes KEY=VALUE"):
        command(recorded, "30", "deterministic")
    with pytest.raises(UserError, match="another model"):
        command(recorded, "30", "model.width=32")
    (copied / "branches" / "30" / NAME).write_text("{")
    with pytest.raises(UserError, match="torn"):
        command(copied)
    shutil.rmtree(copied / "branches")
    with pytest.raises(UserError, match="no decision was recorded"):
        command(copied)
