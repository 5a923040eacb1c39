"""Files that are written whole or not at all, whatever fails on the way."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from trainenv.tools.atomic_files import replacing, write_file, write_json


def test_the_new_content_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_file(path, "old")
    write_file(path, "new: µ\n", fsync=True)
    assert path.read_bytes() == "new: µ\n".encode()
    write_file(path, memoryview(b"\x00\x01"))
    assert path.read_bytes() == b"\x00\x01"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_file(path, "old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of th")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_rename_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write_file(tmp_path / "taken", "text")
    assert os.listdir(tmp_path) == ["taken"]


def test_content_reaches_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    there: list[bool] = []
    sync = os.fsync

    def seen(handle: int) -> None:
        there.append(path.exists())
        sync(handle)

    monkeypatch.setattr(os, "fsync", seen)
    write_file(path, "without")
    assert there == []
    path.unlink()
    write_file(path, "with", fsync=True)
    assert there == [False]
    assert path.read_text() == "with"


def test_two_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # whose block ended last


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"loss": math.nan, "steps": (1, 2)})
    assert path.read_text() == '{\n "loss": null,\n "steps": [\n  1,\n  2\n ]\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"loss": object()})
    assert json.loads(path.read_text()) == {"loss": None, "steps": [1, 2]}
    assert os.listdir(tmp_path) == ["a.json"]
