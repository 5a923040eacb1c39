"""Checkpoints from the command line: looking after them, going on from them, and a run that is killed at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.lengths import either
from trainenv import cli
from trainenv.checkpoints.store import CheckpointStore
from trainenv.cli import main
from trainenv.records.telemetry_log import read_telemetry
from trainenv.run import TrainingRun
from trainenv.tools.json_lines import read_lines
from trainenv.training.snapshots import fingerprint

SMALL: dict[str, Any] = {
    "device": "cpu",
    "steps": 40,
    "batch_size": 2,
    "model.context": 16,
    "validation.sequences": 4,
    "validation.every": 0,
    "monitor.block": 4,
    "schedule.warmup": 4,
    "checkpoints.every": 8,
}
STEPS = either(short=300, long=400)  # of the run that is killed
KILLED_AT = either(short=(16, 120), long=(16, 120, 240))
NOT_THE_FUTURE = ("ledger", "numerics", "statistics")
AS_A_USER_SEES_THEM = pytest.mark.filterwarnings("default")  # warnings, else errors in tests


def sets(**more: Any) -> list[str]:
    values = SMALL | {key.replace("__", "."): value for key, value in more.items()}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def test_verify_checks_what_decisions_are_replayed_from(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    decision = run / "branches" / "8"
    shutil.copytree(made / "checkpoints", decision)
    assert main(["checkpoint", "verify", str(run)]) == 0
    assert "branches/8/cp_" in capsys.readouterr().out
    broken = next(decision.glob("cp_*24.ptz"))
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 255
    broken.write_bytes(content)
    assert main(["checkpoint", "verify", "--json", str(run)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [file["file"] for file in found["files"] if not file["ok"]] == [
        f"branches/8/{broken.name}"
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps that was stopped at step 24: checkpoints of steps 0, 8, 16 and 24."""
    from trainenv.config.schema import RunConfig
    from trainenv.loop import train
    from trainenv.records.run_folder import RunFolder

    config = RunConfig.load("tiny", SMALL)
    run = TrainingRun.from_config(config)
    folder = RunFolder.create(tmp_path_factory.mktemp("made") / "run", config)
    train(run, folder, stop=lambda: run.step >= 24)
    return folder.path


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as `mine` in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "mine")
    return tmp_path / "mine"


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("cp_*"))


def said(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 0) -> str:
    assert main(["checkpoint", *arguments]) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out


def told(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 0) -> Any:
    out = said(capsys, [*arguments, "--json"], code)
    assert out.count("\n") == 1
    return json.loads(out)


