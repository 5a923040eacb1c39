"""Folders of text as they are found: with links, files of other kinds, and some that may not be read."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from trainenv import data as corpora
from trainenv.config.schema import CorpusConfig
from trainenv.data import documents
from trainenv.data.documents import text_files
from trainenv.types import UserError

TEXT = "the quick brown fox jumps over the lazy dog\n" * 200


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with one file of text, beside a disk with three."""
    for name in ("data/a.txt", "disk/books/1.txt", "disk/books/2.txt", "disk/3.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(TEXT, encoding="utf-8")
    return tmp_path / "data"


def shards(path: Path) -> tuple[str, ...]:
    return text_files(path).train.shards


def left_out(path: Path) -> list[str]:
    return [str(one) for one in text_files(path).train.left_out]


def test_linked_folders_are_followed(data: Path) -> None:
    (data / "books").symlink_to("../disk/books")
    assert shards(data) == ("a.txt", "books/1.txt", "books/2.txt")
    assert left_out(data) == []
    (data / "link.txt").symlink_to("../disk/3.txt")
    assert "link.txt" in shards(data)


def test_links_in_a_circle_end(data: Path, tmp_path: Path) -> None:
    (data / "self").symlink_to(".")
    (data / "up").symlink_to("..")
    (tmp_path / "disk" / "back").symlink_to("../data")
    assert sorted(shards(data)) == [
        "a.txt",
        "up/disk/3.txt",
        "up/disk/books/1.txt",
        "up/disk/books/2.txt",
    ]
    assert all("read already" in one for one in left_out(data))


def test_a_folder_keeps_its_own_name_where_a_link_to_it_comes_first(data: Path) -> None:
    (data / "z").mkdir()
    (data / "z" / "b.txt").write_text(TEXT, encoding="utf-8")
    (data / "a-link").symlink_to("z")
    assert shards(data) == ("a.txt", "z/b.txt")
    assert left_out(data) == ["a-link (a link to a folder read already)"]


def test_what_is_left_out_is_named(data: Path) -> None:
    (data / "b.gz").write_bytes(gzip.compress(TEXT.encode()))
    (data / "c.bin").write_bytes(b"\0\1")
    (data / "d.bin").write_bytes(b"\0")
    (data / "e").symlink_to("nowhere")
    os.mkfifo(data / "f")
    (data / ".git").mkdir()
    (data / ".hidden").touch()
    assert shards(data) == ("a.txt",)
    assert left_out(data) == [
        ".git (hidden)",
        ".hidden (hidden)",
        "e (a broken link)",
        "f (no regular file)",
        "b.gz (compressed)",
        "c.bin (binary)",
        "d.bin (binary)",
    ]
    with pytest.warns(UserWarning, match=r"data 7 left out: \.git \(hidden\), .* and 2 more$"):
        corpora.load(CorpusConfig(name="text", path=data))


def test_what_may_not_be_read_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a user who is not root; root may read all."""
    (data / "mine.txt").write_text(TEXT, encoding="utf-8")
    (data / "locked").mkdir()
    opened, scanned = Path.open, os.scandir

    def open_(path: Path, *args: object, **more: object) -> object:
        if path.name == "mine.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **more)  # type: ignore[call-overload]

    def scandir(path: str) -> object:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scanned(path)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(documents.os, "scandir", scandir)
    found = text_files(data)
    assert found.train.shards == ("a.txt",)
    assert [str(one) for one in found.train.left_out] == [
        "locked (unreadable: Permission denied)",
        "mine.txt (unreadable: Permission denied)",
    ]
    with pytest.raises(UserError, match=r"mine\.txt can't be read: Permission denied"):
        text_files(data / "mine.txt")


def test_a_folder_without_text_says_what_there_is_instead(tmp_path: Path) -> None:
    (tmp_path / "zipped").mkdir()
    (tmp_path / "zipped" / "a.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    with pytest.raises(UserError, match=r"no text in them \(left out: a.txt.gz \(compressed\)\)"):
        text_files(tmp_path / "zipped")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="expected a text file or a folder"):
        text_files(tmp_path / "pipe")


def test_copies_of_hub_corpora_are_found_behind_links_too(c4_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "data").symlink_to(c4_copy / "en")
    plain, linked = (
        corpora.load(CorpusConfig(name="c4", path=path)) for path in (c4_copy, tmp_path / "linked")
    )
    assert plain.digest == linked.digest
