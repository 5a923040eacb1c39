"""The list of checkpoints is what was written, or it is rebuilt: no bytes in it do anything else."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.small_runs import made, same
from trainenv.checkpoints import file, manifest
from trainenv.checkpoints.manifest import Damaged, Entry, Manifest, checkpoint_name, is_ours, parse
from trainenv.checkpoints.store import CheckpointStore
from trainenv.types import UserError

ENTRY = Entry(
    file="cp_3.ptz",
    step=3,
    sequence=1,
    tier="exact",
    bytes=100,
    digest="ab" * 16,
    holders=("somebody",),
)
WHOLE = Manifest(
    (ENTRY, replace(ENTRY, file="cp_3-2.ptz", sequence=2, tier="8bit", holders=())), next_sequence=5
)


def signed(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A manifest as somebody might write it who knows how the checksum is made."""
    document = json.loads(WHOLE.to_bytes())
    del document["checksum"]
    change(document)
    return (
        json.dumps(document | {"checksum": manifest._checksum(document)}, indent=1).encode() + b"\n"
    )


def entry(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["entries"][0].update(fields)


def test_there_and_back() -> None:
    assert parse(WHOLE.to_bytes()) == WHOLE
    assert parse(Manifest().to_bytes()) == Manifest()
    assert signed(lambda document: None) == WHOLE.to_bytes()


def test_every_flip_of_a_bit_is_noticed() -> None:
    data = WHOLE.to_bytes()
    for place in range(len(data)):
        for bit in (1, 4, 128):
            with pytest.raises(Damaged):
                parse(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])


def test_every_truncation_is_noticed() -> None:
    data = WHOLE.to_bytes()
    for length in range(len(data)):
        with pytest.raises(Damaged):
            parse(data[:length])
    with pytest.raises(Damaged):
        parse(data + b"\n")


@pytest.mark.parametrize(
    "change",
    [
        entry(file="../cp_3.ptz"),
        entry(file="/etc/passwd"),
        entry(file="cp_3.ptz/../cp_3.ptz"),
        entry(file=".."),
        entry(file="cp_4.ptz"),
        entry(file="cp_3-9.ptz"),
        entry(file="cp_3-2.ptz"),
        entry(file=None),
        entry(step=-1, file="cp_-1.ptz"),
        entry(step=3.0),
        entry(step=True, file="cp_True.ptz"),
        entry(step="3"),
        entry(step=10**30, file=f"cp_{10**30}.ptz"),
        entry(sequence=None),
        entry(sequence=7),
        entry(bytes=-1),
        entry(bytes=10**40),
        entry(tier="4bit"),
        entry(tier=["exact"]),
        entry(digest="ab"),
        entry(digest="AB" * 16),
        entry(digest=5),
        entry(holders="somebody"),
        entry(holders=[1]),
        entry(holders=["x", "x"]),
        entry(holders=None),
        entry(extra=1),
        lambda document: document["entries"][0].pop("digest"),
        lambda document: document["entries"].reverse(),
        lambda document: document["entries"].append(document["entries"][1]),
        lambda document: document["entries"].append(5),
        lambda document: document.update(entries={}),
        lambda document: document.update(entries=None),
        lambda document: document.update(next=2),
        lambda document: document.update(next="5"),
        lambda document: document.update(format="something else"),
        lambda document: document.update(format=None),
        lambda document: document.update(more=1),
        lambda document: document.clear(),
    ],
)
def test_a_right_checksum_is_not_enough(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(Damaged):
        parse(signed(change))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 5000,
        b'{"checksum": ' + b"9" * 6000 + b"}",
        b"\xff\xfe\x00",
        b'{"checksum": NaN}',
        WHOLE.to_bytes().replace(b'"next": 5', b'"next": 4, "next": 5'),
        WHOLE.to_bytes().replace(b" ", b""),
        WHOLE.to_bytes().decode().encode("utf-16"),
    ],
    ids=range(13),
)
def test_hostile_bytes(data: bytes) -> None:
    with pytest.raises(Damaged):
        parse(data)


@given(
    data=st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
        lambda v: json.dumps(v).encode()
    )
)
@settings(max_examples=60)
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(Damaged):
        parse(data)


