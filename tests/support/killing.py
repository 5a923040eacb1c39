"""Kill savers by SIGKILL, half at random times and half at named points of the protocol, and look at what each leaves.

A server imports everything once and forks the savers, one after the other, on one folder that all of them go on with. What a
saver saves is made from two numbers, and it tells which saves were acknowledged through a pipe. After each kill the folder must
load without a warning, the newest checkpoint must be the last acknowledged or a later one, and every listed one must be equal to
the bit to what was saved. `benchmarks/kills.py` does it a thousand times, `test_crash.py` often enough to notice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.small_runs import made, same, seed_of
from trainenv.checkpoints import file
from trainenv.checkpoints import reader as reading
from trainenv.checkpoints.store import CheckpointStore
from trainenv.tools.tensor_file.filesystem import Disk
from trainenv.types import Snapshot, Tier, UserError

NUMEL = 80_000  # elements of each of three tensors: about 1 MB a snapshot
KEEP_LAST = 3
PATIENCE = 0.25  # seconds within which a saver is killed at random: some saves
SAVES = 25  # by then a saver has come by every point
WITHOUT_END = 1000  # saves: no disk is so fast that one is done with them while patience lasts

_STEPS = ("create", "write", "sync", "close", "rename", "sync_folder")
POINTS = (
    *(
        f"{when} {step} {what}"
        for what in ("checkpoint", "manifest")
        for step in _STEPS
        for when in ("before", "after")
    ),
    *(f"within write {what}" for what in ("checkpoint", "manifest")),
    *(
        f"{when} {step} deletion"
        for step in ("unlink", "sync_folder")
        for when in ("before", "after")
    ),
)


class Unsynced(Disk):
    """For files that nobody needs after this process."""

    def sync(self, file: int) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


class Trapdoor(Disk):
    """The real disk, up to a point: there the process ends by its own hand, as if another had killed it."""

    def __init__(self, point: str = "", passes: int = 0) -> None:
        self.point, self.passes = point, passes
        self.what = ""  # that is being done: a checkpoint or the manifest written, or files deleted

    def create(self, path: Path) -> int:
        self.what = "checkpoint" if "cp_" in path.name else "manifest"
        with self._around("create"):
            return super().create(path)

    def write(self, file: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        with self._around("write"):
            if self.point == f"within write {self.what}":
                super().write(file, memoryview(data)[: len(data) // 2], offset)
                self._at(self.point)
            return super().write(file, data, offset)

    def sync(self, file: int) -> None:
        with self._around("sync"):
            super().sync(file)

    def close(self, file: int) -> None:
        with self._around("close"):
            super().close(file)

    def rename(self, source: Path, target: Path) -> None:
        with self._around("rename"):
            super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        with self._around("sync_folder"):
            super().sync_folder(folder)

    def unlink(self, path: Path) -> None:
        self.what = "deletion"
        with self._around("unlink"):
            super().unlink(path)

    @contextmanager
    def _around(self, step: str) -> Iterator[None]:
        what = self.what
        self._at(f"before {step} {what}")
        yield
        self._at(f"after {step} {what}")

    def _at(self, point: str) -> None:
        if point == self.point:
            self.passes -= 1
            if self.passes < 0:
                os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Saved:
    """A save that was acknowledged."""

    sequence: int
    step: int
    seed: int


@dataclass
class Tally:
    """State that the kills left."""

    kills: int = 0
    at_random: int = 0
    at_points: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    unresumable: int = 0
    partial_taken_as_whole: int = 0
    silent_differences: int = 0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not (self.unresumable or self.partial_taken_as_whole or self.silent_differences)

    def as_json(self) -> str:
        return json.dumps(
            {
                **vars(self),
                "at_points": dict(sorted(self.at_points.items())),
                "seconds": round(self.seconds, 2),
            }
        )


def saver(folder: Path, pipe: int, first_seed: int, disk: Disk, saves: int) -> None:
    """Save until killed, going on with the newest checkpoint; every fifth time history is rewound."""
    with CheckpointStore(folder, keep_last=KEEP_LAST, disk=disk) as store:
        step = store.load().step if store.steps() else 0
        for count in range(saves):
            step = max(step - 2, 0) if count % 5 == 4 else step + 1
            seed = first_seed + count
            tier: Tier = "exact" if seed % 2 else "8bit"
            store.save(made(step, seed, numel=NUMEL), moments=tier, wait=True)
            os.write(pipe, f"{store.entries()[-1].sequence} {step} {seed}\n".encode())


def fork_saver(folder: Path, first_seed: int, disk: Disk, saves: int) -> tuple[int, int]:
    """Process id of a saver, and the end of the pipe that it tells its saves through."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    try:
        os.close(reader)
        saver(folder, writer, first_seed, disk, saves)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def end_of(child: int, reader: int, *, after: float | None) -> list[Saved]:
    """Kill a saver after so many seconds, or wait until it has done so itself; the saves it has acknowledged by then."""
    told = b""
    until = None if after is None else time.monotonic() + after
    while True:
        if (
            until is not None
            and not select.select([reader], [], [], max(until - time.monotonic(), 0))[0]
        ):
            os.kill(child, signal.SIGKILL)
            until = None
        if not (more := os.read(reader, 65536)):
            break
        told += more
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        raise RuntimeError(f"a saver should have been killed, it ended with status {status}")
    return [Saved(*map(int, line.split())) for line in told.decode().splitlines()]


