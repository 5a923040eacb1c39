"""`trainenv run`: what it prints where, and what it writes; the version, the module and the help."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trainenv
from tests.support.alarms import fires_at
from tests.support.command_line import (
    RUN_FILES,
    SMALL,
    asks_to_stop_at,
    assert_one_sentence,
    files,
    final,
    sets,
    tree,
)
from tests.support.strict_json import strict
from trainenv import cli
from trainenv.cli import main, make_parser
from trainenv.config.schema import RunConfig
from trainenv.records.decision_files import read_decisions
from trainenv.records.made_of import MadeOf
from trainenv.records.run_folder import read_events, read_validation
from trainenv.records.telemetry_log import read_telemetry
from trainenv.run import TrainingRun

# ── run ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_run_with_json_prints_one_object_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "tiny", *sets(), "--json", "--out", "mine"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert out.endswith("\n")
    summary = strict(out)
    assert summary["ended"] == "budget spent"
    assert summary["step"] == 24
    assert summary["folder"] == "mine"
    assert summary["first_validation_loss"] == pytest.approx(math.log(257), abs=0.5)
    assert "step 24 of 24" in err
    assert files(tmp_path / "mine") == RUN_FILES
    assert summary.pop("report") == "mine/report.html"
    assert strict((tmp_path / "mine" / "summary.json").read_text(encoding="utf-8")) == summary


def test_run_records_every_step_and_the_whole_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "tiny", *sets(), "--json", "--out", "mine"]) == 0
    summary = strict(capsys.readouterr().out)
    rows = read_telemetry(tmp_path / "mine")
    assert list(rows["step"]) == list(range(1, 25))
    assert list(rows["data_index"]) == list(range(24))
    assert set(rows["line"]) == {0}
    assert set(rows["purpose"]) == {"main"}
    assert set(rows["tokens"]) == {32}
    assert rows["lr"].iloc[-1] == summary["final_learning_rate"]
    assert RunConfig.load("mine/config.yaml") == RunConfig.load("tiny", SMALL)
    validation = read_validation(tmp_path / "mine")
    assert [v["step"] for v in validation] == [0, 8, 16, 24]
    assert validation[0]["loss"] == summary["first_validation_loss"]
    assert validation[-1]["loss"] == summary["final_validation_loss"]
    assert read_events(tmp_path / "mine") == []


def test_what_run_writes_can_be_run_again_to_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "tiny", *sets(), "--out", "first"]) == 0
    assert main(["run", "first/config.yaml", "--out", "second"]) == 0
    assert final("first") == final("second")


def test_run_for_people_prints_a_table_on_stdout_and_progress_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "tiny", *sets()]) == 0
    out, err = capsys.readouterr()
    for heading in ("steps", "alarms", "rewinds", "0.0 %"):
        assert heading in out
    assert "step" in err
    assert "loss" in err
    assert "step 24 of 24" not in out
    assert "{" not in out


def test_run_records_under_runs_by_default_and_never_over_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["run", "tiny", *sets(steps=2)]) == 0
    assert main(["run", "tiny", *sets(steps=2, name="mine"), "--json"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["mine", "tiny", "tiny-2"]
    assert strict(capsys.readouterr().out.splitlines()[-1])["folder"] == "runs/mine"


def test_run_from_a_file_takes_its_name(tmp_path: Path) -> None:
    lines = [
        "extends: tiny",
        "steps: 2",
        "batch_size: 2",
        "model: {context: 16}",
        "validation: {sequences: 2}",
    ]
    (tmp_path / "short.yaml").write_text("\n".join(lines), encoding="utf-8")
    assert main(["run", "short.yaml"]) == 0
    assert files(tmp_path / "runs" / "short") == RUN_FILES


def test_later_overrides_win_and_values_are_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    more = [
        "--set",
        "steps=3",
        "--set",
        "optimizer.lr=3e-4",
        "--set",
        "optimizer={weight_decay: 0}",
        "--set",
        "clip.policy=none",
    ]
    assert main(["run", "tiny", *sets(), *more, "--out", "mine"]) == 0
    config = RunConfig.load("mine/config.yaml")
    assert (
        config.steps,
        config.clip.policy,
        config.optimizer.lr,
        config.optimizer.weight_decay,
    ) == (3, "none", 3e-4, 0)


def test_by_hand_answers_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fires_at(monkeypatch, 58)
    assert (
        main(
            [
                "run",
                "tiny",
                *sets(steps=120, validation__every=0),
                "--by-hand",
                "--json",
                "--out",
                "mine",
            ]
        )
        == 0
    )
    summary = strict(capsys.readouterr().out)
    assert (summary["fired"], summary["rewinds"], summary["ended"]) == (1, 1, "budget spent")
    assert [event["kind"] for event in read_events(tmp_path / "mine")] == ["fired", "rewind"]
    assert summary["flops"]["rewound"] > 0
    assert list(read_telemetry(tmp_path / "mine", kept_only=True)["step"]) == list(
        range(1, summary["step"] + 1)
    )


@pytest.mark.parametrize("planner", ["grid", "random"])
def test_branching_drafts_verifies_and_goes_on(
    planner: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick = "{every: 40, horizon: 48, verify_steps: 3, refractory_steps: 8, max_waste: 0.5, min_gain: 0, top_k: 2}"
    arguments = [
        "run",
        "tiny",
        *sets(steps=120, validation__every=0, branching=quick),
        "--branching",
        "--planner",
        planner,
    ]
    assert main([*arguments, "--out", "straight"]) == 0
    said = capsys.readouterr().out
    assert "steering costs at most 60 steps, " in said
    decisions = read_decisions(tmp_path / "straight")
    drafted = [decision for decision in decisions if decision["why"] != "harm"]
    assert len(drafted) >= 2
    assert {decision["planner"]["name"] for decision in drafted} == {planner}
    assert [branch["control"] for branch in drafted[0]["branches"]][:2] == [True, False]
    assert drafted[0]["branches"][0]["forecast"] is not None
    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, 56)
        assert main([*arguments, "--out", "mine"]) == cli.INTERRUPTED
    hint = shlex.split(
        capsys.readouterr().out.partition("interrupted; resume with: trainenv ")[2].strip()
    )
    assert hint == ["run", "--resume", "--out", "mine"]
    assert main([*hint, "--json"]) == 0
    assert final("mine") == final("straight")
    assert [d["number"] for d in read_decisions(tmp_path / "mine")] == [
        d["number"] for d in decisions
    ]


def test_the_planner_is_shapes_by_default_and_its_run_resumes_to_the_same_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = "{every: 40, horizon: 48, verify_steps: 3, refractory_steps: 8, max_waste: 0.5, min_gain: 0, top_k: 2}"
    arguments = ["run", "tiny", *sets(steps=120, validation__every=0, branching=quick)]
    assert main([*arguments, "--branching", "--out", "straight"]) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, 56)
        assert main([*arguments, "--branching", "--out", "mine"]) == cli.INTERRUPTED
    assert MadeOf.read(Path("mine")).flags == ("--branching", "--planner", "shapes")
    assert main(["run", "--resume", "--out", "mine"]) == 0
    assert final("mine") == final("straight")


def test_a_diverged_run_ends_with_1_and_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "diverged", property(lambda run: run.step >= 12))
        more = sets(checkpoints__every=4)
        assert main(["run", "tiny", *more, "--out", "mine", "--steps", "20"]) == 1
    out = capsys.readouterr().out
    assert "report: mine/report.html" in out
    advice = (
        "the run diverged at step 12: continue from before that at a third of the learning rate"
    )
    command = out.replace("\n", " ").partition(f"{advice} with: trainenv ")[2].partition(";")[0]
    assert command.split() == ["fork", "mine@8", "--set", "optimizer.lr=0.001"]
    assert "; or start it with --branching" in out
    assert main([*command.split(), "--json", "--out", "lower"]) == 0
    assert strict(capsys.readouterr().out)["step"] == 20


def test_a_finished_run_is_extended_and_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "tiny", *sets(steps=12), "--by-hand", "--out", "runs/mine"]) == 0
    assert main(["run", "--resume", "--steps", "20", "--out", "runs/mine"]) == 0
    out = capsys.readouterr().out
    assert "extended from 12 to 20 steps" in out
    assert MadeOf.read(Path("runs/mine")).flags == ("--by-hand",)
    assert main(["fork", "runs/mine@12", "--unsteered", "--out", "runs/other"]) == 0
    assert "starting from step 12 of runs/mine, in runs/other" in capsys.readouterr().out
    assert main(["runs", "--json"]) == 0
    listed = strict(capsys.readouterr().out)["runs"]
    assert [(run["folder"], run["step"], run["steered"]) for run in listed] == [
        ("runs/mine", 20, "--by-hand"),
        ("runs/other", 20, ""),
    ]
    assert listed[1]["parent"].endswith("runs/mine@12")
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert "no, from runs/mine@12" in out
    assert "2 runs" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fork", "gone@4"], ("gone", "trainenv runs")),
        (["fork", "a@b"], ("expected FOLDER@STEP, found 'a@b'", "runs/tiny@400")),
        (["fork", "x@4", "--unsteered", "--by-hand"], ("--unsteered", "--by-hand")),
        (["runs", "gone"], ("expected a folder of runs at gone", "trainenv run tiny")),
        (["run", "--resume", "--steps", "30", "--out", "gone"], ("finished run in gone",)),
    ],
)
def test_mistakes_in_continuing_a_run(
    arguments: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_one_sentence(arguments, words, tmp_path, capsys)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--branching", "--by-hand"], ("--by-hand", "--branching")),
        (["--branching", "--planner", "gird"], ("gird", "grid")),
    ],
)
def test_a_run_is_steered_by_one_that_there_is(
    wrong: list[str], words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_sentence(["run", "tiny", *sets(), *wrong], words, tmp_path, capsys)


# ── version, module, help ───────────────────────────────────────────────────────────────────────────────────────────


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"trainenv {trainenv.__version__}\n"


@pytest.mark.parametrize("module", ["trainenv", "trainenv.cli"])
def test_runs_as_a_module(module: str) -> None:
    command = [sys.executable, "-m", module, "run", "tinny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("trainenv: unknown preset 'tinny'; did you mean 'tiny'?")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["demo", "--help"],
        ["doctor", "--help"],
        ["checkpoint", "--help"],
        ["config", "describe", "--help"],
        ["config", "schema", "--help"],
        *(["checkpoint", name, "--help"] for name in ("verify", "show", "gc", "export")),
    ],
)
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert "usage: trainenv" in capsys.readouterr().out


def arguments_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """The place and the help text of each argument of each command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name in action.choices:
                yield from arguments_of(action.choices[name])
        elif action.help != argparse.SUPPRESS:
            yield f"{parser.prog} {action.metavar or action.dest}", action.help or ""


@pytest.mark.parametrize(("place", "text"), list(arguments_of(make_parser())))
def test_each_argument_is_explained_by_a_phrase_of_its_own(place: str, text: str) -> None:
    assert re.match(r"[a-zA-Z-]+ ", text), place
    assert text.split()[0] not in ("of", "that", "where", "what", "as", "also", "only")
    assert not text.endswith(".")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["runn", "tiny"],
        ["run", "tiny", "mini"],
        ["run", "tiny", "--stepss", "3"],
        ["demo", "--steps", "many"],
    ],
)
def test_a_command_that_does_not_parse(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error:" in err
    assert tree(tmp_path) == {}
