"""The command line: what it prints where, what it writes, and that a mistake costs one sentence and nothing else."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pandas as pd
import pytest
import torch

import trainenv
from trainenv import cli
from trainenv.checkpoints.store import CheckpointStore
from trainenv.cli import main
from trainenv.cli.asking import interruptible
from trainenv.config import RunConfig
from trainenv.driving import drive
from trainenv.monitor.uncertainty import UncertaintyIndex
from trainenv.records.decisions import read_decisions
from trainenv.records.folder import RunFolder, read_events, read_validation
from trainenv.records.lines import read_lines
from trainenv.records.parquet import read_telemetry
from trainenv.run import TrainingRun
from trainenv.snapshots import fingerprint
from trainenv.types import Reading, Snapshot, Telemetry

SMALL: dict[str, Any] = {
    "device": "cpu",
    "steps": 24,
    "batch_size": 2,
    "model.context": 16,
    "validation.sequences": 4,
    "validation.every": 8,
    "monitor.block": 4,
    "schedule.warmup": 4,
}
RUN_FILES = ["config.yaml", "summary.json", "telemetry/part-00000.parquet", "validation.jsonl"]
NOT_THE_FUTURE = ("ledger", "numerics", "statistics")


def sets(**more: Any) -> list[str]:
    """`SMALL` and more, as arguments; a double underscore stands for the dot."""
    values = SMALL | {key.replace("__", "."): value for key, value in more.items()}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def strict(text: str) -> Any:
    """JSON as other languages read it: without NaN and infinities."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def files(folder: Path) -> list[str]:
    """All files but the checkpoints."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in found if not name.startswith("checkpoints/"))


def newest(folder: str | Path) -> Snapshot:
    """The checkpoint of a run that was saved last."""
    return CheckpointStore(Path(folder) / "checkpoints").load()


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, with the content of files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ── run ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_run_with_json_prints_one_object_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert strict((tmp_path / "mine" / "summary.json").read_text(encoding="utf-8")) == summary


def test_run_records_every_step_and_the_whole_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_what_run_writes_can_be_run_again_to_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", *sets(), "--out", "first"]) == 0
    assert main(["run", "first/config.yaml", "--out", "second"]) == 0
    assert final("first") == final("second")


def test_run_for_people_prints_a_table_on_stdout_and_progress_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", *sets()]) == 0
    out, err = capsys.readouterr()
    for heading in ("steps", "alarms", "rewinds", "0.0 %"):
        assert heading in out
    assert "step" in err
    assert "loss" in err
    assert "step 24 of 24" not in out
    assert "{" not in out


def test_run_records_under_runs_by_default_and_never_over_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["run", "tiny", *sets(steps=2)]) == 0
    assert main(["run", "tiny", *sets(steps=2, name="mine"), "--json"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["mine", "tiny", "tiny-2"]
    assert strict(capsys.readouterr().out.splitlines()[-1])["folder"] == "runs/mine"


def test_run_from_a_file_takes_its_name(tmp_path: Path) -> None:
    lines = ["extends: tiny", "steps: 2", "batch_size: 2", "model: {context: 16}", "validation: {sequences: 2}"]
    (tmp_path / "short.yaml").write_text("\n".join(lines), encoding="utf-8")
    assert main(["run", "short.yaml"]) == 0
    assert files(tmp_path / "runs" / "short") == RUN_FILES


def test_later_overrides_win_and_values_are_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--set", "steps=3", "--set", "optimizer.lr=3e-4", "--set", "optimizer={weight_decay: 0}", "--set", "clip.policy=none"]
    assert main(["run", "tiny", *sets(), *more, "--out", "mine"]) == 0
    config = RunConfig.load("mine/config.yaml")
    assert (config.steps, config.clip.policy, config.optimizer.lr, config.optimizer.weight_decay) == (3, "none", 3e-4, 0)


def test_by_hand_answers_an_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    left = [58]

    def fires_once(index: UncertaintyIndex, telemetry: Telemetry) -> Reading:
        fired = telemetry.step in left
        if fired:
            left.remove(telemetry.step)
        return Reading(index=9.0 if fired else 0.0, threshold=3.0, fired=fired)

    monkeypatch.setattr(UncertaintyIndex, "update", fires_once)
    assert main(["run", "tiny", *sets(steps=120, validation__every=0), "--by-hand", "--json", "--out", "mine"]) == 0
    summary = strict(capsys.readouterr().out)
    assert (summary["fired"], summary["rewinds"], summary["ended"]) == (1, 1, "budget spent")
    assert [event["kind"] for event in read_events(tmp_path / "mine")] == ["fired", "rewind"]
    assert summary["flops"]["rewound"] > 0
    assert list(read_telemetry(tmp_path / "mine", kept_only=True)["step"]) == list(range(1, summary["step"] + 1))


@pytest.mark.parametrize("planner", [[], ["--planner", "random"]], ids=["grid", "random"])
def test_branching_drafts_verifies_and_goes_on(
    planner: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = "{every: 40, horizon: 48, verify_steps: 3, quiet: 8, share: 0.5, worth: 0, top_k: 2}"
    arguments = ["run", "tiny", *sets(steps=120, validation__every=0, branching=quick), "--branching", *planner]
    assert main([*arguments, "--out", "straight"]) == 0
    said = capsys.readouterr().out
    assert "steering costs at most 60 steps, " in said
    decisions = read_decisions(tmp_path / "straight")
    drafted = [decision for decision in decisions if decision["why"] != "harm"]
    assert len(drafted) >= 2
    assert {decision["planner"]["name"] for decision in drafted} == {(planner or ["grid"])[-1]}
    assert [branch["control"] for branch in drafted[0]["branches"]][:2] == [True, False]
    assert drafted[0]["branches"][0]["forecast"] is not None
    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, 56)
        assert main([*arguments, "--out", "mine"]) == cli.INTERRUPTED
    hint = shlex.split(capsys.readouterr().out.partition("interrupted; go on with: trainenv ")[2].strip())
    assert hint == ["run", "--resume", "--out", "mine", "--branching", "--planner", (planner or ["grid"])[-1]]
    assert main([*hint, "--json"]) == 0
    assert final("mine") == final("straight")
    assert [d["number"] for d in read_decisions(tmp_path / "mine")] == [d["number"] for d in decisions]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(["--branching", "--by-hand"], ("--by-hand", "--branching")), (["--branching", "--planner", "gird"], ("gird", "grid"))],
)
def test_a_run_is_steered_by_one_that_there_is(
    wrong: list[str], words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_sentence(["run", "tiny", *sets(), *wrong], words, tmp_path, capsys)


# ── demo ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_demo_trains_both_ways_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--steps", "300", "--json", "--out", "here"]) == 0
    out, err = capsys.readouterr()
    result = strict(out)
    assert [run["method"] for run in result["runs"]] == ["left alone", "branching"]
    for run in result["runs"]:
        assert strict((Path(run["folder"]) / "summary.json").read_text(encoding="utf-8"))["step"] == run["step"]
        assert f"{run['method']}: step" in err
    alone, steered = result["runs"]
    assert alone["first_validation_loss"] == steered["first_validation_loss"]
    assert (alone["step"], alone["flops"]["verify"], alone["flops"]["plan"]) == (300, 0, 0)
    assert sum(steered["flops"].values()) <= 1.01 * sum(alone["flops"].values())
    assert steered["flops"]["plan"] > 0
    assert steered["step"] < 300
    page = Path(result["report"]).read_text(encoding="utf-8")
    assert "<svg" in page
    assert "http" not in page.split("</head>")[0].replace("http-equiv", "")


def test_demo_for_people_says_what_it_may_cost_and_shows_the_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--steps", "100", "--out", "here"]) == 0
    out = capsys.readouterr().out
    assert "steering costs at most 10 steps" in out
    assert "left alone" in out
    assert "report: here/report.html" in out


def test_interrupted_demo_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--steps", "160", "--json", "--out", "whole"]) == 0
    whole = strict(capsys.readouterr().out)
    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, 96, once="here/branching")
        assert main(["demo", "--steps", "160", "--json", "--out", "here"]) == cli.INTERRUPTED
    result = strict(capsys.readouterr().out)
    assert [run["ended"] for run in result["runs"]] == ["budget spent", "interrupted"]
    assert not (tmp_path / "here" / "summary.json").exists()
    assert main(["demo", "--resume", "--json", "--out", "here"]) == 0
    resumed = strict(capsys.readouterr().out)
    assert [run["fingerprint"] for run in resumed["runs"]] == [run["fingerprint"] for run in whole["runs"]]


@pytest.mark.parametrize(
    "arguments", [["--resume"], ["--resume", "--out", "nowhere"], ["--resume", "--out", "a", "--steps", "9"]]
)
def test_a_demo_that_cannot_be_gone_on_with_says_so(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *arguments]) == cli.USER_ERROR
    assert capsys.readouterr().err.count("\n") == 1


# ── version, module, help ───────────────────────────────────────────────────────────────────────────────────────────


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"trainenv {trainenv.__version__}\n"


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "trainenv.cli", "run", "tinny"]
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
        *(["checkpoint", name, "--help"] for name in ("verify", "show", "gc", "export")),
    ],
)
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert "usage: trainenv" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["runn", "tiny"], ["run", "tiny", "mini"], ["run", "tiny", "--steps", "3"], ["demo", "--steps", "many"]]
)
def test_a_command_that_does_not_parse(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error:" in err
    assert tree(tmp_path) == {}


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────────────────────────

MISTAKES: dict[str, tuple[list[str], dict[str, str | None], tuple[str, ...]]] = {
    # what is wrong: arguments, files that are there (None: a folder), what the sentence must contain
    "preset": (["tinny"], {}, ("'tinny'", "did you mean 'tiny'?", "mini")),
    "no preset alike": (["qqqq"], {}, ("'qqqq'", "presets: demo, large")),
    "preset of another kind": (["uncertainty"], {}, ("uncertainty", "unknown key")),
    "key": (["tiny", "--set", "optimizer.lrr=1"], {}, ("'optimizer.lrr'", "did you mean 'lr'?", "weight_decay")),
    "key of the top": (["tiny", "--set", "step=1"], {}, ("'step'", "did you mean 'steps'?")),
    "key below the index": (["tiny", "--set", "monitor.uncertainty.windw=9"], {}, ("windw", "did you mean 'window'?")),
    "key in a file": (["a.yaml"], {"a.yaml": "extends: tiny\noptimiser: {lr: 1}\n"}, ("a.yaml", "did you mean 'optimizer'?")),
    "deep key in a file": (["a.yaml"], {"a.yaml": "extends: tiny\nmodel: {widht: 8}\n"}, ("model.widht", "'width'?")),
    "key twice": (["a.yaml"], {"a.yaml": "extends: tiny\nsteps: 1\nsteps: 2\n"}, ("a.yaml", "steps", "twice")),
    "no equals sign": (["tiny", "--set", "steps"], {}, ("KEY=VALUE", "'steps'", "--set optimizer.lr=1e-3")),
    "no key": (["tiny", "--set", "=3"], {}, ("KEY=VALUE", "'=3'")),
    "no value": (["tiny", "--set", "steps="], {}, ("steps", "integer", "None")),
    "value that is not YAML": (["tiny", "--set", "steps=[1"], {}, ("steps", "'[1'", "quote")),
    "value of many lines": (["tiny", "--set", "steps=a\n\nb"], {}, ("steps", "integer")),
    "missing file": (["gone.yaml"], {}, ("gone.yaml", "found none", "preset")),
    "empty file": (["a.yaml"], {"a.yaml": ""}, ("a.yaml", "empty file", "extends: tiny")),
    "comment only": (["a.yaml"], {"a.yaml": "# nothing\n"}, ("a.yaml", "empty file")),
    "list": (["a.yaml"], {"a.yaml": "- steps\n"}, ("a.yaml", "mapping", "list")),
    "broken YAML": (["a.yaml"], {"a.yaml": "a: [1\nb: {"}, ("a.yaml", "not valid YAML", "line 2")),
    "extends itself": (["a.yaml"], {"a.yaml": "extends: a.yaml\n"}, ("extends itself", "remove")),
    "extends nothing": (["a.yaml"], {"a.yaml": "extends: tinny\n"}, ("'tinny'", "'tiny'")),
    "nothing to start from": (["a.yaml"], {"a.yaml": "steps: 3\n"}, ("missing", "extends: tiny")),
    "negative rate": (["tiny", "--set", "stressors.rare_tokens=-0.1"], {}, ("stressors.rare_tokens", "0", "-0.1")),
    "rate over one": (["tiny", "--set", "stressors.artefacts=2"], {}, ("stressors.artefacts", "1", "found 2")),
    "negative learning rate": (["tiny", "--set", "optimizer.lr=-1"], {}, ("optimizer.lr", "greater than 0", "-1")),
    "no steps": (["tiny", "--set", "steps=0"], {}, ("steps", "1", "found 0")),
    "heads": (["tiny", "--set", "model.width=63"], {}, ("width", "multiple of heads", "63", "2")),
    "vocabulary": (["tiny", "--set", "corpus.vocab_size=3"], {}, ("corpus.vocab_size", "257", "found 3")),
    "scalar for a section": (["tiny", "--set", "model=5"], {}, ("model", "found 5")),
    "no corpus path": (["tiny", "--set", "corpus.name=text"], {}, ("corpus.path", "found none", "UTF-8")),
    "out holds something": (["tiny", "--out", "full"], {"full/a": "1"}, ("full", "not empty", "--resume")),
    "out is a file": (["tiny", "--out", "a"], {"a": "1"}, ("a must be a folder", "give another --out")),
    "out is below a file": (["tiny", "--out", "a/b/c"], {"a": "1"}, ("a/b/c must be a folder", "give another --out")),
    "name is a path": (["tiny", "--set", "name=a/b"], {}, ("name", "'a/b'")),
    "name goes up": (["tiny", "--set", "name=../a"], {}, ("name", "'../a'")),
    "name is a path elsewhere": (["tiny", "--set", r"name=a\b"], {}, ("name", "a")),
    "nothing to run": ([], {}, ("CONFIG", "preset", "tiny", "YAML")),
    "nothing to run but where": (["--out", "a", "--set", "steps=3"], {}, ("CONFIG", "preset", "tiny", "YAML")),
    "resume what": (["--resume"], {}, ("--resume", "--out FOLDER")),
    "resume a preset": (
        ["tiny", "--resume", "--out", "a"],
        {"a/checkpoints/cp_1.ptz": "zip"},
        ("--resume", "neither CONFIG, --set nor --weights"),
    ),
    "resume otherwise": (["--resume", "--out", "a", "--set", "steps=3"], {}, ("--resume", "neither CONFIG, --set nor --weights")),
    "resume with weights": (["--resume", "--out", "a", "--weights", "w.pt"], {}, ("--resume", "nor --weights")),
    "resume nothing": (["--resume", "--out", "gone"], {}, ("gone", "checkpoints", "leave out --resume")),
    "resume an empty folder": (["--resume", "--out", "a"], {"a": None}, ("checkpoints", "found none")),
    "resume a file": (["--resume", "--out", "a"], {"a": "1"}, ("checkpoints", "found none")),
    "resume what was never saved": (["--resume", "--out", "a"], {"a/config.yaml": "steps: 3"}, ("checkpoints", "found none")),
    "resume a finished run": (["--resume", "--out", "a"], {"a/summary.json": "{}"}, ("has ended", "--out")),
    "no weights": (["tiny", "--weights", "gone.pt"], {}, ("gone.pt", "found no file")),
    "weights of another kind": (["tiny", "--weights", "a.ckpt"], {"a.ckpt": "1"}, ("a.ckpt", ".safetensors or .pt")),
    "weights that are none": (["tiny", "--weights", "a.pt"], {"a.pt": "1"}, ("a.pt was not read", "damaged")),
    "checkpoints are a step apart": (["tiny", "--set", "checkpoints.every=0"], {}, ("checkpoints.every", "found 0")),
    "moments": (["tiny", "--set", "checkpoints.moments=4bit"], {}, ("checkpoints.moments", "8bit", "'4bit'")),
}
TEXT = ["tiny", "--set", "corpus.name=text", "--set"]
MISTAKES |= {
    "corpus path": ([*TEXT, "corpus.path=gone.txt"], {}, ("gone.txt", "found neither", "exists")),
    "empty corpus": ([*TEXT, "corpus.path=e.txt"], {"e.txt": ""}, ("e.txt", "no text", "give one with text")),
    "folder without text": ([*TEXT, "corpus.path=a"], {"a": None}, ("corpus.path", "/a, found 0 file(s)", "give one with text")),
    "folder of binaries": ([*TEXT, "corpus.path=a"], {"a/b.bin": "\0\0"}, ("corpus.path", "/a, found", "no text")),
    "short corpus": ([*TEXT, "corpus.path=s.txt"], {"s.txt": "hello " * 20}, ("640", "found 122", "give more text")),
    "corpus shorter than a batch": ([*TEXT, "corpus.path=a.txt"], {"a.txt": "hello " * 120}, ("text", "give more text")),
    "corpus too short for its vocabulary": (
        [*TEXT, "corpus.path=a.txt", "--set", "corpus.tokenizer=bpe"],
        {"a.txt": "hello " * 120},
        ("4096", "corpus.vocab_size", "more text"),
    ),
    "validation set": (["tiny", "--set", "validation.sequences=9999999"], {}, ("9999999", "validation", "ask for fewer")),
    "batch": (["tiny", "--set", "batch_size=9999999"], {}, ("9999999", "smaller batch_size")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_costs_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, there, words = MISTAKES[name]
    for path, content in there.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            (tmp_path / path).mkdir()
        else:
            (tmp_path / path).write_text(content, encoding="utf-8")
    assert_one_sentence(["run", *arguments], words, tmp_path, capsys)
    assert_one_sentence(["run", *arguments, "--json"], words, tmp_path, capsys)


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("trainenv.models.psutil.virtual_memory", lambda: SimpleNamespace(available=2**20))
    words = ("tiny needs at least", "GiB", "found 0.0 GiB free", "smaller preset")
    assert_one_sentence(["run", "tiny", "--set", "device=cpu"], words, tmp_path, capsys)


def test_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ("device cuda was asked for", "finds none", "device: auto")
    assert_one_sentence(["run", "tiny", "--set", "device=cuda"], words, tmp_path, capsys)


def test_too_little_memory_for_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainenv.models.psutil.virtual_memory", lambda: SimpleNamespace(available=2**20))
    assert_one_sentence(["demo"], ("GiB", "found 0.0 GiB free"), tmp_path, capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], ("steps", "found 0")),
        (["--steps", "-3"], ("steps", "-3")),
        (["--out", "full"], ("full", "not empty")),
        (["--out", "full/a/b"], ("full/a/b must be a folder", "give another --out")),
    ],
)
def test_demo_mistakes(arguments: list[str], words: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("1", encoding="utf-8")
    assert_one_sentence(["demo", *arguments], words, tmp_path, capsys)


def assert_one_sentence(arguments: Sequence[str], words: Sequence[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(folder)
    assert main(arguments) == cli.USER_ERROR
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("trainenv: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err
    assert tree(folder) == before


# ── interrupt and resume ────────────────────────────────────────────────────────────────────────────────────────────


def asks_to_stop_at(monkeypatch: pytest.MonkeyPatch, step: int, *, once: str = ".") -> None:
    """A SIGTERM to this very process once training has come to `step` and `once` is there, as a scheduler would send it."""
    advance = TrainingRun.advance
    sent: list[int] = []

    def advancing(run: TrainingRun, steps: int) -> list[Telemetry]:
        window = advance(run, steps)
        if run.step >= step and not sent and Path(once).exists():
            sent.append(run.step)
            os.kill(os.getpid(), signal.SIGTERM)
        return window

    monkeypatch.setattr(TrainingRun, "advance", advancing)


def final(folder: str) -> str:
    return fingerprint(newest(folder), NOT_THE_FUTURE)


def same_rows(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found.drop(columns="line"), expected.drop(columns="line"), check_exact=True)


@pytest.mark.parametrize("stop_at", [4, 12, 16])
def test_a_resumed_run_ends_like_one_that_was_never_interrupted(
    stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "tiny", *sets(), "--json", "--out", "straight"]) == 0
    straight = strict(capsys.readouterr().out)

    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, stop_at)
        assert main(["run", "tiny", *sets(), "--json", "--out", "mine"]) == cli.INTERRUPTED
    stopped = strict(capsys.readouterr().out)
    assert (stopped["ended"], stopped["step"]) == ("interrupted", stop_at)
    assert not (tmp_path / "mine" / "summary.json").exists()
    assert (newest("mine").step, newest("mine").tier) == (stop_at, "exact")
    assert read_events(tmp_path / "mine")[-1]["kind"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    assert main(["run", "--resume", "--json", "--out", "mine"]) == 0
    resumed = strict(capsys.readouterr().out)
    assert strict((tmp_path / "mine" / "summary.json").read_text(encoding="utf-8")) == resumed
    changing = {"folder": "", "seconds": 0, "ms_per_step": 0}
    assert resumed | changing == straight | changing
    assert final("mine") == final("straight")
    assert [(v["step"], v["loss"]) for v in read_validation(tmp_path / "mine")] == [
        (v["step"], v["loss"]) for v in read_validation(tmp_path / "straight")
    ]
    same_rows(read_telemetry("mine", kept_only=True), read_telemetry("straight"))
    assert list(read_telemetry("mine")["line"]) == [0] * stop_at + [1] * (24 - stop_at)
    assert read_lines(tmp_path / "mine" / "lines.jsonl") == [{"line": 1, "step": stop_at, "rewinds": 0}]


@pytest.mark.parametrize("stop_at", [4, 8, 12])
def test_a_resumed_run_is_charged_what_both_parts_took(
    stop_at: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps, probes and validations cost what they do without the interruption, to the flop."""
    assert main(["run", "tiny", *sets(), "--json", "--out", "straight"]) == 0
    straight = strict(capsys.readouterr().out)["flops"]
    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, stop_at)
        assert main(["run", "tiny", *sets(), "--out", "mine"]) == cli.INTERRUPTED
    capsys.readouterr()
    assert main(["run", "--resume", "--json", "--out", "mine"]) == 0
    assert strict(capsys.readouterr().out)["flops"] == straight


