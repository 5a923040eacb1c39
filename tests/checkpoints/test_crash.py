"""Power cuts, kills and endings: reopening always gives the last acknowledged save or a later one, equal to the bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.power import Lie, PowerCut, left
from tests.support.small_runs import made, same
from trainenv.checkpoints import file
from trainenv.checkpoints.store import CheckpointStore
from trainenv.types import Snapshot, Tier, UserError

SUPPORT = Path(__file__).parents[1] / "support"


def run(script: str, *arguments: str) -> Any:
    """The JSON object that a script of this folder ends with."""
    command = [sys.executable, str(SUPPORT / script), *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# ── the power is cut ────────────────────────────────────────────────────────────────────────────────────────────────

SAVES: list[tuple[int, Tier]] = [
    *((1, "exact"), (2, "8bit"), (3, "exact"), (2, "exact"), (3, "8bit")),  # rewound once,
    *((2, "exact"), (3, "8bit"), (4, "exact")),  # and twice
]
NUMEL = 4096


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> list[Snapshot]:
    """Return the expected content of each save, in order.

    That of the compact tier has been rounded once, through a file.
    """
    path = tmp_path_factory.mktemp("wanted") / "file.ptz"
    snapshots = []
    for sequence, (step, tier) in enumerate(SAVES, start=1):
        file.write(made(step, sequence, numel=NUMEL), path, tier=tier)
        snapshots.append(file.read(path))
    return snapshots


def saved(folder: Path, lie: Lie = "") -> PowerCut:
    """Saves, a hold, a release and a collection, on a disk that remembers every moment of it."""
    disk = PowerCut(lie)
    with CheckpointStore(folder, keep_last=2, disk=disk) as store:
        for sequence, (step, tier) in enumerate(SAVES, start=1):
            store.save(made(step, sequence, numel=NUMEL), moments=tier, wait=True)
            disk.acknowledged = sequence
            if sequence == 2:
                store.hold(1, "somebody")
            if sequence == 4:
                store.release("somebody")
                store.collect()
    return disk


def fault(folder: Path, acknowledged: int, wanted: list[Snapshot]) -> str:
    """Describe the damage in a folder after a power cut; empty if there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            store = CheckpointStore(folder)
            entries = store.entries()
            newest = entries[-1].sequence if entries else 0
            if newest < acknowledged:
                return f"save {acknowledged} was acknowledged, {newest} is the newest"
            if broken := [
                finding
                for finding in store.verify()
                if not finding.ok and finding.entry is not None
            ]:
                return f"listed, and not whole: {broken}"
            if entries and not same(store.load(), wanted[newest - 1]):
                return f"save {newest} is different"
            with store:
                return (
                    f"left lying about: {found}"
                    if (found := [d for d in store.preview() if d.reason == "orphan"])
                    else ""
                )
    except (UserError, UserWarning) as error:
        return f"{type(error).__name__}: {error}"


def cut_everywhere(
    disk: PowerCut, folder: Path, check: Callable[[Path, int], str], outcomes: int
) -> tuple[int, list[str]]:
    """Cut the power at every moment, with so many outcomes each; how many different ones there were, and their faults."""
    seen: set[tuple[int, frozenset[tuple[str, bytes]]]] = set()
    faults = []
    for place, moment in enumerate(disk.moments):
        for outcome in range(outcomes):
            content = left(moment, random.Random(f"{place} {outcome}"))
            # What is in a temporary file is never read: one content stands for all.
            key = (
                moment.acknowledged,
                frozenset((n, c if not n.endswith(".tmp") else b"") for n, c in content.items()),
            )
            if key in seen:
                continue
            seen.add(key)
            cut = folder / f"{place}-{outcome}"
            cut.mkdir(parents=True)
            for name, data in content.items():
                (cut / name).write_bytes(data)
            if found := check(cut, moment.acknowledged):
                faults.append(f"moment {place}: {found}")
    return len(seen), faults


