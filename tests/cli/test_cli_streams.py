"""Terminals and streams of every kind: each command ends in a sentence and a sensible exit code, never in a traceback."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.command_line import sets
from tests.support.made_folders import make_comparison, make_run
from trainenv import cli
from trainenv.cli import main

ROOT = Path(__file__).resolve().parents[2]
TRACES = ("Traceback", "Exception ignored", "Error in sys.excepthook")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run with names beyond ASCII, and a comparison."""
    root = tmp_path_factory.mktemp("streams")
    make_run(root / "é–run", steps=240)
    make_comparison(root / "compared", seeds=2)
    return root


def commands(made: Path) -> dict[str, list[str]]:
    """Quick forms of the commands that print, or that a user may get wrong."""
    run = str(made / "é–run")
    return {
        "help": ["--help"],
        "version": ["--version"],
        "no command": [],
        "run": ["run", "tiny", *sets(steps=2), "--out", "trained"],
        "run mistake": ["run", "tinny"],
        "fork mistake": ["fork", f"{run}@7"],
        "runs": ["runs", str(made)],
        "report": ["report", run, "--out", "report.html"],
        "report json": ["report", run, "--out", "report.html", "--json"],
        "report comparison": ["report", str(made / "compared"), "--out", "report.html"],
        "top": ["top", "--once", run],
        "replay mistake": ["replay", run, "7"],
        "verify mistake": ["checkpoint", "verify", run],
        "show mistake": ["checkpoint", "show", run],
        "gc mistake": ["checkpoint", "gc", run, "--dry-run"],
        "export mistake": ["checkpoint", "export", run, "weights.pt"],
        "decode mistake": ["decode", "trace", "nothing-such"],
        "wmtp mistake": ["wmtp", "compare", "--preset", "nothing-such"],
        "compare mistake": ["compare", "nothing-such"],
        "watch mistake": ["watch", "nowhere"],
        "demo mistake": ["demo", "--steps", "0"],
        "config": ["config"],
        "config key": ["config", "optimizer.lr"],
        "schema": ["config", "schema"],
    }


COMMANDS = tuple(commands(Path()))
FEW = ("version", "run mistake", "report json", "top", "config key", "schema")


def stream(number: int, encoding: str = "utf-8") -> io.TextIOWrapper:
    """Open a file descriptor as Python opens stdout."""
    return io.TextIOWrapper(os.fdopen(number, "wb", closefd=True), encoding, errors="strict")


def ended(arguments: Sequence[str]) -> int:
    """Return the exit code of a command, as `sys.exit(main(…))` gives it to the shell."""
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_ascii_terminal_of_20_columns_gets_every_command(
    name: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, "ascii", errors="strict"))
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.delenv("HOME")
    code = ended(commands(made)[name])
    sys.stdout.flush()
    assert code == (2 if "mistake" in name or name == "no command" else 0)
    assert not any(word in shown.getvalue().decode("ascii") for word in TRACES)
    if code:
        assert capsys.readouterr().err or shown.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", FEW)