# ── verify, show, gc, export ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("folder", ["mine", "mine/checkpoints"])
def test_verify_says_a_line_a_file(
    folder: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = ["manifest.json", "cp_0.ptz", "cp_8.ptz", "cp_16.ptz", "cp_24.ptz"]
    assert said(capsys, ["verify", folder]).splitlines() == [
        *(f"ok     {name}" for name in expected),
        "all 5 files are whole",
    ]
    result = told(capsys, ["verify", folder])
    assert (result["ok"], [finding["file"] for finding in result["files"]]) == (True, expected)


def test_verify_names_what_is_broken(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tear(run / "checkpoints" / "cp_16.ptz")
    lines = said(capsys, ["verify", "mine"], code=1).splitlines()
    assert lines[3].startswith("BROKEN cp_16.ptz: ")
    assert lines[-1] == "1 of 5 files are broken"
    result = told(capsys, ["verify", "mine"], code=1)
    assert [finding["file"] for finding in result["files"] if not finding["ok"]] == ["cp_16.ptz"]
    assert result["files"][3]["reason"]


def test_verify_reads_every_byte(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "cp_8.ptz"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    assert "BROKEN cp_8.ptz" in said(capsys, ["verify", "mine"], code=1)


def test_names_are_printed_as_they_are(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that look like markup."""
    shutil.move("mine", "[red]mine")
    tear(Path("[red]mine/checkpoints/cp_16.ptz"))
    assert "[red]mine/checkpoints/cp_16.ptz" in said(capsys, ["verify", "[red]mine"], code=1)


def test_show_lists_them_with_the_numbers_that_bits_depend_on(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CheckpointStore(run / "checkpoints").hold(8, "a branch")
    lines = said(capsys, ["show", "mine"]).splitlines()
    assert lines[0].split() == ["step", "sequence", "tier", "size", "file", "held", "by"]
    assert lines[2].split()[:3] == ["8", "2", "exact"]
    assert lines[2].endswith("cp_8.ptz          a branch")
    assert lines[5].startswith("4 checkpoints, ")
    assert lines[6].startswith("numeric settings at step 24: torch ")
    assert f"torch {torch.__version__}" in lines[6]
    result = told(capsys, ["show", "mine"])
    assert [(c["step"], c["tier"], c["holders"]) for c in result["checkpoints"]] == [
        (0, "exact", []),
        (8, "exact", ["a branch"]),
        (16, "exact", []),
        (24, "exact", []),
    ]
    assert result["numerics"]["precision"] == "fp32"


def test_show_goes_back_to_a_header_that_can_be_read(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tear(run / "checkpoints" / "cp_24.ptz")
    assert "numeric settings at step 16" in said(capsys, ["show", "mine"])


def test_gc_says_what_would_go_and_then_does_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, ["gc", "mine"]) == "nothing to delete\n"
    (run / "checkpoints" / ".cp_99.ptz.tmp").write_bytes(b"left over")
    sizes = {name: (run / "checkpoints" / name).stat().st_size for name in names(run)}
    lines = said(capsys, ["gc", "mine", "--keep-last", "2", "--dry-run"]).splitlines()
    assert lines[0] == "would delete .cp_99.ptz.tmp (9 B): left by a save that never finished"
    assert [line.split(" (")[0] for line in lines[1:3]] == [
        "would delete cp_0.ptz",
        "would delete cp_8.ptz",
    ]
    assert lines[1].endswith("KiB): older than the newest that are kept")
    assert lines[3].startswith("3 files, ")
    assert len(names(run)) == 4
    assert (run / "checkpoints" / ".cp_99.ptz.tmp").exists()
    dry = told(capsys, ["gc", "mine", "--keep-last", "2", "--dry-run"])
    assert dry["bytes"] == 9 + sizes["cp_0.ptz"] + sizes["cp_8.ptz"]
    assert told(capsys, ["gc", "mine", "--keep-last", "2"]) == dry | {"dry_run": False}
    assert names(run) == ["cp_16.ptz", "cp_24.ptz"]
    assert not (run / "checkpoints" / ".cp_99.ptz.tmp").exists()
    assert said(capsys, ["verify", "mine"])


def test_gc_keeps_what_the_run_is_configured_to_keep(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run / "config.yaml"
    config.write_text(
        config.read_text(encoding="utf-8").replace("keep_last: 8", "keep_last: 3"), encoding="utf-8"
    )
    CheckpointStore(run / "checkpoints").hold(0, "me")
    assert told(capsys, ["gc", "mine"])["deleted"] == []
    CheckpointStore(run / "checkpoints").release("me")
    assert [
        deletion["file"] for deletion in told(capsys, ["gc", "mine/checkpoints"])["deleted"]
    ] == ["cp_0.ptz"]


@pytest.mark.parametrize(
    "spoilt",
    ["checkpoints: 3", "checkpoints: {keep_lst: 3}", "- a list", "checkpoints: {keep_last: 0}"],
)
def test_a_spoilt_configuration_matters_to_gc_alone(
    spoilt: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.yaml").write_text(spoilt, encoding="utf-8")
    assert main(["checkpoint", "gc", "mine"]) == cli.USER_ERROR
    assert "config.yaml" in capsys.readouterr().err
    assert said(capsys, ["verify", "mine"])
    assert len(names(run)) == 4


def test_gc_of_a_folder_without_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move(run / "checkpoints", "loose")
    assert said(capsys, ["gc", "loose"]) == "nothing to delete\n"
    assert len(told(capsys, ["gc", "loose", "--keep-last", "1"])["deleted"]) == 3


def test_gc_stays_away_while_a_run_records(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with CheckpointStore(run / "checkpoints"):
        assert main(["checkpoint", "gc", "mine", "--keep-last", "1"]) == cli.USER_ERROR
        assert "is in use" in capsys.readouterr().err
        assert said(capsys, ["verify", "mine"])
        assert said(capsys, ["gc", "mine", "--keep-last", "1", "--dry-run"])
    assert len(names(run)) == 4


def test_export_writes_what_plain_torch_loads(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = TrainingRun.from_config("mine/config.yaml")
    trained.advance(24)
    assert said(capsys, ["export", "mine", "w.safetensors"]).startswith(
        "wrote the weights of step 24 to w.safetensors ("
    )
    weights = load_file("w.safetensors")
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in trained.model.state_dict().items()
    )
    result = told(capsys, ["export", "mine", "deep/w.pt", "--step", "8"])
    assert result == {
        "command": "checkpoint export",
        "step": 8,
        "tier": "exact",
        "out": "deep/w.pt",
    }
    assert torch.load("deep/w.pt", weights_only=True)["step"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "gone"], ("checkpoints in gone", "found none")),
        (["show", "empty"], ("checkpoints in empty", "found none")),
        (["gc", "mine/config.yaml"], ("config.yaml",)),
        (["gc", "mine", "--keep-last", "0"], ("keep_last", "found 0")),
        (["export", "mine", "w.onnx"], ("w.onnx", ".safetensors")),
        (["export", "mine", "mine/config.pt", "--step", "9"], ("a checkpoint of step 9",)),
        (["export", "mine", "taken.pt"], ("taken.pt already exists",)),
    ],
)
def test_mistakes(
    arguments: list[str], words: tuple[str, ...], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("taken.pt").touch()
    for more in ([], ["--json"]):
        assert main(["checkpoint", *arguments, *more]) == cli.USER_ERROR
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert all(word in err for word in words), err
    assert len(names(run)) == 4
    assert Path("taken.pt").read_bytes() == b""


# ── going on ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_resuming_says_from_where_and_how_closely(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--resume", "--out", "mine"]) == 0
    assert capsys.readouterr().out.startswith("resuming from step 24, bit-exact\n")


def test_resuming_from_rounded_moments_says_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CheckpointStore(run / "checkpoints")
    store.save(store.load(), moments="8bit", wait=True)
    store.close()
    assert main(["run", "--resume", "--out", "mine"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "resuming from step 24, nearly exact (8bit): the optimizer's moments were rounded"
    )


def test_resuming_under_other_settings_says_so(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "9.9")
    assert main(["run", "--resume", "--out", "mine"]) == 0
    assert "resuming from step 24, not bit-exact: python was 3." in (out := capsys.readouterr().out)
    assert ", is 9.9\n" in out


@AS_A_USER_SEES_THEM
def test_a_torn_checkpoint_is_passed_over_in_a_sentence(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tear(run / "checkpoints" / "cp_24.ptz")
    assert main(["run", "--resume", "--out", "mine"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("resuming from step 16, ")
    (sentence,) = [line for line in err.splitlines() if "cp_24.ptz" in line]
    assert sentence.startswith("trainenv: ")
    assert "cp_16.ptz" in sentence
    assert "UserWarning" not in err
    straight = TrainingRun.from_config("mine/config.yaml")
    straight.advance(40)
    assert (
        fingerprint(CheckpointStore("mine/checkpoints").load(), NOT_THE_FUTURE)
        == straight.fingerprint()
    )


@AS_A_USER_SEES_THEM
def test_no_checkpoint_is_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in names(run):
        tear(run / "checkpoints" / name)
    assert main(["run", "--resume", "--out", "mine"]) == cli.USER_ERROR
    out, err = capsys.readouterr()
    assert out == ""
    assert "cp_0.ptz" in err.splitlines()[-1]
    assert not (run / "lines.jsonl").exists()


def test_weights_to_start_from(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, ["export", "mine", "w.safetensors"])
    assert main(["run", "tiny", *sets(steps=8), "--weights", "w.safetensors", "--out", "new"]) == 0
    assert capsys.readouterr().out.startswith("starting from the weights in w.safetensors\n")
    weights, start = load_file("w.safetensors"), CheckpointStore("new/checkpoints").load(0)
    assert all(
        torch.equal(start.tensors[f"model/{name}"], weights[name])
        for name in weights
        if f"model/{name}" in start.tensors
    )
    fresh = TrainingRun.from_config("tiny", SMALL).evaluate()
    assert (
        json.loads((Path("new") / "summary.json").read_text(encoding="utf-8"))[
            "first_validation_loss"
        ]
        < fresh - 0.05
    )


def test_weights_of_another_model_write_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, ["export", "mine", "w.pt"])
    assert (
        main(["run", "tiny", *sets(model__width=32), "--weights", "w.pt", "--out", "new"])
        == cli.USER_ERROR
    )
    assert (
        "transformer.wte.weight should be float32 [256, 32], found float32 [256, 64] (and "
        in capsys.readouterr().err
    )
    assert not Path("new").exists()


# ── killed at any moment ────────────────────────────────────────────────────────────────────────────────────────────


def child(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainenv.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def reached(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a checkpoint of `step` or later is being written."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        written = [
            path.name.strip(".").removeprefix("cp_").split(".")[0]
            for path in folder.glob("checkpoints/*cp_*")
        ]
        if any(int(name.split("-")[0]) >= step for name in written):
            return
        time.sleep(0.002)
    raise AssertionError(f"no checkpoint of step {step} came: {process.communicate()}")


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, resume = (
        ["run", "tiny", *sets(steps=STEPS), "--out", "mine"],
        ["run", "--resume", "--out", "mine"],
    )
    for step in KILLED_AT:
        process = child(arguments)
        try:
            reached(tmp_path / "mine", step, process)
            if step == 120:  # a second one is refused, and the first none the worse for it
                assert main(resume) == cli.USER_ERROR
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "mine" / "summary.json").exists()
        arguments = resume
    assert main(resume) == 0
    straight = TrainingRun.from_config("mine/config.yaml")
    straight.advance(STEPS)
    assert (
        fingerprint(CheckpointStore("mine/checkpoints").load(), NOT_THE_FUTURE)
        == straight.fingerprint()
    )
    assert list(read_telemetry(tmp_path / "mine", kept_only=True)["step"]) == list(
        range(1, STEPS + 1)
    )
    assert len(read_lines(tmp_path / "mine" / "lines.jsonl")) == len(KILLED_AT)
    assert all(finding.ok for finding in CheckpointStore("mine/checkpoints").verify())