def test_a_power_cut_at_any_moment(tmp_path: Path, wanted: list[Snapshot]) -> None:
    disk = saved(tmp_path / "store")
    count, faults = cut_everywhere(
        disk, tmp_path / "cut", lambda cut, known: fault(cut, known, wanted), outcomes=30
    )
    assert faults == []
    assert len(disk.moments) > 150
    assert count > 50


@pytest.mark.parametrize("lie", ["sync", "sync_folder"])
def test_a_disk_that_breaks_its_promises_is_noticed(
    tmp_path: Path, wanted: list[Snapshot], lie: Lie
) -> None:
    """So that the test above can fail: without either kind of sync, it does."""
    disk = saved(tmp_path / "store", lie)
    disk.moments = disk.moments[::7]
    assert cut_everywhere(
        disk, tmp_path / "cut", lambda cut, known: fault(cut, known, wanted), outcomes=3
    )[1]


# ── the process is killed ───────────────────────────────────────────────────────────────────────────────────────────


def test_killed_savers_leave_every_acknowledged_save() -> None:
    tally = run("killing.py", "--kills", "60", "--json")
    assert tally["kills"] == 60
    assert len(tally["at_points"]) == tally["at_random"] == 30
    assert tally["acknowledged"] > 30
    assert (
        tally["unresumable"] == tally["partial_taken_as_whole"] == tally["silent_differences"] == 0
    )


# ── the process ends ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The folders that processes left which ended in various ways, and how they ended."""
    folder = tmp_path_factory.mktemp("endings")
    return folder, run("endings.py", str(folder))


@pytest.mark.parametrize(
    ("scenario", "status", "steps"),
    [
        ("ends_without_waiting", 0, [1, 2]),
        ("raises_inside_with", 1, [1, 2]),
        ("interrupted_while_waiting", -2, [1, 2]),
        ("interrupted_at_the_end_of_with", 0, [1, 2]),
        ("sigterm_inside_with", 143, [1, 2]),
        ("sigterm_while_waiting", 143, [1, 2]),
        ("sigterm_at_the_end_of_with", 143, [1, 2]),
        ("sigterm_twice", 143, [1, 2]),
        ("sigterm_after_with", -15, [1]),
        ("sigterm_without_with", -15, [1]),
        ("sigterm_with_a_handler_of_ones_own", 7, [1]),
        ("sigterm_in_a_forked_child", 0, [1, 2]),
        ("failure_that_nobody_asks_about", 0, [1]),
        ("forked_child_only_reads", 0, [1, 3]),
    ],
)
def test_a_process_that_ends(
    endings: tuple[Path, dict[str, Any]], scenario: str, status: int, steps: list[int]
) -> None:
    folder, ended = endings
    assert ended[scenario]["status"] == status, ended[scenario]["stderr"]
    store = CheckpointStore(folder / scenario)
    assert store.steps() == steps
    assert store.load().step == steps[-1]
    with store:  # the lock is free
        assert store.preview() == []


def test_a_failure_at_the_end_of_the_process_is_told(endings: tuple[Path, dict[str, Any]]) -> None:
    words = endings[1]["failure_that_nobody_asks_about"]["stderr"]
    assert (
        "cp_2.ptz failed: the system reported 'No space left on device'; the one before it, cp_1.ptz, is intact"
        in words
    )


def test_the_lock_stays_while_what_it_protects_goes_on(
    endings: tuple[Path, dict[str, Any]],
) -> None:
    assert (
        "is in use: another CheckpointStore of this same process"
        in endings[1]["interrupted_at_the_end_of_with"]["stderr"]
    )


def test_a_forked_child_is_told_that_it_only_reads(endings: tuple[Path, dict[str, Any]]) -> None:
    # The last line: Python 3.12 and newer warn of a fork beside threads.
    told = json.loads(endings[1]["forked_child_only_reads"]["stderr"].splitlines()[-1])
    assert told.pop("loads") == 1
    assert set(told) == {"save", "collect", "hold"}
    assert all(
        words.startswith("UserError: this process is a child made by fork")
        for words in told.values()
    )
