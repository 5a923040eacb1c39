"""The folder of a comparison: one process plays in it, and its scenarios keep their text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.compare_fakes import METHODS, measure, suite
from trainenv import data
from trainenv.checkpoints.lock import FolderLock
from trainenv.compare import compare
from trainenv.compare.cells import Cell, read
from trainenv.compare.runner import begin
from trainenv.report.comparison.comparison_record import read_comparison
from trainenv.types import UserError


def test_the_text_of_a_scenario_is_a_whole_path_and_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 400, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    asked = suite(corpora={"bytes": {"name": "text", "path": "a.txt"}})
    assert {scenario.corpus["path"] for scenario in asked.scenarios} == {str(text)}
    begin(tmp_path / "out", asked)
    begin(tmp_path / "out", asked)
    text.write_text("other words\n" * 2000, encoding="utf-8")
    data._load.cache_clear()
    with pytest.raises(
        UserError, match=r"other text: the digest of the corpus of scenario 'calm' was \w+, is \w+"
    ):
        begin(tmp_path / "out", asked)


def test_a_comparison_has_one_process(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.take()
    with pytest.raises(UserError, match="is in use"):
        compare(tmp_path, suite(), METHODS, measure, workers=0)
    lock.release()
    assert not (tmp_path / "suite.json").exists()


def test_a_folder_of_the_version_before_is_read_and_resumed(tmp_path: Path) -> None:
    """There scenarios were called trunks, in cells and in the suite."""
    asked = suite(seeds=1)
    compare(tmp_path, asked, METHODS, measure, workers=0)
    cell = Cell(scenario="calm", seed=0, method="nothing")
    new = read(tmp_path, cell)
    for path in (tmp_path / "suite.json", *(tmp_path / "cells").rglob("*.json")):
        text = path.read_text(encoding="utf-8")
        assert '"scenario' in text
        path.write_text(text.replace('"scenario', '"trunk'), encoding="utf-8")
    assert read(tmp_path, cell) == new
    assert read_comparison(tmp_path).scenarios == [scenario.name for scenario in asked.scenarios]
    played: list[object] = []
    found = compare(tmp_path, asked, METHODS, measure, workers=0, progress=played.append)
    assert played == []
    assert found["finished"]
    assert '"scenarios"' in (tmp_path / "suite.json").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="holds the cells of another suite"):
        compare(
            tmp_path,
            suite(
                seeds=1,
                corpora={"bytes": {"name": "stdlib", "tokenizer": "bpe", "vocab_size": 300}},
            ),
            METHODS,
            measure,
        )