class Examiner:
    """Looks at the folder after each kill."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch = folder, scratch
        self.acknowledged: dict[int, Saved] = {}

    def examine(self, saved: list[Saved], tally: Tally) -> None:
        """Count what is wrong with the folder, the saves just acknowledged included."""
        self.acknowledged |= {one.sequence: one for one in saved}
        tally.acknowledged += len(saved)
        last = max(self.acknowledged, default=0)
        store = CheckpointStore(self.folder)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                entries = store.entries()
                if not entries and not last:
                    return
                newest = store.load()
        except (UserError, UserWarning) as error:
            print(f"unresumable: {error}", file=sys.stderr)
            tally.unresumable += 1
            return
        if entries[-1].sequence < last:
            print(
                f"unresumable: save {last} was acknowledged, {entries[-1].sequence} is the newest",
                file=sys.stderr,
            )
            tally.unresumable += 1
        for finding in store.verify():
            if not finding.ok and finding.entry is not None:
                print(f"listed, and not whole: {finding}", file=sys.stderr)
                tally.partial_taken_as_whole += 1
        for entry in entries:
            try:
                snapshot = (
                    newest if entry is entries[-1] else reading.read_entry(self.folder, entry)
                )
            except (FileNotFoundError, UserError):
                continue  # counted above
            told = self.acknowledged.get(entry.sequence)
            right = told is None or (told.step, told.seed) == (snapshot.step, seed_of(snapshot))
            if not right or not same(
                snapshot, self.expected(snapshot.step, seed_of(snapshot), entry.tier)
            ):
                print(f"different: {entry}", file=sys.stderr)
                tally.silent_differences += 1

    def expected(self, step: int, seed: int, tier: Tier) -> Snapshot:
        """State that was saved; for the compact tier, as an undisturbed file returns it."""
        snapshot = made(step, seed, numel=NUMEL)
        if tier == "exact":
            return snapshot
        file.write(snapshot, self.scratch / "expected.ptz", tier=tier, disk=Unsynced())
        return file.read(self.scratch / "expected.ptz")


def run(kills: int, seed: int, folder: Path) -> Tally:
    """Kill so many savers on one folder, alternately at random times and at the points in turn."""
    tally, chance, begun = Tally(), random.Random(seed), time.monotonic()
    points = itertools.cycle(POINTS)
    (folder / "scratch").mkdir()
    examiner = Examiner(folder / "store", folder / "scratch")
    for number in range(kills):
        if number % 2:
            point = next(points)
            passes = chance.randrange(16 if "write checkpoint" in point else 3)
            saved = end_of(
                *fork_saver(examiner.folder, number * 1000, Trapdoor(point, passes), SAVES),
                after=None,
            )
            tally.at_points[point] += 1
        else:
            after = chance.uniform(0, PATIENCE)
            saved = end_of(
                *fork_saver(examiner.folder, number * 1000, Disk(), WITHOUT_END), after=after
            )
            tally.at_random += 1
        tally.kills += 1
        examiner.examine(saved, tally)
    tally.seconds = time.monotonic() - begun
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = run(args.kills, args.seed, Path(folder))
    if args.json:
        print(tally.as_json())
    else:
        for name, value in json.loads(tally.as_json()).items():
            print(f"{name}: {value}")
    sys.exit(not tally.clean)


if __name__ == "__main__":
    main()
