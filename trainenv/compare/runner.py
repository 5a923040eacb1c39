"""Play the missing cells of a comparison over processes; resumable, and no method can end it."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainenv import data
from trainenv.checkpoints.lock import NAME as LOCK
from trainenv.checkpoints.lock import FolderLock
from trainenv.compare.cells import Cell, Row, Task, failed, play, read, write, write_json
from trainenv.compare.contract import Measure, Method, Stop
from trainenv.compare.results import results
from trainenv.compare.scenarios import Scenario
from trainenv.compare.shard import SHARD, WHOLE, Shard
from trainenv.compare.suite import Suite, check_known, noted_scenarios
from trainenv.config.schema import with_whole_paths
from trainenv.distributed import LOCAL, job_pool
from trainenv.tools.json_lines import plain
from trainenv.tools.version import VERSION
from trainenv.types import UserError

# 2: final losses were of a validation part that was twice as large, and is the test part today.
_SCHEMA = 3
_STARTUP = 8.0  # seconds that a process needs to start


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State of a comparison after a cell.

    Attributes:
        row: Row of the cell that has just ended.
        done: Number of finished cells, earlier ones and failed ones included.
        total: Number of all cells.
        seconds_left: Expected seconds until the end, from the times that each method took so far.
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
    executor: str = LOCAL,
    keep: bool = False,
    shard: Shard = WHOLE,
    progress: Callable[[Progress], None] = lambda progress: None,
    stop: Stop = lambda: False,
) -> dict[str, Any]:
    """Play the cells of `suite` that are missing in `folder`, and write `results.json`.

    An interrupt drops the cells that are being played. Finished cells stay, and the same call
    continues with the others. Failed cells count as finished: to play one again, delete its file.

    Args:
        folder: Folder of the comparison: `suite.json`, `cells/`, `results.json`, and `runs/` while
            cells are played.
        suite: Scenarios, methods and seeds to compare.
        methods: Methods by name, at least those of the suite.
        measure: Function that measures the folder of a run.
        workers: Number of processes, one core each; 0 plays in this process. With processes,
            methods and measure are sent to them.
        executor: Place of the processes, see `trainenv.distributed.executors`. On several
            machines, the folder is one that all of them have at the same path.
        keep: True to keep the folders of the runs.
        shard: Share of the cells that is played here; all by default. `merge` joins the shares.
        progress: Function that is called after each cell.
        stop: Function that is called about three times a second (without workers: after each block
            of telemetry). True drops the cells that are being played.

    Returns:
        The content of `results.json`, see `trainenv.compare.results`.

    Raises:
        UserError: The folder holds another comparison, a method is unknown or cannot be sent, or
            no process can start.
    """
    check_known("method", suite.played, methods)
    _check_importable(methods, measure, suite, workers)
    check_folder(folder, suite)
    with alone(folder):
        begin(folder, suite)
        return _played(
            folder, suite, methods, measure, workers, executor, keep, shard, progress, stop
        )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock the folder inside the block: two comparisons would delete each other's runs.

    Raises:
        UserError: Another process plays the comparison, or the folder cannot be made.
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
    executor: str,
    keep: bool,
    shard: Shard,
    progress: Callable[[Progress], None],
    stop: Stop,
) -> dict[str, Any]:
    """Play the missing cells, and return the results."""
    tasks = [
        Task(
            cell=cell,
            scenario=scenario,
            method=methods[cell.method],
            measure=measure,
            folder=folder,
            keep=keep,
        )
        for scenario, cell in shard.of(list(cells(suite)))
    ]
    rows = {task.cell: row for task in tasks if (row := read(folder, task.cell)) is not None}
    waiting = [task for task in tasks if task.cell not in rows]
    estimate = Estimate(workers=max(1, workers))
    estimate.expect({task.cell: task.scenario.seconds for task in waiting})

    def note(row: Row) -> None:
        cell = Cell(scenario=row["scenario"], seed=row["seed"], method=row["method"])
        rows[cell] = row
        estimate.note(cell, row["seconds"])
        progress(
            Progress(
                row=row, done=len(rows), total=len(tasks), seconds_left=estimate.seconds_left()
            )
        )

    def note_result(task: Task, row: Row | None) -> None:
        if row is not None:  # None only where the cell was stopped
            note(row)

    def note_lost(task: Task, reason: str) -> None:
        note(write(folder, failed(task.cell, reason)))

    try:
        if workers:
            with job_pool(play, executor=executor, workers=workers) as pool:
                pool.run(waiting, note_result, note_lost, stop)
        else:
            for task in waiting:
                if stop() or (row := play(task, stop)) is None:
                    break
                note(row)
    finally:
        if not keep:
            shutil.rmtree(folder / "runs", ignore_errors=True)
    found = write_results(folder, suite, [rows[one.cell] for one in tasks if one.cell in rows])
    return found | {"finished": len(rows) == len(tasks)}


def write_results(folder: Path, suite: Suite, rows: Sequence[Row]) -> dict[str, Any]:
    """Write `results.json` of the rows that are there, and return its content."""
    found: dict[str, Any] = plain(results(suite, rows))
    write_json(folder / "results.json", found)
    return found


def cells(suite: Suite) -> Iterator[tuple[Scenario, Cell]]:
    """Yield every cell with its scenario, in the order in which they are played.

    The order is balanced at any interruption: all methods of a run come together, and every
    scenario has its first run before any has its second. Seeds take turns.
    """
    for turn in range(suite.seeds):
        for place, scenario in enumerate(suite.scenarios):
            for method in suite.played:
                seed = (turn + place) % suite.seeds
                yield scenario, Cell(scenario=scenario.name, seed=seed, method=method)


def expected_seconds(folder: Path, suite: Suite, workers: int, shard: Shard = WHOLE) -> float:
    """Estimate the seconds that the missing cells of a folder will take."""
    estimate = Estimate(workers=max(1, workers))
    wanted = shard.of(list(cells(suite)))
    estimate.expect({cell: one.seconds for one, cell in wanted if read(folder, cell) is None})
    return estimate.seconds_left()


def begin(folder: Path, suite: Suite) -> None:
    """Write the suite to the folder.

    Raises:
        UserError: See `check_folder`; or the file cannot be written.
    """
    asked = check_folder(folder, suite)
    write_json(folder / "suite.json", {"schema": _SCHEMA, "version": VERSION, **asked})


def check_folder(folder: Path, suite: Suite) -> dict[str, Any]:
    """Return what the folder is to note: the suite, the scenarios it has, and digests of texts.

    Nothing is written.

    Raises:
        UserError: The folder holds something else, or a comparison with other scenarios, or other
            text, under the same names, or an unfinished one of an earlier version.
    """
    asked = json.loads(json.dumps(suite.to_json()))
    digests = _digests(suite)
    if (folder / "suite.json").is_file():
        noted = _read_noted(folder / "suite.json")
        _check_same_suite(folder, noted, asked)
        _check_same_text(folder, noted, digests)
        _check_same_parts(folder, noted, suite)
        digests = {**noted.digests, **digests}
        merged = {**noted.scenarios, **{one["name"]: one for one in asked["scenarios"]}}
        asked["scenarios"] = list(merged.values())
    elif folder.is_dir() and any(
        file.name != LOCK and not file.name.startswith(SHARD) for file in folder.iterdir()
    ):
        raise UserError(
            f"expected an empty folder or a comparison, found other files in {folder}; "
            "give another --out"
        )
    if not digests:
        return dict(asked)
    return {**asked, "corpora": digests}


@dataclass(frozen=True, kw_only=True)
class _Noted:
    """Content of `suite.json`.

    Attributes:
        name: Name of the suite.
        scenarios: Scenarios by name, as JSON values.
        digests: Digests of the users' texts, by scenario.
        schema: Version of the file.
    """

    name: str
    scenarios: Mapping[str, Mapping[str, Any]]
    digests: Mapping[str, str]
    schema: int


def _read_noted(path: Path) -> _Noted:
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return _Noted(
            name=noted["name"],
            scenarios={
                scenario["name"]: {**scenario, "corpus": with_whole_paths(scenario["corpus"])}
                for scenario in noted_scenarios(noted)
            },
            digests=dict(noted.get("corpora", {})),
            schema=int(noted.get("schema", 0)),
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"expected the suite of a comparison in {path}, found something else; "
            "give another --out"
        ) from None


def _check_same_suite(folder: Path, noted: _Noted, asked: Mapping[str, Any]) -> None:
    different = ""
    if noted.name != asked["name"]:
        different = f"expected {asked['name']!r}, found {noted.name!r}"
    for scenario in asked["scenarios"]:
        name = scenario["name"]
        if not different and noted.scenarios.get(name, scenario) != scenario:
            different = f"its scenario {name!r} is another"
    if different:
        raise UserError(
            f"{folder} holds the cells of another suite ({different}); give another --out"
        )


def _check_same_text(folder: Path, noted: _Noted, digests: Mapping[str, str]) -> None:
    for scenario, digest in digests.items():
        before = noted.digests.get(scenario, digest)
        if before != digest:
            raise UserError(
                f"{folder} holds cells that were trained on other text: the digest of the corpus "
                f"of scenario {scenario!r} was {before}, is {digest}; put the text back, or give "
                "another --out"
            )


def _check_same_parts(folder: Path, noted: _Noted, suite: Suite) -> None:
    """Refuse to add cells to those that were measured on another part of the text."""
    if noted.schema >= _SCHEMA or all(read(folder, cell) is not None for _, cell in cells(suite)):
        return
    raise UserError(
        f"{folder} holds cells of an earlier version, whose final losses are of another part of "
        "the text; finish it with that version, or give another --out"
    )


def _digests(suite: Suite) -> dict[str, str]:
    """Return the digests of texts in the user's own files, by scenario."""
    configs = {scenario.name: scenario.config(0).corpus for scenario in suite.scenarios}
    return {
        name: data.identity(data.load(config))
        for name, config in configs.items()
        if config.path is not None
    }


