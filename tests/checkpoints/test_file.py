"""Checkpoint files: every bit comes back, equal snapshots give equal files, and any change to a file is noticed."""

from __future__ import annotations

import errno
import math
import os
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.checkpoints.test_compression import SHAPES, noise
from tests.support.checkpoint_files import (
    MARK,
    PROLOGUE,
    TIERS,
    adam,
    apart,
    bits,
    content,
    holding,
    small,
    snapshot,
    written,
)
from tests.support.lengths import either
from trainenv.checkpoints.file import BrokenCheckpoint, read, read_header, write
from trainenv.tools.tensor_file import compression
from trainenv.tools.tensor_file.filesystem import Disk
from trainenv.training import snapshots
from trainenv.types import Snapshot, Tier, UserError

FLIPS = either(short=2_000, long=12_000)
tensors = st.builds(
    noise,
    st.sampled_from([*compression.DTYPES.values()]),
    st.sampled_from(SHAPES),
    st.integers(0, 99),
)
plain = (
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats() | st.text(max_size=5)
)
nested = st.recursive(
    plain,
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=4), below, max_size=3)
    ),
    max_leaves=12,
)


def there_and_back(original: Snapshot, folder: Path, tier: Tier = "exact") -> Snapshot:
    write(original, folder / "cp", tier=tier)
    return read(folder / "cp")


# ── lossless ────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(
    held=st.dictionaries(
        st.text("abc./0é\0\n", min_size=1, max_size=6).map("model/{}".format), tensors, max_size=5
    ),
    state=nested,
    step=st.integers(0, 2**63 - 1),
    tier=st.sampled_from(TIERS),
)
@settings(max_examples=either(short=100, long=400), deadline=None)
def test_anything_comes_back(
    held: dict[str, Tensor],
    state: Any,
    step: int,
    tier: Tier,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    original = snapshot([state, [{MARK: name} for name in held]], held, step=step, tier=tier)
    back = there_and_back(original, tmp_path_factory.mktemp("cp"), tier)
    assert content(back) == content(original)
    assert snapshots.fingerprint(back) == snapshots.fingerprint(original)


@pytest.mark.parametrize("dtype", compression.DTYPES.values(), ids=compression.DTYPES)
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_the_edges_of_chunks(dtype: torch.dtype, off: int, tmp_path: Path) -> None:
    full = compression.CHUNK_BYTES // dtype.itemsize
    held = {
        "a": noise(dtype, (full + off,)),
        "b": noise(dtype, (2, full + off), 1)[:, 1:],
        "c": noise(dtype, (3,)),
    }
    back = there_and_back(holding(held), tmp_path)
    assert all(bits(back.tensors[name]) == bits(tensor) for name, tensor in held.items())
    _, table, _ = apart((tmp_path / "cp").read_bytes())
    chunks_of_b = math.ceil(2 * (full + off - 1) * dtype.itemsize / compression.CHUNK_BYTES)
    assert (
        len(table) == (2 if off > 0 else 1) + chunks_of_b + 1 + 3
    )  # and the three that the schema asks for


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        -0.0,
        5e-324,
        0.1,
        1e308,
        2**63,
        -(10**4000),
        "",
        "\0\x1b[31m",
        "\ud800",
        "𝄞é",
        True,
        1,
        1.0,
    ],
    ids=repr,
)
def test_odd_values_in_a_state_come_back(value: Any, tmp_path: Path) -> None:
    state = {"value": value, "list": [value, [], {}, None], f"key {value!r:.40}": {}}
    back = there_and_back(snapshot(state, {}), tmp_path)
    assert repr(back.state["objective"]) == repr(state)


def test_a_state_of_other_mappings_comes_back_as_dicts(tmp_path: Path) -> None:
    from types import MappingProxyType

    original = snapshot(MappingProxyType({"inner": MappingProxyType({"x": 1})}), {})
    assert there_and_back(original, tmp_path).state["objective"] == {"inner": {"x": 1}}


def test_tied_tensors_stay_one(tmp_path: Path) -> None:
    back = there_and_back(small(), tmp_path)
    objective = snapshots.expand(back)["objective"]
    assert objective[-2]["tied"] is objective[0] is back.tensors["model/weight"]