def test_interrupted_twice_and_resumed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "tiny", *sets(), "--out", "straight"]) == 0
    for stop_at, arguments in ((4, ["tiny", *sets()]), (16, ["--resume"])):
        with monkeypatch.context() as patch:
            asks_to_stop_at(patch, stop_at)
            assert main(["run", *arguments, "--out", "mine"]) == cli.INTERRUPTED
    assert main(["run", "--resume", "--out", "mine"]) == 0
    assert final("mine") == final("straight")
    same_rows(read_telemetry("mine", kept_only=True), read_telemetry("straight"))
    assert [record["step"] for record in read_lines(tmp_path / "mine" / "lines.jsonl")] == [4, 16]
    assert [event["step"] for event in read_events(tmp_path / "mine")] == [4, 16]


def test_resuming_a_run_that_was_stopped_in_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig.load("tiny", SMALL)
    folder = RunFolder.create(tmp_path / "mine", config)
    asked = iter([False, False, True])
    summary = drive(TrainingRun.from_config(config), folder, stop=lambda: next(asked))
    assert (summary["ended"], summary["step"]) == ("interrupted", 12)
    assert main(["run", "--resume", "--out", "mine"]) == 0
    straight = TrainingRun.from_config(config)
    straight.advance(24)
    assert final("mine") == straight.fingerprint()


