"""Cache entries are whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainenv.data import cache


def test_what_was_written_is_there_with_its_facts(tmp_path: Path) -> None:
    cache.write(tmp_path / "deep" / "entry", b"data", next=[1, 2])
    assert cache.facts(tmp_path / "deep" / "entry") == {"next": [1, 2]}
    assert sorted(file.name for file in (tmp_path / "deep").iterdir()) == ["entry", "entry.json"]


@pytest.mark.parametrize("change", [b"dat", b"datb", b"", b"data+"])
def test_other_data_is_absent(tmp_path: Path, change: bytes) -> None:
    cache.write(tmp_path / "entry", b"data")
    (tmp_path / "entry").write_bytes(change)
    assert cache.facts(tmp_path / "entry") is None


@pytest.mark.parametrize(
    "change", ["", "{", "[]", "7", '{"format": "other", "size": 4}', '{"size": 4}']
)
def test_a_foreign_sidecar_is_absent(tmp_path: Path, change: str) -> None:
    cache.write(tmp_path / "entry", b"data")
    (tmp_path / "entry.json").write_text(change)
    assert cache.facts(tmp_path / "entry") is None


def test_a_sidecar_of_another_format_is_absent(tmp_path: Path) -> None:
    cache.write(tmp_path / "entry", b"data")
    noted = json.loads((tmp_path / "entry.json").read_text())
    (tmp_path / "entry.json").write_text(json.dumps({**noted, "format": "later"}))
    assert cache.facts(tmp_path / "entry") is None


def test_where_entries_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.folder(tmp_path) == tmp_path
    assert cache.folder(None) == tmp_path / "cache"  # TRAINENV_CACHE
    monkeypatch.delenv("TRAINENV_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder(None) == tmp_path / ".cache" / "trainenv"