def test_another_version_is_refused_not_rebuilt(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        store.save(made(1, numel=64))
    (tmp_path / "manifest.json").write_bytes(
        signed(lambda document: document.update(format="trainenv checkpoints 2"))
    )
    for use in (CheckpointStore(tmp_path).load, CheckpointStore(tmp_path).__enter__):
        with pytest.raises(
            UserError, match="expected 'trainenv checkpoints 1', found 'trainenv checkpoints 2'"
        ):
            use()
    assert (tmp_path / "cp_1.ptz").exists()


def test_names_that_are_ours() -> None:
    assert is_ours(checkpoint_name(0))
    assert is_ours(checkpoint_name(12, 3))
    assert is_ours(".cp_12-3.ptz.tmp")
    assert is_ours(".manifest.json.tmp")
    assert not any(
        map(
            is_ours,
            (
                "manifest.json",
                ".lock",
                "cp_1.ptz.tmp",
                "cp_+1.ptz",
                "cp_1_0.ptz",
                "cp_1.ptz\n",
                "a/cp_1.ptz",
                "CP_1.ptz",
            ),
        )
    )


# ── in a folder ─────────────────────────────────────────────────────────────────────────────────────────────────────


def put(path: Path, what: str) -> None:
    path.unlink()
    if what == "link":
        path.with_name("elsewhere").write_bytes(WHOLE.to_bytes())
        path.symlink_to("elsewhere")
    elif what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "huge":
        path.touch()
        os.truncate(path, 2**40)
    else:
        path.write_bytes(signed(lambda document: document["entries"][0].update(file="../cp_3.ptz")))


@pytest.mark.parametrize("what", ["link", "folder", "pipe", "huge", "hostile"])
def test_whatever_stands_in_its_place(tmp_path: Path, what: str) -> None:
    with CheckpointStore(tmp_path, moments="exact") as store:
        for step in (1, 2):
            store.save(made(step, numel=64))
    put(tmp_path / "manifest.json", what)
    if what == "huge":
        with pytest.raises(Damaged, match=f"it has {2**40} bytes, more than"):
            manifest.read(tmp_path)
    store = CheckpointStore(tmp_path)
    with pytest.warns(UserWarning, match=r"manifest\.json was lost: it "):
        assert same(store.load(), made(2, numel=64))
    assert not store.verify()[0].ok
    if what == "folder":
        with (
            pytest.warns(UserWarning, match="was lost"),
            pytest.raises(UserError, match="Is a directory"),
        ):
            store.save(made(3, numel=64))
        return
    with pytest.warns(UserWarning, match="was lost"):
        store.save(made(3, numel=64))
    assert store.steps() == [1, 2, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CheckpointStore(tmp_path).steps() == [1, 2, 3]


def test_rebuilding_takes_only_what_a_store_could_have_written(tmp_path: Path) -> None:
    file.write(made(1, numel=64), tmp_path / "cp_1.ptz", sequence=6)
    file.write(made(2, numel=64), tmp_path / "cp_2-4.ptz", sequence=4)
    file.write(made(3, numel=64), tmp_path / "cp_4.ptz", sequence=5)  # under another step's name
    file.write(made(5, numel=64), tmp_path / "cp_5-6.ptz", sequence=7)  # under another number
    file.write(
        made(6, numel=64), tmp_path / "cp_6.ptz", sequence=10**17
    )  # no number is left after it
    (tmp_path / "cp_8.ptz").symlink_to("cp_1.ptz")
    found, left_out = manifest.rebuild(tmp_path)
    assert [one.file for one in found.entries] == ["cp_2-4.ptz", "cp_1.ptz"]  # in order of saving
    assert found.next_sequence == 7
    assert set(left_out) == {"cp_4.ptz", "cp_5-6.ptz", "cp_6.ptz", "cp_8.ptz"}
    assert parse(found.to_bytes()) == found


def test_files_from_outside_a_store_can_be_listed(tmp_path: Path) -> None:
    """Copied into a folder without a list, several may have the same number, 0."""
    for step in (2, 1):
        file.write(made(step, numel=64), tmp_path / f"cp_{step}.ptz")
    with pytest.warns(UserWarning, match="was lost"), CheckpointStore(tmp_path) as store:
        assert [(one.step, one.sequence) for one in store.entries()] == [(1, 0), (2, 0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CheckpointStore(tmp_path).load().step == 2


def test_a_list_that_cannot_be_read_is_not_taken_for_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files say nothing of what is in this one: nothing may be rebuilt, or deleted, because of them."""
    with CheckpointStore(tmp_path) as store:
        store.save(made(1, numel=64))

    def fails(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(manifest.os, "open", fails)
        with pytest.raises(UserError, match="Too many open files"):
            manifest.read(tmp_path)
    assert CheckpointStore(tmp_path).steps() == [1]


def test_a_list_may_not_outgrow_what_is_read() -> None:
    holders = tuple(f"{number:0200}" for number in range(50_000))
    with pytest.raises(UserError, match="release some holders"):
        Manifest((replace(ENTRY, holders=holders),), next_sequence=2).to_bytes()