def test_an_output_that_takes_nothing_costs_a_sentence(
    name: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = stream(os.open("/dev/full", os.O_WRONLY))
    monkeypatch.setattr("sys.stdout", opened)
    assert ended(commands(made)[name]) == cli.USER_ERROR
    opened.close()  # as the interpreter does: what is left must not fail again
    err = capsys.readouterr().err
    assert not any(word in err for word in TRACES)
    assert err.startswith("trainenv: ")
    assert err.count("\n") == 1
    if "mistake" not in name:
        assert "can't be written: No space left on device" in err


@pytest.mark.parametrize("name", FEW)
def test_a_reader_that_has_gone_ends_the_command(
    name: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    opened = stream(writing)
    monkeypatch.setattr("sys.stdout", opened)
    assert ended(commands(made)[name]) in (cli.CLOSED_PIPE, cli.USER_ERROR)
    opened.close()
    err = capsys.readouterr().err
    assert not any(word in err for word in TRACES)
    assert err


@pytest.mark.parametrize("name", ["version", "run mistake", "report", "no command"])
def test_errors_that_nobody_can_read_end_no_command(
    name: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    opened = stream(writing)
    monkeypatch.setattr("sys.stderr", opened)
    assert ended(commands(made)[name]) == (2 if name in ("run mistake", "no command") else 0)
    opened.close()


def shell(
    line: str, *, folder: Path, environment: Mapping[str, str | None] | None = None
) -> tuple[int, str, str]:
    """Run a line of bash, in which `trainenv` is the program; return code, stdout and stderr."""
    variables = dict(os.environ) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    variables.pop("PYTHONUNBUFFERED", None)
    for name, value in (environment or {}).items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = value
    program = f'trainenv() {{ "{sys.executable}" -m trainenv "$@"; }}\nset -o pipefail\n'
    done = subprocess.run(
        ["bash", "-c", program + line], cwd=folder, env=variables, capture_output=True, check=False
    )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode()


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("trainenv runs made <&- >&- 2>&-", 0, ""),
        ("trainenv config | head -1", 141, "the output was closed before its end"),
    ],
)
def test_a_process_ends_without_a_trace(
    line: str, code: int, words: str, made: Path, tmp_path: Path
) -> None:
    (tmp_path / "made").symlink_to(made)
    found, _, err = shell(line, folder=tmp_path)
    assert found == code, err
    assert words in err
    assert not any(word in err for word in TRACES)


def test_a_user_without_a_home_folder_reports_a_run(made: Path, tmp_path: Path) -> None:
    """In the locale C, in which the name of the folder is no text."""
    (tmp_path / "made").symlink_to(made)
    variables: dict[str, str | None] = {
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    variables |= {"PYTHONIOENCODING": "ascii", "COLUMNS": "20"}
    line = "trainenv report made/?*run --out r.html"
    code, out, err = shell(line, folder=tmp_path, environment=variables)
    assert code == 0, err
    assert "tiny · é–run</h1>" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "report: r.html" in out
    assert out.isascii()


def test_without_colours_nothing_is_coloured(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal; the first form shows that colours would be there."""
    for variables, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        monkeypatch.delenv("NO_COLOR", raising=False)
        for key, value in ({"TERM": "xterm-256color"} | variables).items():
            monkeypatch.setenv(key, value)
        ours, theirs = pty.openpty()
        terminal = stream(theirs)
        monkeypatch.setattr("sys.stdout", terminal)
        assert main(["top", "--once", str(made / "é–run")]) == 0
        terminal.flush()
        shown = os.read(ours, 1 << 16).decode(errors="replace")
        terminal.close()
        os.close(ours)
        assert bool(re.search(r"\x1b\[(\d+;)*(3|9)\d", shown)) == coloured


@pytest.mark.parametrize(
    ("command", "broken"),
    [
        (["report"], "config.yaml"),
        (["report"], "validation.jsonl"),
        (["top", "--once"], "events.jsonl"),
        (["runs"], "config.yaml"),
        (["checkpoint", "show"], "checkpoints"),
        (["run", "--resume", "--out"], "config.yaml"),
        (["fork"], "config.yaml"),
    ],
)
def test_a_folder_in_place_of_a_file_costs_a_sentence_at_most(
    command: list[str], broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run", steps=120)
    path = folder / broken
    if path.is_dir():
        path.rename(folder / "away")
        path.write_text("no folder", encoding="utf-8")
    else:
        path.unlink(missing_ok=True)
        path.mkdir()
    code = ended([*command, str(folder)])
    err = capsys.readouterr().err
    assert code in (0, cli.USER_ERROR)
    assert err.count("\n") == (1 if code else 0), err


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("command", ["report run", "runs ."])
def test_what_may_not_be_read_costs_a_sentence(command: str, tmp_path: Path) -> None:
    """Root may read all, so a process without its rights asks."""
    make_run(tmp_path / "run", steps=120)
    for path in (tmp_path / "run").rglob("*"):
        path.chmod(0o000)
    (tmp_path / "run").chmod(0o755)
    tmp_path.chmod(0o755)
    drop = "setpriv --bounding-set=-all --inh-caps=-all --no-new-privs"
    line = command.replace("report run", "report run --out /dev/null")
    found, out, err = shell(
        f'{drop} --reuid 0 bash -c "\\"{sys.executable}\\" -m trainenv {line}"', folder=tmp_path
    )
    assert found in (0, cli.USER_ERROR), err
    assert not any(word in out + err for word in TRACES), err
    if found:
        assert err.count("\n") == 1
