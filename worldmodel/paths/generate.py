"""Build a data set of paths over processes; resumable, and a process that dies costs its group."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainenv.distributed import LOCAL, job_pool
from trainenv.tools.error_text import describe_error
from trainenv.types import RunGroup
from trainenv.worldmodel.dataset.texts import write_texts
from trainenv.worldmodel.paths.collect import Policy, collect
from trainenv.worldmodel.paths.groups import Group
from trainenv.worldmodel.paths.store import PathFiles

MakeRun = Callable[[Mapping[str, Any]], Any]
Fold = Callable[[Sequence[Any]], RunGroup[Any]]


@dataclass(frozen=True, kw_only=True)
class GroupMaker:
    """Function of a group that writes its file; holds all that a worker process needs for it.

    Attributes:
        folder: Folder of the data set.
        texts: Configuration of each text.
        make_run: Function from overrides of the configuration to a run.
        fold: Function that trains runs side by side.
        policy: Planner to collect with; None for random paths.
    """

    folder: Path
    texts: Mapping[str, Mapping[str, Any]]
    make_run: MakeRun
    fold: Fold
    policy: Policy | None = None

    def __call__(self, group: Group) -> str:
        """Write the file of a group; return a fault in words, empty without one."""
        try:
            rows = collect(group, self.texts, self.make_run, self.fold, self.policy)
            PathFiles(self.folder).write(group, rows)
        except Exception as error:  # whatever a run may raise: the other groups are still made
            return describe_error(error)
        return ""


@dataclass(kw_only=True)
class Collected:
    """Result of a call of `generate`.

    Attributes:
        made: Groups made now.
        there: Groups that existed before.
        failed: Groups that could not be made, with the reasons.
        interrupted: Flag: `stop` ended the call before all groups were made.
        seconds: Seconds of wall-clock time.
    """

    made: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    seconds: float = 0.0


def generate(
    folder: Path,
    groups: Sequence[Group],
    make_run: MakeRun,
    fold: Fold,
    *,
    policy: Policy | None = None,
    workers: int = 1,
    executor: str = LOCAL,
    progress: Callable[[Collected], None] = lambda report: None,
    stop: Callable[[], bool] = lambda: False,
) -> Collected:
    """Make the missing groups of a data set. The same groups give the same rows.

    Args:
        folder: Folder of the data set; it is made if it does not exist.
        groups: All wanted groups, with different names.
        make_run: Function from overrides of the configuration to a run, at the top of a module.
        fold: Function that trains runs side by side, at the top of a module.
        policy: Planner to collect with, which other processes can receive; None for random paths.
        workers: Number of processes, one core each; 0 builds in this process.
        executor: Place of the processes, see `trainenv.distributed.executors`.
        progress: Function that is called after each group.
        stop: Function that ends the call when it returns True; finished groups stay.

    Raises:
        UserError: The folder holds something else, or no process can start.
    """
    files = PathFiles.begin(Path(folder))
    make = GroupMaker(
        folder=files.folder,
        texts=write_texts(files.folder / "corpora"),
        make_run=make_run,
        fold=fold,
        policy=policy,
    )
    report = Collected(there=[group.name for group in groups if files.holds(group)])
    waiting = [group for group in groups if group.name not in set(report.there)]
    started = time.perf_counter()

    def note(group: Group, error: str) -> None:
        if error:
            report.failed[group.name] = error
        else:
            report.made.append(group.name)
        report.seconds = time.perf_counter() - started
        progress(report)

    if workers:
        with job_pool(make, executor=executor, workers=workers, tries=1, daemon=True) as pool:
            report.interrupted = pool.run(waiting, note, note, stop)
        return report
    for group in waiting:
        if stop():
            report.interrupted = True
            break
        note(group, make(group))
    return report
