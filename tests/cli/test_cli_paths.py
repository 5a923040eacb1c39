"""Folders and names that a shell, YAML or a library might read as something else: they work, or cost one sentence."""

from __future__ import annotations

import errno
import io
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import asks_to_stop_at, assert_one_sentence, files, sets
from tests.support.strict_json import strict
from trainenv import cli
from trainenv.cli import main
from trainenv.cli.options import overrides_of
from trainenv.config.schema import RunConfig
from trainenv.records.run_folder import RunFolder
from trainenv.tools.paths import typed

ODD = [
    "lr:3e-4",
    "run-12:30",
    "file:x",
    "s3:x",
    "a::b",
    "-x",
    "a%20b#c?d*[e]{f}",
    "a\nb",
    "ünï",
    "a 'b'",
    "$a_$b",
]

NOTHING_IS_READ = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="--out=-- names a folder from Python 3.13 on"
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("name", ODD)
def test_a_folder_of_any_name_is_recorded_in_resumed_and_reported(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, 12)
        assert main(["run", "tiny", *sets(), f"--out={name}"]) == cli.INTERRUPTED
    hint = capsys.readouterr().out.partition("resume with: trainenv ")[2].strip()
    assert main(shlex.split(hint)) == 0
    assert "telemetry/part-00001.parquet" in files(Path(name))
    assert main(["report", f"./{name}", "--tensorboard", f"./tb-{name}"]) == 0
    assert main(["checkpoint", "verify", f"./{name}"]) == 0


def test_a_home_folder_that_the_shell_left_to_us(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "short.yaml").write_text("extends: tiny\n", encoding="utf-8")
    assert main(["run", "~/short.yaml", *sets(steps=2), "--json", "--out=~/mine"]) == 0
    assert strict(capsys.readouterr().out)["folder"] == str(home / "mine")
    assert not Path("~").exists()


def test_no_home_folder_for_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert_one_sentence(
        ["run", "tiny", *sets(), "--out=~/mine"], ("~/mine", "HOME is not set"), tmp_path, capsys
    )
    wrong = ["run", "tiny", *sets(), "--set", "corpus.path=~/a.txt"]
    assert_one_sentence(wrong, ("corpus.path", "HOME is not set"), tmp_path, capsys)


@pytest.mark.parametrize("out", ["x" * 300, "/dev/null", "fifo", "broken", "fifo/x"])
def test_where_nothing_can_be_recorded(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("fifo")
    Path("broken").symlink_to("nowhere")
    assert main(["run", "tiny", *sets(), "--out", out]) == cli.USER_ERROR
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "must be a folder to record in" in err


@pytest.mark.parametrize(
    "command",
    [
        ["report"],
        ["checkpoint", "verify"],
        ["run", "--resume", "--out"],
        ["run"],
        ["run", "tiny", "--weights"],
    ],
)
def test_a_path_that_is_too_long_costs_a_sentence(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_sentence([*command, "x" * 300], ("x" * 300,), tmp_path, capsys)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run", "tiny", *sets(), "--out=a\0b"], "zero byte"),
        (["run", "tiny", *sets(), "--set", "corpus.path=a\0b"], "zero byte"),
        (["run", "a\0b.yaml"], "zero byte"),
        (["report", "a\0b"], "zero byte"),
        pytest.param(["run", "tiny", *sets(), "--out=--"], "./--", marks=NOTHING_IS_READ),
        (["compare", "quick", "--methods", ""], "found none in"),
        (["compare", "quick", "--scenarios", " , "], "found none in"),
    ],
)
def test_what_is_no_name_costs_a_sentence(
    arguments: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_sentence(arguments, (word,), tmp_path, capsys)


def test_an_empty_path_is_not_the_current_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "tiny", *sets(), "--out="])
    assert ended.value.code == 2
    assert "expected a path, found an empty one" in capsys.readouterr().err
    assert_one_sentence(
        ["run", "tiny", *sets(), "--set", "corpus.path=''"],
        ("corpus.path", "empty"),
        tmp_path,
        capsys,
    )


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("name=007", "007"),
        ("name=on", "on"),
        ("name=1e-3", "1e-3"),
        ("name=0x10", "0x10"),
        ("name=2024-01-01", "2024-01-01"),
        ("name=a: b # c", "a: b # c"),
        ("name=[x]", "[x]"),
        ("name='quoted'", "quoted"),
        ("corpus.path=*.txt", "*.txt"),
        ("corpus.path=null", None),
        ("clip.policy=off", "off"),
        ("steps=1e3", 1000.0),
        ("model.heads=0x10", 16),
        ("optimizer={lr: 3e-4}", {"lr": 3e-4}),
    ],
)
def test_text_is_taken_as_it_is_typed_and_all_else_as_yaml(pair: str, value: Any) -> None:
    assert overrides_of([pair]) == {pair.partition("=")[0]: value}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: on", ("name", "True", "quote it")),
        ("name: 007", ("name", "7", "quote it")),
        ("name: 2024-13-45", ("not valid YAML", "month")),
        ("name: ..", ("name of a folder", "'..'")),
        ("corpus: {name: text, path: 7}", ("corpus.path", "7", "quote it")),
        ("name: " + "[" * 4000, ("not valid YAML",)),
        ("optimizer: &a {betas: *a}", ("not valid YAML", "holds itself")),
        ("clip: &a {options: {zclip: [1, *a]}}", ("not valid YAML", "holds itself")),
    ],
)
def test_values_that_yaml_reads_otherwise_cost_a_sentence(
    text: str, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(f"extends: tiny\n{text}\n", encoding="utf-8")
    assert_one_sentence(["run", "a.yaml"], words, tmp_path, capsys)


def test_paths_are_recorded_whole(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "corpus.name": "text",
        "corpus.path": "~/a.txt",
        "corpus.cache": "cache",
        "corpus.tokenizer_path": "sub/../t.json",
    }
    config = RunConfig.load("tiny", given)
    assert config.corpus.path == home / "a.txt"
    assert config.corpus.cache == tmp_path / "cache"
    assert str(config.corpus.tokenizer_path) == f"{tmp_path}/sub/../t.json"
    (home / "a.txt").write_text("the quick brown fox\n" * 2000, encoding="utf-8")
    assert (
        main(
            [
                "run",
                "tiny",
                *sets(steps=2, corpus__name="text", corpus__path="~/a.txt"),
                "--out",
                "mine",
            ]
        )
        == 0
    )
    monkeypatch.chdir(home)
    assert RunConfig.load("../mine/config.yaml").corpus.path == home / "a.txt"


def test_a_path_on_a_command_line_is_one_argument() -> None:
    for name in ODD:
        assert shlex.split(typed(Path(name))) in ([name], [f"./{name}"])
    assert typed(Path("-x")) == "./-x"


def test_a_letter_that_the_terminal_lacks_does_not_stop_a_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(["run", "tiny", *sets(steps=2, name="é"), "--out", "é", "--json"]) == 0
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert main(["report", "é"]) == 0
    sys.stdout.flush()
    assert rb"report: \xe9/report.html" in shown.getvalue()


def test_a_disk_that_is_full_costs_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(folder: RunFolder, step: int, loss: float) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunFolder, "validation", full)
    assert main(["run", "tiny", *sets(steps=2), "--out", "mine", "--json"]) == cli.USER_ERROR
    assert (
        capsys.readouterr().err
        == "trainenv: a file can't be written: No space left on device; make room, or give another folder\n"
    )
