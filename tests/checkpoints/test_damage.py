"""Damage is noticed and named, what is whole is taken instead, and what was never listed never happened."""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.small_runs import files, filled, flip, made, same, small
from trainenv.checkpoints import file, manifest
from trainenv.checkpoints import reader as reading
from trainenv.checkpoints.file import BrokenCheckpoint
from trainenv.checkpoints.manifest import Entry
from trainenv.checkpoints.store import CheckpointStore
from trainenv.types import Snapshot, UserError

# ── damage ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "damage", ["front", "chunk", "torn", "empty", "missing", "link", "folder", "another", "older"]
)
def test_a_damaged_newest_is_named_and_the_one_before_taken(tmp_path: Path, damage: str) -> None:
    filled(tmp_path, 1, 2, 3).close()
    path = tmp_path / "cp_3.ptz"
    if damage in ("front", "chunk"):
        flip(path, 40 if damage == "front" else -1)
    elif damage in ("torn", "empty"):
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size - 1)
    elif damage == "another":
        saved = small(3, 2)
        file.write(
            replace(saved, state={**saved.state, "lr_scale": 2.0}), path, sequence=3
        )  # of the very same length
    elif damage == "older":
        shutil.copyfile(tmp_path / "cp_2.ptz", path)
    else:
        path.rename(tmp_path / "elsewhere")
        if damage == "link":
            path.symlink_to("elsewhere")
        elif damage == "folder":
            path.mkdir()
    for store in (CheckpointStore(tmp_path), filled(tmp_path)):
        with pytest.warns(UserWarning, match=r"cp_3\.ptz.*Taken instead: cp_2\.ptz of step 2"):
            assert same(store.load(), small(2, 1))
        with pytest.raises(
            BrokenCheckpoint, match=r"cp_3\.ptz.*those of these steps are whole: \[1, 2\]"
        ):
            store.load(3)
        assert [finding.file for finding in store.verify() if not finding.ok] == ["cp_3.ptz"]
        assert same(store.load(2), small(2, 1))


def test_each_broken_file_is_named(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, 2, 3)
    for step in (2, 3):
        flip(tmp_path / f"cp_{step}.ptz", -1)
    with pytest.warns(UserWarning, match=r"cp_3\.ptz.*cp_2\.ptz.*Taken instead: cp_1\.ptz"):
        assert store.load().step == 1
    flip(tmp_path / "cp_1.ptz", 40)
    with pytest.raises(
        BrokenCheckpoint, match=r"cp_3\.ptz.*cp_2\.ptz.*cp_1\.ptz.*no other is whole either"
    ):
        store.load()


def test_an_older_one_of_the_same_step_is_taken_with_a_warning(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, 2, 1)
    flip(tmp_path / "cp_1-3.ptz", -1)
    with pytest.warns(UserWarning, match=r"cp_1-3\.ptz.*Taken instead: cp_1\.ptz of step 1"):
        assert same(store.load(1), small(1, 0))


def test_exact_never_falls_back_to_a_compact_one(tmp_path: Path) -> None:
    store = filled(tmp_path, 1)
    store.save(made(2), moments="8bit")
    store.save(small(3), wait=True)
    flip(tmp_path / "cp_3.ptz", -1)
    with pytest.warns(UserWarning, match=r"Taken instead: cp_1\.ptz"):
        assert store.load(exact=True).step == 1