def test_what_was_loaded_belongs_to_the_loader(tmp_path: Path) -> None:
    one = there_and_back(small(), tmp_path)
    two = read(tmp_path / "cp")
    (tmp_path / "cp").unlink()
    one.tensors["model/weight"].fill_(9)
    assert content(two) == content(small())
    addresses = [t.data_ptr() for t in (*one.tensors.values(), *two.tensors.values()) if t.numel()]
    assert len(set(addresses)) == len(addresses)


# ── a pure function of the snapshot ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tier", TIERS)
def test_equal_snapshots_give_equal_files(tier: Tier) -> None:
    assert written(small(), tier, 4) == written(small(), tier, 4)
    assert written(small(), tier, 4) != written(small(), tier, 5)
    assert written(small(), "exact") != written(small(), "8bit")
    for name in small().tensors:
        other = small()
        if other.tensors[name].numel():
            other.tensors[name].view(-1).view(torch.uint8)[0] ^= 1
            assert written(other, "exact") != written(small(), "exact")


@pytest.mark.parametrize("cores", [1, 2, 3, 64])
def test_threads_do_not_matter(cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {
        **adam((1100, 256)),
        "x": noise(torch.complex64, (3 * compression.CHUNK_BYTES // 8 + 5,)),
        "y": noise(torch.int16, (9,)),
    }
    for tier in TIERS:
        write(holding(held), tmp_path / tier, tier=tier)
        expected = content(read(tmp_path / tier))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
        assert content(read(tmp_path / tier)) == expected
        monkeypatch.undo()


@pytest.mark.parametrize("tier", TIERS)
def test_the_header_says_what_was_written(tier: Tier, tmp_path: Path) -> None:
    header = write(small(), tmp_path / "cp", tier=tier, sequence=7)
    assert read_header(tmp_path / "cp") == header
    assert (header.step, header.sequence, header.tier) == (3, 7, tier)
    assert header.file_bytes == (tmp_path / "cp").stat().st_size
    assert bool(header.rounded) == (tier == "8bit")
    codes = sum(4096 + 16 * 4 for _ in header.rounded)  # an element each, and a scale for every 256
    assert header.memory_bytes == read(tmp_path / "cp").nbytes + codes
    said, _, _ = apart((tmp_path / "cp").read_bytes())
    assert (said["drift"] is None) == (tier == "exact")


def test_a_header_can_be_read_where_chunks_are_damaged(tmp_path: Path) -> None:
    header = write(small(), tmp_path / "cp")
    data = bytearray((tmp_path / "cp").read_bytes())
    data[-1] ^= 1
    (tmp_path / "cp").write_bytes(data)
    assert read_header(tmp_path / "cp") == header
    with pytest.raises(
        BrokenCheckpoint, match=r"cp is damaged: the checksum of the \d+ bytes at \d+ is wrong"
    ):
        read(tmp_path / "cp")


# ── what is not written ─────────────────────────────────────────────────────────────────────────────────────────────


def changed(**state: Any) -> Snapshot:
    original = small()
    return Snapshot(original.step, original.tensors, {**original.state, **state})


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


REFUSED: dict[str, tuple[Callable[[], Snapshot], str]] = {
    "sparse": (
        lambda: holding({"a/b": torch.eye(3).to_sparse()}),
        "a/b has the dtype float32 and the layout torch.sparse_coo",
    ),
    "sparse moments": (
        lambda: holding(
            {
                f"optimizer/state/0/{name}": torch.eye(99).to_sparse()
                for name in ("exp_avg", "exp_avg_sq")
            }
        ),
        "layout torch.sparse_coo, which a checkpoint can't hold",
    ),
    "dtype": (
        lambda: holding({"a": torch.zeros(3).to(torch.float8_e4m3fnuz)}),
        "a has the dtype float8_e4m3fnuz",
    ),
    "shape": (lambda: holding({"a": torch.zeros(0, 2**50)}), "'a' has an impossible shape"),
    "dimensions": (lambda: holding({"a": torch.zeros([1] * 65)}), "'a' has an impossible shape"),
    "step": (
        lambda: Snapshot(-1, small().tensors, small().state),
        "its step must be at least 0 and below 2.*63, found -1",
    ),
    "huge step": (
        lambda: Snapshot(2**63, small().tensors, small().state),
        "its step must be at least 0",
    ),
    "no step": (
        lambda: Snapshot(True, small().tensors, small().state),
        "'step' must be int, found true",
    ),
    "field": (lambda: changed(surprise=1), "unknown field 'surprise'"),
    "missing": (lambda: Snapshot(1, {}, {}), "the snapshot of step 1: the field '.*' is missing"),
    "nobody's": (
        lambda: Snapshot(1, {**small().tensors, "x": torch.ones(1)}, small().state),
        "disagree about 'x'",
    ),
    "dangling": (
        lambda: changed(objective=[small().state["objective"], {MARK: "x"}]),
        "disagree about 'x'",
    ),
    "mark": (
        lambda: changed(model={MARK: {MARK: "model/weight"}}),
        "'model' must be a mapping, found the mark of a tensor",
    ),
    "deep": (
        lambda: changed(objective=[small().state["objective"], deep(64)]),
        "nested more than 64 levels deep",
    ),
    "very deep": (
        lambda: changed(objective=[small().state["objective"], deep(99_999)]),
        "does not fit into a checkpoint",
    ),
    "no JSON": (
        lambda: changed(objective=[small().state["objective"], 1j]),
        "does not fit into a checkpoint",
    ),
    "huge int": (
        lambda: changed(objective=[small().state["objective"], 10**5000]),
        "does not fit into a checkpoint",
    ),
    "much": (
        lambda: changed(objective=[small().state["objective"], "x" * (9 << 20)]),
        "would need 9439.* bytes, at most 8388608 fit",
    ),
    "many": (
        lambda: changed(objective=[small().state["objective"], [[]] * 999_999]),
        "its JSON has too many parts",
    ),
}


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_could_not_be_read_is_not_written(name: str, tier: Tier, tmp_path: Path) -> None:
    write(small(), tmp_path / "cp")
    before = (tmp_path / "cp").read_bytes()
    make, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        write(make(), tmp_path / "cp", tier=tier)
    assert (tmp_path / "cp").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["cp"]


@pytest.mark.parametrize("sequence", [-1, 2**63, True, 1.0])
def test_a_sequence_number_is_a_count(sequence: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sequence"):
        write(small(), tmp_path / "cp", sequence=sequence)
    assert list(tmp_path.iterdir()) == []


def test_names_that_parts_of_rounded_tensors_need_are_theirs(tmp_path: Path) -> None:
    held = {**adam(), "optimizer/state/0/exp_avg/codes": torch.ones(2)}
    write(holding(held), tmp_path / "cp")
    with pytest.raises(
        UserError, match="'optimizer/state/0/exp_avg' have the names of other tensors"
    ):
        write(holding(held), tmp_path / "cp", tier="8bit")


class Failing(Disk):
    """Takes a few bytes at a time, and fails at a call."""

    def __init__(self, at: int = sys.maxsize) -> None:
        self.left = at

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")

    def create(self, path: Path) -> int:
        self._count()
        return super().create(path)

    def write(self, file: int, data: Any, offset: int) -> int:
        self._count()
        return super().write(file, data[:700], offset)

    def sync(self, file: int) -> None:
        self._count()
        super().sync(file)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)


def test_a_disk_that_fails_at_any_call_leaves_what_was_there(tmp_path: Path) -> None:
    write(holding({"old": torch.ones(3)}), tmp_path / "cp")
    before, at = (tmp_path / "cp").read_bytes(), 0

    def written_despite(at: int) -> bool:
        with suppress(OSError):
            write(small(), tmp_path / "cp", disk=Failing(at))
            return True
        return False

    while not written_despite(at):
        assert (tmp_path / "cp").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["cp"]
        at += 1
    assert at > 8
    assert (tmp_path / "cp").read_bytes() == written(small())


# ── any change is noticed ───────────────────────────────────────────────────────────────────────────────────────────


def assert_broken(path: Path) -> str:
    with pytest.raises(BrokenCheckpoint) as found:
        read(path)
    assert str(path) in str(found.value)
    return str(found.value)


@pytest.mark.parametrize("tier", TIERS)
def test_torn_anywhere(tier: Tier, tmp_path: Path) -> None:
    path = tmp_path / "cp"
    write(small(), path, tier=tier)
    assert 2000 < path.stat().st_size < 6000
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        assert_broken(path)


@pytest.mark.parametrize("tier", TIERS)
def test_every_byte_of_the_front_counts(tier: Tier, tmp_path: Path) -> None:
    path = tmp_path / "cp"
    data = written(small(), tier)
    path.write_bytes(data)
    _, header, manifest, _ = PROLOGUE.unpack_from(data)
    with path.open("r+b", buffering=0) as stream:
        for place in range(PROLOGUE.size + header + manifest):
            for mask in (1, 0x20, 0xFF):
                os.pwrite(stream.fileno(), bytes([data[place] ^ mask]), place)
                assert_broken(path)
            os.pwrite(stream.fileno(), data[place : place + 1], place)
    read(path)


@pytest.mark.parametrize("tier", TIERS)
def test_flipped_bits(tier: Tier, tmp_path: Path) -> None:
    """One bit, anywhere, every time noticed: half of the flips in the chunks, for the front is much the larger part."""
    path, dice = tmp_path / "cp", random.Random(20)
    data = written(small(), tier)
    path.write_bytes(data)
    body = len(data) - len(apart(data)[2])
    with path.open("r+b", buffering=0) as stream:
        for turn in range(FLIPS // len(TIERS)):
            place = dice.randrange(body if turn % 2 else 0, len(data))
            os.pwrite(stream.fileno(), bytes([data[place] ^ 1 << dice.randrange(8)]), place)
            assert_broken(path)
            os.pwrite(stream.fileno(), data[place : place + 1], place)
    read(path)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    "more",
    [b"\0", b" ", b"\n", bytes(4096), None],
    ids=["zero", "space", "newline", "page", "file"],
)
def test_nothing_may_follow(tier: Tier, more: bytes | None, tmp_path: Path) -> None:
    data = written(small(), tier)
    (tmp_path / "cp").write_bytes(data + (data if more is None else more))
    assert_broken(tmp_path / "cp")
    (tmp_path / "cp").write_bytes((data if more is None else more) + data)
    assert_broken(tmp_path / "cp")


def test_chunks_may_not_change_places(tmp_path: Path) -> None:
    data = written(holding({"a": noise(torch.uint8, (64,)), "b": noise(torch.uint8, (64,), 1)}))
    _, _, body = apart(data)
    swapped = body[64:128] + body[:64] + body[128:]
    assert swapped != body
    (tmp_path / "cp").write_bytes(data[: -len(body)] + swapped)
    assert "the checksum of the 64 bytes" in assert_broken(tmp_path / "cp")


def test_no_file(tmp_path: Path) -> None:
    for load in (read, read_header):
        with pytest.raises(UserError, match=r"expected a checkpoint at .*gone, found no file"):
            load(tmp_path / "gone")
    with pytest.raises(UserError, match="can't be read as a checkpoint: Not a directory"):
        read(Path(__file__) / "below")


def test_memory_that_the_system_does_not_give_is_the_users_to_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(small(), tmp_path / "cp", tier="8bit")

    def refuse(*_: Any) -> None:
        raise MemoryError

    for where in ("empty", "tensor", "decompress"):
        monkeypatch.setattr(compression, where, refuse)
        with pytest.raises(UserError, match="cp needs more memory than the system gave"):
            read(tmp_path / "cp")
        monkeypatch.undo()


def test_what_may_pass_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store goes back to an older checkpoint where one is broken; it must not where this process has too many files open."""
    write(small(), tmp_path / "cp")

    def refuse(*_: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        UserError, match="can't be read as a checkpoint: Too many open files"
    ) as raised:
        read(tmp_path / "cp")
    assert not isinstance(raised.value, BrokenCheckpoint)
