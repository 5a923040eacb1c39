"""An interrupted run goes on to the end that it would have had."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.support.command_line import (
    RUN_FILES,
    SMALL,
    asks_to_stop_at,
    assert_one_sentence,
    files,
    final,
    newest,
    sets,
)
from tests.support.strict_json import strict
from trainenv import cli
from trainenv.cli import main
from trainenv.cli.options import interruptible
from trainenv.config.schema import RunConfig
from trainenv.loop import train
from trainenv.monitor.uncertainty import UncertaintyIndex
from trainenv.records.run_folder import RunFolder, read_events, read_validation
from trainenv.records.telemetry_log import read_telemetry
from trainenv.run import TrainingRun
from trainenv.tools.json_lines import read_lines
from trainenv.types import Reading


def same_rows(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(
        found.drop(columns="line"), expected.drop(columns="line"), check_exact=True
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted. Tests only read it."""
    folder = tmp_path_factory.mktemp("whole") / "straight"
    assert main(["run", "tiny", *sets(), "--json", "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("stop_at", [4, 8, 12, 16])
def test_a_resumed_run_ends_like_one_that_was_never_interrupted(
    stop_at: int,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    straight = strict((whole / "summary.json").read_text(encoding="utf-8"))
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
    assert resumed.pop("report") == "mine/report.html"
    assert strict((tmp_path / "mine" / "summary.json").read_text(encoding="utf-8")) == resumed
    changing = {"folder": "", "seconds": 0, "ms_per_step": 0}
    assert resumed | changing == straight | changing
    assert (
        resumed["flops"] == straight["flops"]
    )  # steps, probes and validations of both parts, to the flop
    assert final("mine") == final(whole)
    assert [(v["step"], v["loss"]) for v in read_validation(tmp_path / "mine")] == [
        (v["step"], v["loss"]) for v in read_validation(whole)
    ]
    same_rows(read_telemetry("mine", kept_only=True), read_telemetry(whole))
    assert list(read_telemetry("mine")["line"]) == [0] * stop_at + [1] * (24 - stop_at)
    assert read_lines(tmp_path / "mine" / "lines.jsonl") == [
        {"line": 1, "step": stop_at, "rewinds": 0}
    ]


def test_interrupted_twice_and_resumed_twice(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stop_at, arguments in ((4, ["tiny", *sets()]), (16, ["--resume"])):
        with monkeypatch.context() as patch:
            asks_to_stop_at(patch, stop_at)
            assert main(["run", *arguments, "--out", "mine"]) == cli.INTERRUPTED
    assert main(["run", "--resume", "--out", "mine"]) == 0
    assert final("mine") == final(whole)
    same_rows(read_telemetry("mine", kept_only=True), read_telemetry(whole))
    assert [record["step"] for record in read_lines(tmp_path / "mine" / "lines.jsonl")] == [4, 16]
    assert [event["step"] for event in read_events(tmp_path / "mine")] == [4, 16]


def test_resuming_a_run_that_was_stopped_in_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig.load("tiny", SMALL)
    folder = RunFolder.create(tmp_path / "mine", config)
    asked = iter([False, False, True])
    summary = train(TrainingRun.from_config(config), folder, stop=lambda: next(asked))
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
    hint = capsys.readouterr().out.partition("interrupted; resume with: trainenv ")[2].strip()
    assert hint == "run --resume --out mine"
    assert main(shlex.split(hint)) == 0
    assert final("mine") == final("straight")
    assert "resume with" not in capsys.readouterr().out


@pytest.mark.parametrize("spoilt", ["optimizer: {lr: -1}", "seed: 1\nsteps: 24", "", None])
def test_a_resume_that_is_refused_writes_nothing(
    spoilt: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
        UncertaintyIndex,
        "update",
        lambda index, t: Reading(index=9.0, threshold=3.0, fired=t.step in (3, 11, 18)),
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
    arguments = [
        "run",
        "tiny",
        *sets(steps=1500, monitor__probe_every=0, validation__every=0),
        "--json",
        "--out",
        "mine",
    ]
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