def test_a_name_that_was_overwritten_under_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer deletes what a reader is about to read: the reader looks again, and says nothing."""
    store = filled(tmp_path, 1, keep_last=1)
    reader, read = CheckpointStore(tmp_path), reading.read_entry

    def late(folder: Path, entry: Entry) -> Snapshot:
        if entry.step == 1:
            store.save(small(2), wait=True)
        return read(folder, entry)

    monkeypatch.setattr(reading, "read_entry", late)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reader.load().step == 2
    store.save(small(1), wait=True)
    with pytest.raises(UserError, match=r"expected a checkpoint of step 1 .*nearest: \[2\]"):
        reader.load(1)


def test_a_file_deleted_between_its_front_and_its_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, 1, keep_last=1)
    reader, read = CheckpointStore(tmp_path), file.read

    def late(path: Path) -> Snapshot:
        if path.name == "cp_1.ptz":
            store.save(small(2), wait=True)
        return read(path)

    monkeypatch.setattr(file, "read", late)
    assert reader.load().step == 2


def test_verify_is_silent_about_what_a_writer_deletes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, 1, keep_last=1)
    reader, read = CheckpointStore(tmp_path), reading.read_entry

    def late(folder: Path, entry: Entry) -> Snapshot:
        store.save(small(2), wait=True)
        return read(folder, entry)

    monkeypatch.setattr(reading, "read_entry", late)
    assert all(finding.ok for finding in reader.verify())


def test_verify_reads_everything(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "nothing").verify() == []
    store = filled(tmp_path, 1, 2)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "cp_9.ptz").write_text("x")
    (tmp_path / ".cp_8.ptz.tmp").write_text("x")
    found = {finding.file: finding for finding in store.verify()}
    assert list(found)[:3] == ["manifest.json", "cp_1.ptz", "cp_2.ptz"]
    assert {name for name, finding in found.items() if not finding.ok} == {"cp_9.ptz"}
    assert "never finished" in found["cp_9.ptz"].reason
    assert "left alone" in found["notes.txt"].reason
    assert "being written" in found[".cp_8.ptz.tmp"].reason
    for place in range(0, (tmp_path / "cp_1.ptz").stat().st_size, 997):
        flip(tmp_path / "cp_1.ptz", place)
        assert not next(finding for finding in store.verify() if finding.file == "cp_1.ptz").ok
        flip(tmp_path / "cp_1.ptz", place)
    assert next(finding for finding in store.verify() if finding.file == "cp_1.ptz").ok


# ── orphans ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_save_that_is_not_listed_never_happened(tmp_path: Path) -> None:
    filled(tmp_path, 1).close()
    file.write(small(2), tmp_path / "cp_2.ptz", sequence=2)  # whole
    (tmp_path / "cp_3-7.ptz").write_bytes(b"torn")
    for name in (".cp_4.ptz.tmp", ".cp_4-5.ptz.tmp", ".manifest.json.tmp"):
        (tmp_path / name).write_bytes(b"left over")
    others = [
        "cp_.ptz",
        "cp_01.ptz",
        "cp_1.ptz.bak",
        "cp_x.ptz",
        "xcp_1.ptz",
        "cp_1.ptz\n",
        "cp_٣.ptz",
        ".cp_5.tmp",
        "cp_1--2.ptz",
    ]
    for name in others:
        (tmp_path / name).write_bytes(b"not ours")
    store = CheckpointStore(tmp_path)
    assert store.steps() == [1]
    assert store.load().step == 1
    orphans = [".cp_4-5.ptz.tmp", ".cp_4.ptz.tmp", ".manifest.json.tmp", "cp_2.ptz", "cp_3-7.ptz"]
    assert [(deletion.file, deletion.reason) for deletion in store.preview()] == [
        (name, "orphan") for name in orphans
    ]
    with store:
        assert files(tmp_path) == sorted(["cp_1.ptz", *others])
        store.save(small(2, 5), wait=True)
        assert same(store.load(2), small(2, 5))


def test_collect_deletes_what_preview_lists(tmp_path: Path) -> None:
    filled(tmp_path, 1, 2, 3, 4, 5).close()
    (tmp_path / ".cp_9.ptz.tmp").write_bytes(b"123")
    sizes = {entry.file: entry.bytes for entry in CheckpointStore(tmp_path).entries()}
    store = CheckpointStore(tmp_path, keep_last=3, max_bytes=sizes["cp_4.ptz"] + sizes["cp_5.ptz"])
    before = set(files(tmp_path))
    preview = store.preview()
    assert set(files(tmp_path)) == before
    assert [(d.file, d.reason, d.step) for d in preview] == [
        (".cp_9.ptz.tmp", "orphan", None),
        ("cp_1.ptz", "retention", 1),
        ("cp_2.ptz", "retention", 2),
        ("cp_3.ptz", "cap", 3),
    ]
    assert [d.bytes for d in preview] == [
        3,
        sizes["cp_1.ptz"],
        sizes["cp_2.ptz"],
        sizes["cp_3.ptz"],
    ]
    assert store.collect() == preview
    assert before - set(files(tmp_path)) == {d.file for d in preview}
    assert store.preview() == store.collect() == []
    assert store.steps() == [4, 5]


# ── the list is lost ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lost_list_is_rebuilt_and_nothing_in_it_deleted(tmp_path: Path) -> None:
    with filled(tmp_path, 1, 2, 1, 3) as store:
        before = store.entries()
        store.hold(1, "decision")
    (tmp_path / "manifest.json").unlink()
    flip(tmp_path / "cp_2.ptz", 40)
    reader = CheckpointStore(tmp_path)
    with pytest.warns(
        UserWarning,
        match=r"was lost: there is none.*3 are listed again; cp_2\.ptz is left out: .*digest",
    ):
        found = reader.entries()
    assert [(e.file, e.step, e.sequence, e.tier, e.bytes, e.digest) for e in found] == [
        (e.file, e.step, e.sequence, e.tier, e.bytes, e.digest)
        for e in before
        if e.file != "cp_2.ptz"
    ]
    assert not (tmp_path / "manifest.json").exists()  # who reads writes nothing
    with pytest.warns(UserWarning, match="was lost"):
        store = filled(tmp_path, 4, keep_last=1)
    assert [entry.file for entry in store.entries()] == [
        "cp_1.ptz",
        "cp_1-3.ptz",
        "cp_3.ptz",
        "cp_4.ptz",
    ]
    assert store.entries()[-1].sequence == 5
    assert files(tmp_path) == [
        "cp_1-3.ptz",
        "cp_1.ptz",
        "cp_2.ptz.unreadable",
        "cp_3.ptz",
        "cp_4.ptz",
    ]
    store.release(manifest.REBUILT)
    assert [deletion.step for deletion in store.collect()] == [1, 1, 3]
    assert files(tmp_path) == ["cp_2.ptz.unreadable", "cp_4.ptz"]
