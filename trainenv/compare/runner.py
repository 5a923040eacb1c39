"""Play every cell that is not there yet, over processes: resumable, interruptible, and no method can end it."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainenv import data
from trainenv.checkpoints.lock import NAME as LOCK
from trainenv.checkpoints.lock import FolderLock
from trainenv.compare.cells import Cell, Row, Task, play, read, write_json
from trainenv.compare.contract import Measure, Method, Stop
from trainenv.compare.results import results
from trainenv.compare.suite import Suite, check_known
from trainenv.compare.trunks import Trunk
from trainenv.config.schema import with_whole_paths
from trainenv.distributed.job_pool import Crew
from trainenv.tools.json_lines import plain
from trainenv.tools.version import VERSION
from trainenv.types import UserError

_STARTUP = 8.0  # seconds until a process has loaded what it needs


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a comparison is, after each cell.

    Attributes:
        row: of the cell that has just ended.
        done: cells that are there, those from before and those that failed included, of `total`.
        seconds_left: an estimate from what each method took so far.
    """

    row: Row
    done: int
    total: int
    seconds_left: float


def compare(
    folder: Path,
    suite: Suite,
    methods: Mapping[str, Method],
    measure: Measure,
    *,
    workers: int = 2,
    keep: bool = False,
    progress: Callable[[Progress], None] = lambda progress: None,
    stop: Stop = lambda: False,
) -> dict[str, Any]:
    """Play the cells of `suite` that are not in `folder` yet; returns what is in `results.json` then (see `results`).

    An interrupt drops the cells in hand; what is measured stays, and the same call goes on from
    there. A cell that failed is there too: to play it again, delete its file.

    Args:
        folder: of the comparison: `suite.json`, `cells/`, `results.json`; `runs/` while it works.
        suite: what is compared.
        methods: by name, at least those that the suite names.
        measure: says what became of a run.
        workers: processes, one core each; 0 plays in this one. With processes, methods and measure
            are sent to them.
        keep: whether the runs' folders stay.
        progress: called after each cell.
        stop: asked about three times a second (without workers: after each block of telemetry);
            True drops the cells in hand.

    Raises:
        UserError: the folder holds another comparison, a method is unknown or can't be sent, or
            processes can't work at all.
    """
    check_known("method", suite.played, methods)
    _check_importable(methods, measure, suite, workers)
    check_folder(folder, suite)
    with _alone(folder):
        begin(folder, suite)
        return _played(folder, suite, methods, measure, workers, keep, progress, stop)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A comparison has one process that plays it: two would delete each other's runs.

    Raises:
        UserError: another one plays it, or the folder can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} must be a folder to compare in, found: {error.strerror}; give another --out"
        ) from None
    lock = FolderLock(folder)
    lock.take()
    try:
        yield
    finally:
        lock.release()


def _played(
    folder: Path,
    suite: Suite,
    methods: Mapping[str, Method],
    measure: Measure,
    workers: int,
    keep: bool,
    progress: Callable[[Progress], None],
    stop: Stop,
) -> dict[str, Any]:
    """Play what is missing; returns the results."""
    tasks = [
        Task(
            cell=cell,
            trunk=trunk,
            method=methods[cell.method],
            measure=measure,
            folder=folder,
            keep=keep,
        )
        for trunk, cell in cells(suite)
    ]
    rows = {task.cell: row for task in tasks if (row := read(folder, task.cell)) is not None}
    waiting = [task for task in tasks if task.cell not in rows]
    estimate = Estimate(workers=max(1, workers))
    estimate.expect({task.cell: task.trunk.seconds for task in waiting})

    def note(row: Row) -> None:
        cell = Cell(trunk=row["trunk"], seed=row["seed"], method=row["method"])
        rows[cell] = row
        estimate.note(cell, row["seconds"])
        progress(
            Progress(
                row=row, done=len(rows), total=len(tasks), seconds_left=estimate.seconds_left()
            )
        )

    try:
        if workers:
            with Crew(workers) as crew:
                crew.work(waiting, note, stop)
        else:
            for task in waiting:
                if stop() or (row := play(task, stop)) is None:
                    break
                note(row)
    finally:
        if not keep:
            shutil.rmtree(folder / "runs", ignore_errors=True)
    found: dict[str, Any] = plain(
        results(suite, [rows[task.cell] for task in tasks if task.cell in rows])
    )
    write_json(folder / "results.json", found)
    return found


def cells(suite: Suite) -> Iterator[tuple[Trunk, Cell]]:
    """Every cell, with its trunk, in the order in which they are played: whatever is there when it is interrupted is balanced.

    All methods of a run come together, and a run of each trunk before the second of any; seeds take
    turns.
    """
    for turn in range(suite.seeds):
        for place, trunk in enumerate(suite.trunks):
            for method in suite.played:
                yield (
                    trunk,
                    Cell(trunk=trunk.name, seed=(turn + place) % suite.seeds, method=method),
                )


