"""`trainenv demo`: both ways and their report, how it is gone on with, and its mistakes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.command_line import asks_to_stop_at, assert_one_sentence
from tests.support.strict_json import strict
from trainenv import cli
from trainenv.cli import main


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Result and progress messages of an uninterrupted demo of 200 steps."""
    folder = tmp_path_factory.mktemp("demo") / "whole"
    out = io.StringIO()
    err = io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert main(["demo", "--steps", "200", "--json", "--out", str(folder)]) == 0
    return strict(out.getvalue()), err.getvalue()


def test_demo_trains_both_ways_and_reports(whole: tuple[dict[str, Any], str]) -> None:
    result, err = whole
    assert [run["method"] for run in result["runs"]] == ["left alone", "branching"]
    for run in result["runs"]:
        assert (
            strict((Path(run["folder"]) / "summary.json").read_text(encoding="utf-8"))["step"]
            == run["step"]
        )
        assert f"{run['method']}: step" in err
    alone, steered = result["runs"]
    assert alone["first_validation_loss"] == steered["first_validation_loss"]
    assert (alone["step"], alone["flops"]["verify"], alone["flops"]["plan"]) == (200, 0, 0)
    assert sum(steered["flops"].values()) <= 1.01 * sum(alone["flops"].values())
    assert steered["flops"]["plan"] > 0
    assert steered["step"] <= 200
    page = Path(result["report"]).read_text(encoding="utf-8")
    assert "<svg" in page
    assert "http" not in page.split("</head>")[0].replace("http-equiv", "")


def test_demo_for_people_says_what_it_may_cost_and_shows_the_tree(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["demo", "--steps", "100", "--out", "here"]) == 0
    out = capsys.readouterr().out
    assert "steering costs at most 10 steps" in out
    assert "left alone" in out
    assert "report: here/report.html" in out
    first, second, third = out.splitlines()[:3]
    assert first.startswith("trained twice: a GPT-2 of 0.13 million parameters, for 100 steps of 8")
    assert second.startswith("planted faults, the same in both runs: rare tokens in 2 % of the bat")
    assert "a harsh warm-up of 25 steps" in second
    assert "step 450" not in second  # which is after the end
    assert third.startswith("left alone: nothing is changed; branching: ")
    assert re.search(r"\nsteered ends [\d.]+ % (lower|higher) at the same compute: validation", out)
    assert out.splitlines()[-1].startswith("next, a run of your own: trainenv run tiny ")


def test_interrupted_demo_goes_on_to_the_same_end(
    whole: tuple[dict[str, Any], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, 96, once="here/branching")
        assert main(["demo", "--steps", "200", "--json", "--out", "here"]) == cli.INTERRUPTED
    result = strict(capsys.readouterr().out)
    assert [run["ended"] for run in result["runs"]] == ["budget spent", "interrupted"]
    assert not (tmp_path / "here" / "summary.json").exists()
    assert main(["demo", "--resume", "--json", "--out", "here"]) == 0
    resumed = strict(capsys.readouterr().out)
    assert [run["fingerprint"] for run in resumed["runs"]] == [
        run["fingerprint"] for run in whole[0]["runs"]
    ]


@pytest.mark.parametrize(
    "arguments",
    [["--resume"], ["--resume", "--out", "nowhere"], ["--resume", "--out", "a", "--steps", "9"]],
)
def test_a_demo_that_cannot_be_gone_on_with_says_so(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *arguments]) == cli.USER_ERROR
    assert capsys.readouterr().err.count("\n") == 1


def test_too_little_memory_for_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "trainenv.models.build.psutil.virtual_memory", lambda: SimpleNamespace(available=2**20)
    )
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
def test_demo_mistakes(
    arguments: list[str], words: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("1", encoding="utf-8")
    assert_one_sentence(["demo", *arguments], words, tmp_path, capsys)
