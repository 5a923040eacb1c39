"""The folder of a comparison: one process plays in it, and its trunks keep their text."""

from __future__ import annotations

from pathlib import Path

import pytest
from compare_fakes import METHODS, measure, suite

from trainenv import data
from trainenv.checkpoints.lock import FolderLock
from trainenv.compare import compare
from trainenv.compare.runner import begin
from trainenv.types import UserError


def test_the_text_of_a_trunk_is_a_whole_path_and_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 400, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    asked = suite(corpora={"bytes": {"name": "text", "path": "a.txt"}})
    assert {trunk.corpus["path"] for trunk in asked.trunks} == {str(text)}
    begin(tmp_path / "out", asked)
    begin(tmp_path / "out", asked)
    text.write_text("other words\n" * 2000, encoding="utf-8")
    data._load.cache_clear()
    with pytest.raises(UserError, match=r"other text: the digest of the corpus of trunk 'calm' was \w+, is \w+"):
        begin(tmp_path / "out", asked)


def test_a_comparison_has_one_process(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.take()
    with pytest.raises(UserError, match="is in use"):
        compare(tmp_path, suite(), METHODS, measure, workers=0)
    lock.release()
    assert not (tmp_path / "suite.json").exists()
