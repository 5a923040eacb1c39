"""A fuzzer, for as long as FUZZ_SECONDS says, 5 if it says nothing; FUZZ_SEED gives other files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.files.checkpoints.make_corpus import SEEDS
from tests.support import fuzzing
from tests.support.checkpoint_files import content
from trainenv.checkpoints import file
from trainenv.checkpoints.header import FIXED_MEMORY
from trainenv.tools.tensor_file import chunks
from trainenv.types import Snapshot

SECONDS = float(os.environ.get("FUZZ_SECONDS", "5"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))


@pytest.mark.parametrize("name", SEEDS)
def test_a_file_of_the_corpus_is_still_read(name: str) -> None:
    """They were written by an earlier version; where the schema's first version changes, make_corpus.py writes them anew."""
    snapshot, tier = SEEDS[name]
    loaded = file.read(fuzzing.CORPUS / name)
    assert loaded.tier == tier
    assert loaded.state == snapshot.state
    if tier == "exact":
        assert content(loaded) == content(snapshot)


def test_whatever_is_read_is_refused_or_a_snapshot(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "error",
        fuzzing.__file__,
        str(SEED),
        str(SECONDS),
        str(tmp_path),
    ]
    child = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 120)
    assert child.returncode == 0, child.stderr[-4000:]
    report = json.loads(child.stdout.splitlines()[-1])
    assert report["grown"] < FIXED_MEMORY
    assert sum(report["outcomes"].values()) > 20 * SECONDS
    assert report["outcomes"]["loaded"] > 5  # or nothing behind the checks was reached
    assert len(report["outcomes"]) > 20


def test_a_turn_can_be_taken_again() -> None:
    seeds = [path.read_bytes() for path in sorted(fuzzing.CORPUS.glob("*.ptz"))]
    assert len(seeds) == len(SEEDS)
    assert [fuzzing.made(3, turn, seeds) for turn in range(50)] == [
        fuzzing.made(3, turn, seeds) for turn in range(50)
    ]
    assert fuzzing.made(3, 0, seeds) != fuzzing.made(4, 0, seeds)


def loads_anything(path: Path) -> Snapshot:
    return SEEDS["exact.ptz"][0]


def fails(path: Path) -> Snapshot:
    raise KeyError("tensors")


def says_nothing(path: Path) -> Snapshot:
    raise file.BrokenCheckpoint("it is broken")


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        (loads_anything, "it was changed, and loaded"),
        (fails, "KeyError: 'tensors'"),
        (says_nothing, "it was refused by 'it is broken'"),
    ],
)
def test_a_reader_that_errs_is_found_and_the_file_kept(
    reader: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "read", reader)
    monkeypatch.setattr(file, "read_header", lambda path: SEEDS["exact.ptz"][0])
    monkeypatch.setattr(fuzzing, "SIGNED", fuzzing.BLIND)
    monkeypatch.setattr(fuzzing, "made", lambda seed, turn, seeds: (seeds[0][:-1], False))
    with pytest.raises(fuzzing.Found, match=f"seed 7, turn 0, kept as .*found-7-0.ptz: {said}"):
        fuzzing.fuzz(7, 60, tmp_path, most=5)
    assert (tmp_path / "found-7-0.ptz").read_bytes()


def test_a_reader_that_skips_a_checksum_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Agreeing(str):
        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = str.__hash__

    monkeypatch.setattr(chunks.xxhash, "xxh3_64_hexdigest", lambda data: Agreeing("0" * 16))
    with pytest.raises(fuzzing.Found, match="it was changed, and loaded"):
        fuzzing.fuzz(0, 60, tmp_path)
