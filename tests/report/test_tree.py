"""The branch tree in the terminal and in notebooks, TensorBoard's files, and the command that writes them all."""

from __future__ import annotations

import argparse
import json
import sys
import types
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any, ClassVar

import pytest
from test_report import Nesting

from tests.support.made_folders import make_comparison, make_run
from trainenv.cli.report import report_command
from trainenv.records.decision_files import read_decisions
from trainenv.report.run.run_record import read_run
from trainenv.report.run.run_report import RunReport
from trainenv.trackers.tensorboard import write_tensorboard
from trainenv.types import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run")


def test_every_decision_and_every_branch_has_its_line(folder: Path) -> None:
    lines = RunReport(folder).tree(width=120).splitlines()
    for made in read_decisions(folder):
        at = next(i for i, line in enumerate(lines) if f"decision {made['number']}:" in line)
        below = lines[at + 1 : at + 1 + len(made["branches"])]
        assert below[0].split()[-1] == "control"
        assert sum("✔" in line for line in below) == (made["accepted"] is not None)
        assert sum("✘" in line for line in below) == sum(
            branch["fate"] == "failed" for branch in made["branches"]
        )
    text = "\n".join(lines)
    assert "rolled back to step 500" in text
    assert "alarm: uncertainty index 4.1" in text
    assert "the budget is spent" in lines[-1]


def test_the_text_is_the_same_in_a_notebook(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook rich displays what it prints, unless it is told not to."""
    text = RunReport(folder).tree()
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert RunReport(folder).tree() == text


def test_what_happened_comes_in_its_order(folder: Path) -> None:
    text = RunReport(folder).tree()
    places = [
        text.index(said)
        for said in (
            "decision 1:",
            "decision 2:",
            "▲ alarm",
            "↶ rolled back",
            "decision 3:",
            "skipped decision:",
        )
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("width", [60, 80, 110])
def test_lines_are_no_wider_than_asked(folder: Path, width: int) -> None:
    assert all(len(line) <= width for line in RunReport(folder).tree(width=width).splitlines())


def test_a_branch_takes_one_line_of_eighty(folder: Path) -> None:
    lines = RunReport(folder).tree(width=80).splitlines()
    branches = sum(len(made["branches"]) for made in read_decisions(folder))
    assert sum(line.startswith(("│   ├── ", "│   └── ")) for line in lines) == branches
    assert not any(line.startswith(("│   │", "│    ")) for line in lines)


def test_a_report_is_a_value(folder: Path) -> None:
    report = RunReport(folder)
    assert report == RunReport(folder)
    with pytest.raises(FrozenInstanceError):
        report.folder = Path()  # type: ignore[misc]
    assert report.summary == json.loads((folder / "summary.json").read_text())


def test_a_run_that_is_going_on_has_a_summary_too(tmp_path: Path) -> None:
    report = RunReport(make_run(tmp_path / "run", ended=None))
    assert report.summary["ended"] == "still running, or killed"
    assert report.summary["step"] == 1200


def test_rich_markup_in_names_is_only_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", name="[red]x[blue]")
    assert "[red]x[blue]" in RunReport(folder).tree()


def test_the_fragment_for_notebooks_is_whole_and_styles_nothing_else(folder: Path) -> None:
    fragment = RunReport(folder)._repr_html_()
    parser = Nesting()
    parser.feed(fragment)
    assert not parser.open
    assert "script" not in {tag for tag, _ in parser.tags}
    style = fragment[fragment.index("<style>") + 7 : fragment.index("</style>")]
    for line in style.splitlines():
        selector = line.partition("{")[0].strip()
        if selector and "{" in line and not selector.startswith("@"):
            assert all(part.strip().startswith(".trainenv") for part in selector.split(",")), line


def test_the_html_is_written_where_it_is_asked(folder: Path, tmp_path: Path) -> None:
    path = RunReport(folder).html(tmp_path / "deep" / "x.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


class Writer:
    """Stands in for TensorBoard's."""

    made: ClassVar[list[Writer]] = []

    def __init__(self, folder: str) -> None:
        self.folder, self.closed = folder, False
        self.scalars: list[tuple[str, float, int]] = []
        self.texts: list[tuple[str, str, int]] = []
        Writer.made.append(self)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def add_scalar(self, *scalar: Any) -> None:
        self.scalars.append(scalar)

    def add_text(self, *text: Any) -> None:
        self.texts.append(text)


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> type[Writer]:
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    Writer.made = []
    return Writer


def test_tensorboard_gets_what_was_kept(
    folder: Path, tmp_path: Path, tensorboard: type[Writer]
) -> None:
    count = write_tensorboard(folder, tmp_path / "board")
    (writer,) = tensorboard.made
    assert writer.closed
    assert writer.folder == str(tmp_path / "board")
    assert count == len(writer.scalars)
    kept = read_run(folder).kept
    training = [(value, step) for tag, value, step in writer.scalars if tag == "loss/training"]
    assert training == list(zip(kept["loss"].tolist(), kept["step"].tolist()))
    assert {tag for tag, _, _ in writer.scalars} >= {
        "loss/validation",
        "learning_rate",
        "uncertainty/volatility",
    }
    assert len(writer.texts) == len(read_decisions(folder))


def test_tensorboard_reads_what_was_written(folder: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    count = write_tensorboard(folder, tmp_path / "board")
    events = accumulator.EventAccumulator(
        str(tmp_path / "board"), size_guidance={"scalars": 0}
    ).Reload()
    tags = events.Tags()
    assert count == sum(len(events.Scalars(tag)) for tag in tags["scalars"])
    kept = read_run(folder).kept
    assert [event.step for event in events.Scalars("loss/training")] == kept["step"].tolist()
    assert [event.value for event in events.Scalars("loss/training")] == pytest.approx(
        kept["loss"].tolist()
    )
    assert any(tag.startswith("decisions") for tag in tags["tensors"])


def test_without_tensorboard_a_sentence_says_how_to_get_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'trainenv\[tensorboard\]'"):
        write_tensorboard(folder, tmp_path)


def asked(folder: Path, **more: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"folder": folder, "out": None, "json": False, "tensorboard": None, **more}
    )


def test_the_command_prints_the_tree_and_where_the_report_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tensorboard: type[Writer]
) -> None:
    out = tmp_path / "report.html"
    result, code = report_command(asked(folder, out=out, tensorboard=tmp_path / "board"))
    said = capsys.readouterr().out
    assert code == 0
    assert "decision 1:" in said
    assert str(out) in said
    assert (result["kind"], result["report"], result["bytes"]) == (
        "run",
        str(out),
        out.stat().st_size,
    )
    assert result["scalars"] > 0
    assert json.dumps(result)


def test_with_json_nothing_else_is_printed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_command(asked(folder, out=tmp_path / "x.html", json=True))
    assert capsys.readouterr().out == ""


def test_the_command_on_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared = make_comparison(tmp_path / "x", seeds=2)
    result, code = report_command(asked(compared))
    said = capsys.readouterr().out
    assert code == 0
    assert "branching-quarter" in said
    assert "missed" in said
    assert "…" not in said.split("goals met")[0]  # its table fits
    assert result["kind"] == "comparison"
    assert json.dumps(result)
    with pytest.raises(UserError, match="--tensorboard takes the folder of a run"):
        report_command(asked(compared, tensorboard=tmp_path / "board"))


def test_the_command_on_a_folder_of_somebody_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found none; give one that trainenv recorded in"):
        report_command(asked(tmp_path))
