"""Files of traces: bits, damage, a full disk, and traces of another pair."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trainenv.decoding.traces import (
    CostModel,
    Trace,
    load_costs,
    load_trace,
    save_costs,
    save_trace,
    synthetic_trace,
)
from trainenv.decoding.traces.file import BrokenTrace
from trainenv.tools.tensor_file.filesystem import Disk
from trainenv.types import UserError


@pytest.fixture(scope="module")
def trace() -> Trace:
    return synthetic_trace(rows=3, positions=20, depth=4)


class FullDisk(Disk):
    """A disk with room for some bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, file: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(file, memoryview(data)[: self.room], offset)
        self.room -= written
        return written


def test_a_file_gives_back_the_same_bits(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.trace"
    save_trace(trace, path)
    found = load_trace(path, expected=trace.origin)
    assert found.origin == trace.origin
    assert found.stride == trace.stride
    for name, array in trace.arrays().items():
        assert getattr(found, name).tobytes() == array.tobytes(), name
    again = tmp_path / "b.trace"
    save_trace(found, again)
    assert again.read_bytes() == path.read_bytes()


def test_every_changed_or_missing_byte_is_noticed(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    save_trace(trace, path)
    whole = path.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 60).astype(int).tolist():
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(BrokenTrace):
            load_trace(path)
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BrokenTrace):
            load_trace(path)


def test_a_full_disk_leaves_nothing_half_written(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    for room in (0, 100, 5000):
        with pytest.raises(UserError, match=r"saving .*No space left.*Free some space"):
            save_trace(trace, path, disk=FullDisk(room))
        assert list(tmp_path.iterdir()) == []
    save_trace(trace, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="No space left"):
        save_trace(synthetic_trace(rows=3, seed=1), path, disk=FullDisk(200))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_trace_of_another_pair_is_refused_in_a_sentence(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    save_trace(trace, path)
    other = replace(trace.origin, draft="another")
    with pytest.raises(UserError, match=r"expected a trace of .* with another on synthetic, found"):
        load_trace(path, expected=other)


def test_what_is_no_trace_is_refused(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with pytest.raises(UserError, match=r"expected a trace at .*, found no file"):
        load_trace(path)
    path.write_text("no trace")
    with pytest.raises(BrokenTrace, match="is no whole trace"):
        load_trace(path)
    with pytest.raises(UserError, match="p_top of a trace must be float16"):
        replace(trace, p_top=trace.p_top.astype(np.float32))


def test_costs_are_kept_as_json(tmp_path: Path) -> None:
    costs = CostModel(target_call=(0.25, 0.5), draft_step=0.1, block=0.01, alone=0.26)
    save_costs(costs, tmp_path / "costs" / "a.json")
    assert load_costs(tmp_path / "costs" / "a.json") == costs
    with pytest.raises(UserError, match="found none"):
        load_costs(tmp_path / "b.json")
    (tmp_path / "c.json").write_text('{"target_cal": [1]}')
    with pytest.raises(UserError, match="is no cost model"):
        load_costs(tmp_path / "c.json")
