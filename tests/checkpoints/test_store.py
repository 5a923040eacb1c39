"""A store: what is saved comes back, in order of saving; what is held stays; one writes and all may read."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.small_runs import files, filled, made, same, seed_of, small
from trainenv.checkpoints import file, reader
from trainenv.checkpoints.manifest import Entry
from trainenv.checkpoints.store import CheckpointStore
from trainenv.tools.tensor_file.filesystem import Disk
from trainenv.types import Snapshot, UserError

# ── saving and loading ──────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "a/b", every=2) as store:
        assert store.steps() == []
        store.save(made(2), moments="exact")
        store.save(made(4))
        assert store.steps() == [2, 4]
    store = CheckpointStore(tmp_path / "a/b")
    assert same(store.load(2), made(2))
    assert same(store.load(2, exact=True), made(2))
    compact = store.load()
    assert (compact.step, compact.tier) == (4, "8bit")
    assert torch.equal(compact.tensors["model/weight"], made(4).tensors["model/weight"])
    assert not torch.equal(
        compact.tensors["optimizer/state/0/exp_avg"], made(4).tensors["optimizer/state/0/exp_avg"]
    )
    assert files(tmp_path / "a/b") == ["cp_2.ptz", "cp_4.ptz"]


def test_entries_say_what_there_is(tmp_path: Path) -> None:
    store = filled(tmp_path, 5)
    store.save(made(6), moments="8bit", wait=True)
    one, two = store.entries()
    header = file.read_header(tmp_path / "cp_5.ptz")
    assert one == Entry(
        file="cp_5.ptz",
        step=5,
        sequence=1,
        tier="exact",
        bytes=(tmp_path / "cp_5.ptz").stat().st_size,
        digest=header.digest,
    )
    assert (two.sequence, two.tier) == (2, "8bit")
    assert header.sequence == 1
    assert CheckpointStore(tmp_path).entries() == [one, two]


@pytest.mark.parametrize(
    ("before", "after", "due"),
    [
        (0, 9, False),
        (0, 10, True),
        (9, 10, True),
        (10, 11, False),
        (10, 20, True),
        (5, 35, True),
        (10, 10, False),
        (20, 9, False),
    ],
)
def test_due(tmp_path: Path, before: int, after: int, due: bool) -> None:
    assert CheckpointStore(tmp_path, every=10).due(before, after) is due


def test_a_rewound_history_comes_by_again(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, 2, 3, 2, 3, 2)
    assert [entry.file for entry in store.entries()] == [
        *("cp_1.ptz", "cp_2.ptz", "cp_3.ptz", "cp_2-4.ptz", "cp_3-5.ptz", "cp_2-6.ptz"),
    ]
    assert store.steps() == [1, 2, 3]
    newest = store.load()
    assert (newest.step, seed_of(newest)) == (2, 5)  # saved last, though not the highest step
    assert [seed_of(store.load(step)) for step in (1, 2, 3)] == [0, 5, 4]
    assert same(
        reader.read_entry(tmp_path, store.entries()[1]), small(2, 1)
    )  # the old one is intact


def test_order_is_that_of_saving_not_of_time_stamps(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, 2, 3)
    os.utime(tmp_path / "cp_1.ptz", (4e9, 4e9))
    os.utime(tmp_path / "cp_3.ptz", (1, 1))
    store.close()
    with CheckpointStore(tmp_path, keep_last=2) as store:
        assert store.load().step == 3
        assert [deletion.file for deletion in store.collect()] == ["cp_1.ptz"]


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    store = filled(tmp_path, *range(1, 8), keep_last=3)
    assert store.steps() == [5, 6, 7]
    assert files(tmp_path) == ["cp_5.ptz", "cp_6.ptz", "cp_7.ptz"]


def test_numbers_go_on_after_reopening(tmp_path: Path) -> None:
    filled(tmp_path, 1, 2).close()
    store = filled(tmp_path, 2, keep_last=1)
    assert [(entry.file, entry.sequence) for entry in store.entries()] == [("cp_2-3.ptz", 3)]


def test_moments_that_cannot_be_rounded_are_saved_exactly(tmp_path: Path) -> None:
    snapshot = made(1)
    snapshot.tensors["optimizer/state/0/exp_avg"][3] = math.nan
    store = CheckpointStore(tmp_path, moments="8bit")
    store.save(snapshot)
    with pytest.warns(
        UserWarning, match="cp_1.ptz was saved with exact moments, not in 8 bits: .*not finite"
    ):
        store.wait()
    assert store.entries()[0].tier == "exact"
    assert same(store.load(exact=True), snapshot)


def test_a_state_that_fits_no_schema_is_refused_once(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(Snapshot(step=1, tensors={}, state={"x": 1}))
    with pytest.raises(UserError, match="'x'"):
        store.wait()
    assert store.preview() == store.steps() == []


def test_a_name_that_is_taken_by_something_else(tmp_path: Path) -> None:
    store = filled(tmp_path, 1)
    (tmp_path / "cp_2.ptz").mkdir()
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / "cp_3.ptz").symlink_to("elsewhere")
    store.save(small(2))
    store.save(small(3), wait=True)
    assert [entry.file for entry in store.entries()] == ["cp_1.ptz", "cp_2-2.ptz", "cp_3-3.ptz"]
    assert (tmp_path / "elsewhere").read_text() == "x"
    assert store.collect() == []  # no regular files, so nobody deletes them
    assert [finding.file for finding in store.verify() if not finding.ok] == [
        "cp_2.ptz",
        "cp_3.ptz",
    ]


def test_a_link_in_place_of_a_temporary_file_is_not_written_through(tmp_path: Path) -> None:
    store = filled(tmp_path, 1)
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / ".cp_2.ptz.tmp").symlink_to("elsewhere")
    with pytest.raises(UserError, match=r"cp_2\.ptz failed"):
        store.save(small(2), wait=True)
    assert (tmp_path / "elsewhere").read_text() == "x"


# ── what makes no sense ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"every": 0}, "every must be a number of optimizer steps from 1 on, found 0"),
        ({"every": 2.0}, "every must be .* found 2.0"),
        ({"keep_last": 0}, "keep_last must be a number of checkpoints from 1 on, found 0"),
        ({"keep_last": True}, "keep_last must be .* found True"),
        ({"max_bytes": 0}, "max_bytes must be a number of bytes"),
        ({"moments": "4bit"}, "moments must be one of 'exact', '8bit', found '4bit'"),
        ({"on_error": "ignore"}, "on_error must be one of 'raise', 'warn', found 'ignore'"),
    ],
)
def test_arguments_are_checked(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        CheckpointStore(tmp_path, **options)


@pytest.mark.parametrize("folder", ["", "a\0b", 3, None])
def test_a_folder_is_a_path(folder: Any) -> None:
    with pytest.raises(UserError, match="folder must be a path"):
        CheckpointStore(folder)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="must be a folder to save in, found a file"):
        CheckpointStore(tmp_path / "file")
    with pytest.raises(UserError, match="Not a directory"):
        CheckpointStore(tmp_path / "file/below").save(small(1))
    with pytest.raises(UserError, match="Not a directory"):
        CheckpointStore(tmp_path / "file/below").steps()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="Permission denied"):
        CheckpointStore(tmp_path).save(small(1))


def test_only_snapshots_are_saved(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for wrong in (
        None,
        {},
        Snapshot(step=-1, tensors={}, state={}),
        Snapshot(step="1", tensors={}, state={}),
    ):  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"expected a Snapshot|must be an int from 0 on"):
            store.save(wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="moments must be one of"):
        store.save(small(1), moments="16bit")  # type: ignore[arg-type]


def test_a_step_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found none"):
        CheckpointStore(tmp_path / "nothing").load()
    with pytest.raises(UserError, match="found none"):
        CheckpointStore(tmp_path / "nothing").load(3)
    store = filled(tmp_path, *range(0, 24, 2), keep_last=100)
    with pytest.raises(
        UserError, match=r"step 9 .* 12 others; nearest: \[2, 4, 6, 8, 10, 12, 14, 16\]"
    ):
        store.load(9)
    with pytest.raises(UserError, match="a step must be an int, found '8'"):
        store.load("8")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="step 9"):
        store.hold(9, "somebody")


def test_exact_is_refused_of_a_compact_checkpoint_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, 1)
    for step in (2, 3):
        store.save(made(step), moments="8bit")
    store.wait()
    monkeypatch.setattr(file, "read", lambda path: pytest.fail("it was read"))
    with pytest.raises(
        UserError,
        match=r"cp_3.ptz was saved with its moments in 8 bits.*the newest exact checkpoint is that of step 1",
    ):
        store.load(exact=True)
    with pytest.raises(UserError, match=r"cp_2.ptz was saved with its moments in 8 bits"):
        store.load(2, exact=True)


def test_exact_is_refused_where_there_is_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(made(2), moments="8bit")
    with pytest.raises(UserError, match="there is no exact checkpoint"):
        store.load(exact=True)


def test_a_second_store_is_refused_and_reading_needs_no_lock(tmp_path: Path) -> None:
    with filled(tmp_path, 1) as store:
        other = CheckpointStore(tmp_path)
        for write in (
            lambda: other.save(small(2)),
            other.collect,
            lambda: other.hold(1, "x"),
            other.__enter__,
        ):
            with pytest.raises(UserError, match="another CheckpointStore of this same process"):
                write()
        assert other.steps() == [1]
        assert same(other.load(), small(1))
        assert other.preview() == []
        assert len(other.entries()) == 1
        assert all(finding.ok for finding in other.verify())
        other.hold(1, "x", durable=False)
        store.save(small(2), wait=True)
        assert other.steps() == [1, 2]
    other.save(small(3), wait=True)
    assert other.steps() == [1, 2, 3]


# ── holds and the cap ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_durable_hold_outlives_the_store(tmp_path: Path) -> None:
    with filled(tmp_path, 1, 2, 3, keep_last=3) as store:
        store.hold(1, "decision 7")
        store.hold(1, "decision 7")
        store.hold(1, "decision 8")
    with filled(tmp_path, 4, 5, keep_last=1) as store:
        assert store.steps() == [1, 5]
        assert store.entries()[0].holders == ("decision 7", "decision 8")
        store.release("decision 7")
        store.save(small(6), wait=True)
        assert store.steps() == [1, 6]
        store.release("decision 8", step=99)
        store.release("nobody")
        assert store.entries()[0].holders == ("decision 8",)
        store.release("decision 8", step=1)
        assert store.steps() == [1, 6]  # released is not deleted yet
        assert [deletion.file for deletion in store.collect()] == ["cp_1.ptz"]


def test_a_live_hold_ends_with_the_store(tmp_path: Path) -> None:
    with filled(tmp_path, 1, 2, keep_last=1) as store:
        store.hold(2, "branch", durable=False)
        store.save(small(3), wait=True)
        assert store.steps() == [2, 3]
        assert store.entries()[0].holders == ("branch",)
        assert CheckpointStore(tmp_path).entries()[0].holders == ()
        store.hold(3, "branch", durable=False)
        store.release("branch", step=2)
        store.save(small(4), wait=True)
        assert store.steps() == [3, 4]
        store.release("branch")
        assert [deletion.step for deletion in store.collect()] == [3]
        store.hold(4, "branch", durable=False)
    with filled(tmp_path, 5, keep_last=1) as store:
        assert store.steps() == [5]


def test_a_hold_is_on_the_newest_of_a_step(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, 1, keep_last=2)
    store.hold(1, "somebody")
    store.save(small(2))
    store.save(small(3), wait=True)
    assert [entry.file for entry in store.entries()] == ["cp_1-2.ptz", "cp_2.ptz", "cp_3.ptz"]


def test_a_hold_waits_for_the_save_under_way(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(small(1))
    store.hold(1, "somebody")
    assert store.entries()[0].holders == ("somebody",)


@pytest.mark.parametrize("holder", ["", "x" * 201, 3, None])
def test_a_holder_has_a_name(tmp_path: Path, holder: Any) -> None:
    with pytest.raises(UserError, match="a holder must be a name"):
        filled(tmp_path, 1).hold(1, holder)


def test_any_name_will_do_for_a_holder(tmp_path: Path) -> None:
    names = ("d\ud800", "\0", "日本語", '"', "..", "rebuilt")
    with filled(tmp_path, 1) as store:
        for name in names:
            store.hold(1, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CheckpointStore(tmp_path).entries()[0].holders == names


def test_the_cap_takes_the_oldest_and_says_once_where_it_cannot_be_met(tmp_path: Path) -> None:
    size = filled(tmp_path / "one", 1).entries()[0].bytes
    store = filled(tmp_path / "two", 1, 2, 3, max_bytes=2 * size + size // 2)
    assert store.steps() == [2, 3]
    store.hold(2, "somebody")
    store.hold(3, "somebody")
    store.save(small(4))
    with pytest.warns(UserWarning, match=r"bytes, max_bytes allows"):
        store.wait()
    assert store.steps() == [2, 3, 4]
    store.save(small(5), wait=True)  # not said again
    assert store.steps() == [2, 3, 5]


def test_the_newest_stays_whatever_the_cap(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, max_bytes=1)
    store.save(small(1))
    with pytest.warns(UserWarning, match="max_bytes"):
        store.save(small(2))
    assert store.steps() == [2]


# ── where the folder is ──────────────────────────────────────────────────────────────────────────────


def test_a_folder_can_be_moved(tmp_path: Path) -> None:
    filled(tmp_path / "here", 1, 2).close()
    (tmp_path / "here").rename(tmp_path / "there")
    assert same(CheckpointStore(tmp_path / "there").load(), small(2, 1))


def test_a_relative_folder_stays_the_same_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = CheckpointStore("store")
    monkeypatch.chdir("/")
    store.save(small(1), wait=True)
    assert (tmp_path / "store/cp_1.ptz").exists()


def test_a_disk_of_ones_own_sees_every_touch(tmp_path: Path) -> None:
    """All changes of a folder by a store, except the lock file, go through its `Disk`."""
    seen: set[str] = set()

    class Watching(Disk):
        def create(self, path: Path) -> int:
            seen.add(path.name)
            return super().create(path)

        def unlink(self, path: Path) -> None:
            seen.add(f"-{path.name}")
            super().unlink(path)

    filled(tmp_path, 1, 2, keep_last=1, disk=Watching())
    assert seen == {".cp_1.ptz.tmp", ".cp_2.ptz.tmp", ".manifest.json.tmp", "-cp_1.ptz"}
