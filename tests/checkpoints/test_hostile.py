"""Files that somebody made to do harm: each is refused by name, runs nothing, and takes no more memory than it may."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import safetensors.torch
import torch

from tests.support.checkpoint_files import (
    MARK,
    TIERS,
    apart,
    content,
    forged,
    holding,
    line,
    small,
    together,
    written,
)
from tests.support.hostile_cases import FIRST, SECOND, cases, tensor
from trainenv.checkpoints.file import BrokenCheckpoint, read, read_header, write
from trainenv.checkpoints.header import FIXED_MEMORY, TENSORS_MOST
from trainenv.tools.tensor_file import chunks, compression
from trainenv.tools.tensor_file.front import MAGIC
from trainenv.types import UserError

# Each file in a process of its own, forked from one that has loaded a checkpoint before: how far its memory grew at most.
CHILD = """
import gc, json, os, resource, sys, time, warnings
from pathlib import Path
from trainenv.checkpoints import file

warnings.simplefilter("error")
folder = Path(sys.argv[1])
file.read(folder / "whole")
gc.freeze()  # or each child would go through all that torch has made, again and again
for path in sorted(folder.iterdir()):
    sys.stdout.flush()
    with warnings.catch_warnings(action="ignore"):
        child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0, path
        continue
    before, since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        kind, message, declared = "loaded", "", file.read(path).nbytes
    except BaseException as error:
        kind, message, declared = type(error).__name__, str(error), 0
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << (0 if sys.platform == "darwin" else 10)
    print(json.dumps([path.name, kind, message, grown - declared, time.monotonic() - since]), flush=True)
    os._exit(0)