@pytest.mark.parametrize("by_hand", [[], ["--by-hand"]], ids=["left alone", "by hand"])
def test_what_an_interrupted_run_says_how_to_go_on_gives_the_same_run(
    by_hand: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever was overridden, the hint alone goes on with it."""
    arguments = ["run", "tiny", *sets(), "--set", "optimizer.lr=1e-3", *by_hand]
    assert main([*arguments, "--out", "straight"]) == 0
    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, 12)
        assert main([*arguments, "--out", "mine"]) == cli.INTERRUPTED
    hint = capsys.readouterr().out.partition("interrupted; go on with: trainenv ")[2].strip()
    assert shlex.split(hint) == ["run", "--resume", "--out", "mine", *by_hand]
    assert main(shlex.split(hint)) == 0
    assert final("mine") == final("straight")
    assert "go on with" not in capsys.readouterr().out


@pytest.mark.parametrize("spoilt", ["optimizer: {lr: -1}", "seed: 1\nsteps: 24", "", None])
def test_a_resume_that_is_refused_writes_nothing(
    spoilt: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, 12)
        assert main(["run", "tiny", *sets(), "--out", "mine"]) == cli.INTERRUPTED
    capsys.readouterr()
    config = tmp_path / "mine" / "config.yaml"
    whole = config.read_text(encoding="utf-8")
    if spoilt is None:
        config.unlink()
    else:
        config.write_text(spoilt, encoding="utf-8")
    assert_one_sentence(["run", "--resume", "--out", "mine"], ("config.yaml",), tmp_path, capsys)
    config.write_text(whole.replace("seed: 0", "seed: 1", 1), encoding="utf-8")
    assert_one_sentence(["run", "--resume", "--out", "mine"], ("seed",), tmp_path, capsys)
    config.write_text(whole, encoding="utf-8")
    assert main(["run", "--resume", "--out", "mine"]) == 0
    assert read_lines(tmp_path / "mine" / "lines.jsonl") == [{"line": 1, "step": 12, "rewinds": 0}]


def test_the_summary_of_a_resumed_run_counts_the_alarms_of_both_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        UncertaintyIndex, "update", lambda index, t: Reading(index=9.0, threshold=3.0, fired=t.step in (3, 11, 18))
    )
    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, 12)
        assert main(["run", "tiny", *sets(), "--json", "--out", "mine"]) == cli.INTERRUPTED
    assert strict(capsys.readouterr().out)["fired"] == 2
    assert main(["run", "--resume", "--json", "--out", "mine"]) == 0
    assert strict(capsys.readouterr().out)["fired"] == 3


def test_asked_to_stop_when_there_is_nothing_left_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asks_to_stop_at(monkeypatch, 24)
    assert main(["run", "tiny", *sets(), "--json", "--out", "mine"]) == 0
    assert strict(capsys.readouterr().out)["ended"] == "budget spent"
    assert files(tmp_path / "mine") == RUN_FILES


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_handed_back(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(number)
    with interruptible() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_sigterm_to_a_process(tmp_path: Path) -> None:
    arguments = ["run", "tiny", *sets(steps=1500, monitor__probe_every=0, validation__every=0), "--json", "--out", "mine"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainenv.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stderr is not None
        assert "step 150 of 1500" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == cli.INTERRUPTED
    assert "Traceback" not in err
    summary = strict(out)
    assert summary["ended"] == "interrupted"
    folder, snapshot = RunFolder.resume(tmp_path / "mine")
    assert folder.line == 0
    assert snapshot.step == summary["step"] < 1500
    assert not (tmp_path / "mine" / "summary.json").exists()
    run = TrainingRun.from_config("mine/config.yaml")
    run.restore(snapshot)
    assert run.step == summary["step"]
    assert len(read_telemetry(tmp_path / "mine", kept_only=True)) == run.step
