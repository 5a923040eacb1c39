"""A user without a home folder, or with one that can't be written: the cache is in the temporary folder, and that is said."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainenv import data
from trainenv.config.schema import CorpusConfig
from trainenv.data import cache


@pytest.fixture(autouse=True)
def no_cache_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TRAINENV_CACHE")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    cache._temporary.cache_clear()
    yield
    cache._temporary.cache_clear()


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_has_a_cache_and_is_told_once(
    text: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.warns(UserWarning, match="there is no home folder, .*; set TRAINENV_CACHE"):
        data.load(CorpusConfig(name="text", path=text, tokenizer="bpe", vocab_size=280))
    made = tmp_path / "tmp" / f"trainenv-cache-{os.getuid()}"
    assert any(made.iterdir())
    assert made.stat().st_mode & 0o777 == 0o700
    assert cache.folder(None) == made
    assert not recwarn.list


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("there", ["a link", "for everybody"])
def test_a_folder_that_somebody_else_may_have_made_is_not_taken(there: str, tmp_path: Path) -> None:
    taken = tmp_path / "tmp" / f"trainenv-cache-{os.getuid()}"
    if there == "a link":
        taken.symlink_to(tmp_path)
    else:
        taken.mkdir()
        taken.chmod(0o777)
    with pytest.warns(UserWarning, match="no home folder"):
        found = cache.folder(None)
    assert found.parent == tmp_path / "tmp"
    assert found != taken


@pytest.mark.parametrize("home", ["/dev/null", "/nowhere"])
def test_a_home_that_can_not_be_written(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.warns(UserWarning, match=f"{home}/.cache/trainenv can't be written"):
        assert cache.folder(None).parent == tmp_path / "tmp"


def test_a_home_that_can_be_written_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "not" / "yet"))
    assert cache.folder(None) == tmp_path / "not" / "yet" / ".cache" / "trainenv"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "here")
    assert cache.folder(None) == tmp_path / "here" / ".cache" / "trainenv"
    assert cache.folder(Path("~/mine")) == tmp_path / "here" / "mine"