"""
LONGEST = 20  # seconds that a refusal may take, on a machine that does other things too


class Outcome(NamedTuple):
    kind: str
    message: str
    grown: int
    seconds: float


EXACT, ROUNDED = (written(small(), tier) for tier in TIERS)
CASES = cases(EXACT, ROUNDED)


def assert_refused(path: Path, match: str) -> None:
    for load in (read, read_header):
        with pytest.raises(BrokenCheckpoint, match=match) as found:
            load(path)
        assert str(path) in str(found.value)


# ── files that are none of ours ─────────────────────────────────────────────────────────────────────────────────────


class Payload:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/trainenv-payload-ran",)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    ran = Path("/tmp/trainenv-payload-ran")
    pickled = pickle.dumps(Payload())
    torch.save({"x": torch.ones(2), "payload": Payload()}, tmp_path / "zip")
    torch.save({"payload": Payload()}, tmp_path / "old", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / "safetensors")
    for name, data in {
        "pickle": pickled,
        "magic and pickle": MAGIC + pickled,
        "empty": b"",
        "text": b"no checkpoint, only some text that is as long as the front of one would be",
        "zeros": bytes(4096),
        "ones": b"\xff" * 4096,
        "magic": MAGIC,
        "magic and ones": MAGIC + b"\xff" * 4096,
        "another version's": b"\x94" + EXACT[1:],
        "line ends changed": EXACT.replace(b"\r\n", b"\n", 1),
    }.items():
        (tmp_path / name).write_bytes(data)
    for path in tmp_path.iterdir():
        assert_refused(path, "is no whole checkpoint")
    assert not ran.exists()


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    """Not followed, not waited for, not read."""
    (tmp_path / "whole").write_bytes(EXACT)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "whole")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "to zeros").symlink_to("/dev/zero")
    (tmp_path / "to nothing").symlink_to(tmp_path / "gone")
    read(tmp_path / "whole")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name in ("folder", "fifo", "link", "loop", "to zeros", "to nothing", "socket"):
            assert_refused(tmp_path / name, "is no regular file|can't be read as a checkpoint")
    for device in ("/dev/zero", "/dev/null"):
        assert_refused(Path(device), "is no regular file")


def test_a_hard_link_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(EXACT)
    os.link(tmp_path / "whole", tmp_path / "again")
    assert content(read(tmp_path / "again")) == content(small())


# ── files that lie ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "whole").write_bytes(ROUNDED)
    numbered = {f"{number:03}": name for number, name in enumerate(CASES)}
    for number, name in numbered.items():
        (folder / number).write_bytes(CASES[name][0]())
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    return {numbered.get(number, number): Outcome(*rest) for number, *rest in lines}


def test_the_forger_changes_nothing_but_what_it_is_told_to() -> None:
    """Else files below might be refused for how they were forged."""
    for whole in (EXACT, ROUNDED):
        assert forged(whole, lambda header: None) == whole
        assert together(*apart(whole)) == whole


def test_a_whole_file_is_loaded_in_the_process_that_refuses_the_others(
    outcomes: dict[str, Outcome],
) -> None:
    assert outcomes["whole"].kind == "loaded"
    assert outcomes.keys() == {"whole", *CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_file_that_lies_is_refused(name: str, outcomes: dict[str, Outcome]) -> None:
    """By a sentence of its own, that is short, can be printed anywhere, and names the file."""
    found = outcomes[name]
    assert found.kind == "BrokenCheckpoint" or (
        found.kind == "UserError" and "GiB of memory" in found.message
    ), found
    assert re.search(CASES[name][1], found.message), found
    assert "/hostile" in found.message
    assert len(found.message) < 500
    assert found.message.isprintable()
    assert found.grown < FIXED_MEMORY
    assert found.seconds < LONGEST


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "/",
        "/etc/passwd",
        "../../x",
        "a\0b",
        "x" * 10**6,
        "\x1b[31m",
        "\ud800",
        "",
        "con",
        "~",
    ],
)
def test_names_are_only_names(name: str, tmp_path: Path) -> None:
    """Nothing of a file's content is ever taken for a path."""
    path = tmp_path / "in" / "cp"
    path.parent.mkdir()
    original = holding({name: torch.arange(3), f"{name}2": torch.ones(2)})
    write(original, path)
    assert content(read(path)) == content(original)
    assert [found.name for found in tmp_path.rglob("*")] == ["in", "cp"]
    path.write_bytes(forged(path.read_bytes(), tensor("what", [1], f"{name}3")))
    with pytest.raises(BrokenCheckpoint, match="has the unknown dtype 'what'") as found:
        read(path)
    assert str(found.value).isprintable()
    assert len(str(found.value)) < 500


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize("data", [EXACT, ROUNDED], ids=TIERS)
def test_what_does_not_fit_into_memory_is_not_tried(
    data: bytes, missing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cp").write_bytes(data)
    needed = read_header(tmp_path / "cp").memory_bytes
    free = psutil.virtual_memory()._replace(available=needed - missing)
    monkeypatch.setattr(chunks.psutil, "virtual_memory", lambda: free)
    if not missing:
        read(tmp_path / "cp")
        return
    monkeypatch.setattr(compression, "empty", None)
    with pytest.raises(
        UserError, match=r"cp needs .* GiB of memory, found .* GiB available; free some"
    ):
        read(tmp_path / "cp")


def test_as_many_tensors_as_fit(tmp_path: Path) -> None:
    """Objects cost memory that no header declares, so their number is bounded."""
    header, table, body = apart(EXACT)
    names = [f"{number:x}" for number in range(TENSORS_MOST - len(header["tensors"]))]
    header["tensors"] |= {name: ["bool", []] for name in names}
    header["state"]["objective"].append([{MARK: name} for name in names])
    header["memory_bytes"] += len(names)
    (tmp_path / "whole").write_bytes(ROUNDED)
    (tmp_path / "many").write_bytes(
        together(header, table + [line(b"\1")] * len(names), body + b"\1" * len(names))
    )
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
    many, whole = (Outcome(*json.loads(line)[1:]) for line in child.stdout.splitlines())
    assert (many.kind, whole.kind) == ("loaded", "loaded")
    assert many.grown < FIXED_MEMORY


def test_a_large_checkpoint_takes_what_it_declares(tmp_path: Path) -> None:
    large = holding(
        {
            "optimizer/state/0/exp_avg": torch.ones(4 << 20, 8),
            "optimizer/state/0/exp_avg_sq": torch.ones(4 << 20, 8),
        }
    )
    for tier in TIERS:
        write(large, tmp_path / tier, tier=tier)
    declared = read_header(tmp_path / "8bit").memory_bytes
    assert declared > 1.2 * large.nbytes
    (tmp_path / "whole").write_bytes(ROUNDED)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
    for line_ in child.stdout.splitlines():
        name, kind, _, beside, _ = json.loads(line_)
        extra = declared - large.nbytes if name == "8bit" else 0
        assert kind == "loaded"
        assert beside < extra + FIXED_MEMORY / 4


# ── content that lies ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_scales_that_no_rounding_gives_are_refused(name: str, bad: float, tmp_path: Path) -> None:
    header, table, body = apart(ROUNDED)
    scales = torch.ones(16)
    scales[3] = bad
    # A part in its place: which lines are its own follows from the order of the tensors, that of the header.
    before = 0
    for other, (_, shape) in header["tensors"].items():
        if other == name:
            break
        before += 2 if other in header["rounded"] else int(math.prod(shape) > 0)
    start = sum(sum(entry[1:]) for entry in table[: before + 1])
    size = sum(table[before + 1][1:])
    planes = [
        scales.view(torch.uint8).view(-1, 4)[:, place].numpy().tobytes() for place in range(4)
    ]
    table[before + 1] = line(*planes)
    (tmp_path / "cp").write_bytes(
        together(header, table, body[:start] + b"".join(planes) + body[start + size :])
    )
    with pytest.raises(
        BrokenCheckpoint, match=f"'{name}' has scales that are not finite or below 0"
    ):
        read(tmp_path / "cp")


def test_any_codes_decode_to_finite_moments(tmp_path: Path) -> None:
    """Also those that no rounding gives: of the largest scales, and −128."""
    header, _, _ = apart(ROUNDED)
    largest = torch.full((16,), torch.finfo(torch.float32).max).view(torch.uint8).view(-1, 4)
    scales = [largest[:, place].numpy().tobytes() for place in range(4)]
    codes = [(bytes(range(256)) * 16)]
    kept = {FIRST: header["tensors"][FIRST], SECOND: header["tensors"][SECOND]}
    needed = {name: entry for name, entry in header["tensors"].items() if name.startswith("state/")}
    header["tensors"] = {**kept, **needed}
    header["state"]["objective"] = [{MARK: name} for name in kept]
    parts = [codes, scales, codes, scales, *([b"\0"] for _ in needed)]
    header["memory_bytes"] = 2 * (4 * 4096 + 4096 + 64) + len(needed)
    (tmp_path / "cp").write_bytes(
        together(
            header, [line(*part) for part in parts], b"".join(b"".join(part) for part in parts)
        )
    )
    back = read(tmp_path / "cp")
    assert all(back.tensors[name].isfinite().all() for name in kept)
    assert (back.tensors[SECOND] >= 0).all()
