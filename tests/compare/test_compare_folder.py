"""The folder of a comparison: one process plays in it, and its scenarios keep their text."""

from __future__ import annotations

import json
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


def test_no_cell_is_added_to_those_of_the_version_before(tmp_path: Path) -> None:
    """Losses of the version before are of another validation part: none is added to them."""
    asked = suite(seeds=1)
    compare(tmp_path, asked, METHODS, measure, workers=0)
    noted = json.loads((tmp_path / "suite.json").read_text(encoding="utf-8"))
    del noted["open_loop"]
    for scenario in noted["scenarios"]:
        del scenario["kind"]
    (tmp_path / "suite.json").write_text(json.dumps(noted | {"schema": 2}), encoding="utf-8")
    for path in (tmp_path / "cells").rglob("*.json"):
        row = json.loads(path.read_text(encoding="utf-8"))
        del row["test_loss"]
        path.write_text(json.dumps(row), encoding="utf-8")
    assert read_comparison(tmp_path).found["finished"]
    Cell(scenario="calm", seed=0, method="nothing").file(tmp_path).unlink()
    with pytest.raises(
        UserError, match="holds cells of an earlier version, whose final losses are of another part"
    ):
        compare(tmp_path, asked, METHODS, measure, workers=0)
    assert json.loads((tmp_path / "suite.json").read_text(encoding="utf-8"))["schema"] == 2
    assert not read_comparison(tmp_path).found["finished"]


def test_a_suite_that_has_got_a_test_is_another(tmp_path: Path) -> None:
    compare(tmp_path, suite(seeds=1), METHODS, measure, workers=0)
    tested = suite(seeds=1, overrides={"validation": {"test_sequences": 20}})
    with pytest.raises(UserError, match="another suite"):
        compare(tmp_path, tested, METHODS, measure, workers=0)


def test_open_loop_methods_can_be_added_to_a_comparison(tmp_path: Path) -> None:
    compare(tmp_path, suite(seeds=2), METHODS, measure, workers=0)
    played: list[object] = []
    found = compare(
        tmp_path,
        suite(seeds=2, open_loop=["punctual"]),
        METHODS,
        measure,
        workers=0,
        progress=played.append,
    )
    assert len(played) == 8
    assert len(found["headroom"]["references"]) == 8
    assert read_comparison(tmp_path).suite.open_loop == ("punctual",)