def expected_seconds(folder: Path, suite: Suite, workers: int) -> float:
    """About how long the cells will take that are not in the folder yet."""
    estimate = Estimate(workers=max(1, workers))
    estimate.expect(
        {cell: trunk.seconds for trunk, cell in cells(suite) if read(folder, cell) is None}
    )
    return estimate.seconds_left()


def begin(folder: Path, suite: Suite) -> None:
    """Note in the folder what is asked.

    Raises:
        UserError: see `check_folder`, or it can't be written.
    """
    write_json(
        folder / "suite.json", {"schema": 1, "version": VERSION, **check_folder(folder, suite)}
    )


def check_folder(folder: Path, suite: Suite) -> dict[str, Any]:
    """What is to be noted in the folder: what is asked, and the trunks that are there.

    Nothing is written.

    Raises:
        UserError: it holds something else, or a comparison of other trunks, or of other text, under
            the same names.
    """
    path = folder / "suite.json"
    asked = json.loads(json.dumps(suite.to_json()))
    digests = _digests(suite)
    if path.is_file():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            known = {
                trunk["name"]: {**trunk, "corpus": with_whole_paths(trunk["corpus"])}
                for trunk in there["trunks"]
            }
            name = there["name"]
            trained_on = dict(there.get("corpora", {}))
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path} is no suite of ours; give another --out") from None
        differing = next((t["name"] for t in asked["trunks"] if known.get(t["name"], t) != t), None)
        if name != suite.name or differing is not None:
            what = (
                f"its trunk {differing!r} is another"
                if name == suite.name
                else f"expected {suite.name!r}, found {name!r}"
            )
            raise UserError(
                f"{folder} holds the cells of another suite ({what}); give another --out"
            )
        for trunk, digest in digests.items():
            if trained_on.get(trunk, digest) != digest:
                raise UserError(
                    f"{folder} holds cells that were trained on other text: the digest of the corpus of trunk {trunk!r} was "
                    f"{trained_on[trunk]}, is {digest}; put the text back, or give another --out"
                )
        digests = {**trained_on, **digests}
        asked["trunks"] = list(
            {**known, **{trunk["name"]: trunk for trunk in asked["trunks"]}}.values()
        )
    elif folder.is_dir() and any(file.name != LOCK for file in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no comparison; give another --out")
    return {**asked, "corpora": digests} if digests else dict(asked)


def _digests(suite: Suite) -> dict[str, str]:
    """The digests of the texts that lie in files of the user's, by trunk."""
    configs = {trunk.name: trunk.config(0).corpus for trunk in suite.trunks}
    return {
        name: data.identity(data.load(config))
        for name, config in configs.items()
        if config.path is not None
    }


@dataclass(kw_only=True)
class Estimate:
    """How long it will take: what is known of a trunk, times what its methods have taken of that so far.

    Args:
        workers: processes.
    """

    workers: int
    _expected: dict[Cell, float] = field(
        default_factory=dict, init=False
    )  # seconds of the cells to come
    _took: dict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list), init=False
    )

    def expect(self, seconds: Mapping[Cell, float]) -> None:
        """Cells that are to be played, and about how long each takes a method that does nothing beside training."""
        self._expected |= seconds

    def note(self, cell: Cell, seconds: float) -> None:
        """A cell was played."""
        self._took[cell.method].append((self._expected.pop(cell), seconds))

    def seconds_left(self) -> float:
        """Of wall clock."""
        overall = _ratio([pair for pairs in self._took.values() for pair in pairs])
        ratios = {method: _ratio(pairs) for method, pairs in self._took.items()}
        each = [
            seconds * ratios.get(cell.method, overall) for cell, seconds in self._expected.items()
        ]
        startup = 0.0 if self._took or not each else _STARTUP
        return startup + max(sum(each) / self.workers, max(each, default=0.0))


def _ratio(pairs: list[tuple[float, float]]) -> float:
    expected = sum(pair[0] for pair in pairs)
    took = sum(pair[1] for pair in pairs)
    return took / expected if expected and took else 1.0


def _check_importable(
    methods: Mapping[str, Method], measure: Measure, suite: Suite, workers: int
) -> None:
    for name, part in {
        "measure": measure,
        **{name: methods[name] for name in suite.played},
    }.items():
        if workers and "<" in getattr(part, "__qualname__", ""):
            raise UserError(
                f"{name} must be a function at the top of a module, found {part!r}; other processes import it"
            )