@dataclass(kw_only=True)
class Estimate:
    """Estimate of the time left.

    The seconds expected of a scenario are scaled by what its method took in finished cells.

    Args:
        workers: Number of processes, at least 1.
    """

    workers: int
    # Seconds of the cells to come.
    _expected: dict[Cell, float] = field(default_factory=dict, init=False)
    # Expected and real seconds of finished cells, by method.
    _took: dict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list), init=False
    )

    def expect(self, seconds: Mapping[Cell, float]) -> None:
        """Add cells to play, with the seconds that training alone takes for each."""
        self._expected |= seconds

    def note(self, cell: Cell, seconds: float) -> None:
        """Take in the seconds that a cell took."""
        self._took[cell.method].append((self._expected.pop(cell), seconds))

    def seconds_left(self) -> float:
        """Return the expected seconds of wall-clock time until all cells are played."""
        if not self._expected:
            return 0.0
        overall = _ratio([pair for pairs in self._took.values() for pair in pairs])
        ratios = {method: _ratio(pairs) for method, pairs in self._took.items()}
        each = [
            seconds * ratios.get(cell.method, overall) for cell, seconds in self._expected.items()
        ]
        left = max(sum(each) / self.workers, *each)
        if self._took:
            return left
        return _STARTUP + left


def _ratio(pairs: list[tuple[float, float]]) -> float:
    """Return real over expected seconds; 1 if nothing is known yet."""
    expected = sum(pair[0] for pair in pairs)
    took = sum(pair[1] for pair in pairs)
    if expected and took:
        return took / expected
    return 1.0


def _check_importable(
    methods: Mapping[str, Method], measure: Measure, suite: Suite, workers: int
) -> None:
    if not workers:
        return
    parts = {"measure": measure, **{name: methods[name] for name in suite.played}}
    for name, part in parts.items():
        if "<" in getattr(part, "__qualname__", ""):  # such as <lambda>
            raise UserError(
                f"{name} must be a function at the top of a module, found {part!r}; move it there, "
                "so that other processes can import it"
            )
