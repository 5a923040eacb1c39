"""`trainenv top`: it fits the terminal, whatever that can show."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.support.made_folders import make_run
from trainenv.cli import main
from trainenv.watch import RunReader
from trainenv.watch.terminal import frame


def shown(folder: Path, width: int, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    reader = RunReader(folder)
    reader.poll()
    console = Console(file=file, width=width)
    console.print(frame(reader, console))
    file.flush()
    raw: bytes = file.buffer.getvalue()  # type: ignore[attr-defined]
    return raw.decode(encoding).splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_frame_fits(tmp_path: Path, width: int) -> None:
    lines = shown(make_run(tmp_path / "run", name="a name that is longer " * 9), width)
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    assert "finished" in text
    assert "rolled back to step 500" in " ".join(text.split())


def test_an_ascii_terminal_gets_ascii(tmp_path: Path) -> None:
    text = "\n".join(shown(make_run(tmp_path / "run"), 80, "ascii"))
    assert "LR x0.8, ZClip, measured -1.06 %" in text
    assert "?" not in text


def test_control_characters_of_a_name_are_not_sent(tmp_path: Path) -> None:
    text = "\n".join(shown(make_run(tmp_path / "run", name="a\x1b[2Jb\x07c\x9bd"), 80))
    assert not {"\x1b", "\x07", "\x9b"} & set(text)


def test_the_command_prints_one_frame_or_the_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run")
    assert main(["top", str(folder)]) == 0  # stdout is no terminal
    assert "The budget is spent" in capsys.readouterr().out
    assert main(["top", str(folder), "--json"]) == 0
    state = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert state["facts"]["step"] == 1200
    assert [one["number"] for one in state["story"]["decisions"]] == [5, 4, 3, 2, 1]


def test_a_mistake_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", str(tmp_path / "none")]) == 2
    assert main(["watch", str(tmp_path / "none")]) == 2
    assert main(["watch", str(make_run(tmp_path / "run")), "--port", "70000"]) == 2
    assert main(["watch", str(tmp_path / "run"), "--host", "203.0.113.1"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert all(error.startswith("trainenv: ") for error in errors)
