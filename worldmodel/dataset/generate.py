"""Build a data set over processes; resumable, and a process that dies costs only its trunk.

generate("branches", sample(200, seed=0), make_run, workers=4)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainenv.distributed import LOCAL, job_pool
from trainenv.types import Fold, UserError
from trainenv.worldmodel.dataset.contract import MakeRun
from trainenv.worldmodel.dataset.design import Design
from trainenv.worldmodel.dataset.shard import ShardMaker, ShardResult
from trainenv.worldmodel.dataset.store import Shards
from trainenv.worldmodel.dataset.texts import write_texts
from trainenv.worldmodel.dataset.trunks import Trunk

_EVERY = 100  # about the number of legal actions


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State of the build after a trunk.

    Attributes:
        trunk: Name of the trunk that has just ended.
        error: Fault of this trunk, in words; empty if there was none.
        done: Number of finished trunks, earlier ones included.
        failed: Number of trunks that failed.
        total: Number of wanted trunks.
        steps: Optimizer steps trained in this call.
        seconds: Seconds since the start of this call.
        seconds_left: Expected seconds until the end, from the costs of the remaining trunks.
    """

    trunk: str
    error: str
    done: int
    failed: int
    total: int
    steps: int
    seconds: float
    seconds_left: float


@dataclass(kw_only=True)
class Generated:
    """Result of a call of `generate`.

    Attributes:
        made: Trunks made now, in the order in which they were finished.
        there: Trunks that existed before.
        failed: Trunks that could not be made, with the reasons.
        interrupted: Flag: `stop` ended the call before all trunks were made.
        steps: Optimizer steps trained.
        seconds: Seconds of wall-clock time.
        core_seconds: Seconds of processor time.
    """

    made: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    steps: int = 0
    seconds: float = 0.0
    core_seconds: float = 0.0


def generate(
    folder: str | Path,
    trunks: Sequence[Trunk],
    make_run: MakeRun,
    *,
    design: Design | None = None,
    fold: Fold | None = None,
    workers: int = 1,
    executor: str = LOCAL,
    progress: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Generated:
    """Make the missing shards of a data set.

    The same trunks and fold give the same bytes, no matter how often the build was interrupted. An
    interrupt (Ctrl-C) drops the trunks that are being made, ends the processes and is raised again;
    finished trunks stay.

    Args:
        folder: Folder of the data set; it is made if it does not exist.
        trunks: All wanted trunks, with different names.
        make_run: Function from configuration overrides to a run. With workers, it is at the top of
            a module, so that other processes can import it.
        design: Design of the branches; None for the default one.
        fold: Function that trains runs side by side, such as `trainenv.rollouts.folded.Folded`;
            None trains branches one after the other. With workers, it is at the top of a module.
        workers: Number of processes, which train on one thread each; 0 builds in this process.
        executor: Place of the processes, see `trainenv.distributed.executors`.
        progress: Function that is called after each trunk.
        stop: Function that is called about three times a second (without workers: before each
            trunk). True drops the trunks that are being made, and the call returns.

    Raises:
        UserError: The folder holds something else, or no process can start.
    """
    design = design or Design()
    for argument, given in {"make_run": make_run, "fold": fold}.items():
        if workers and "<" in (name := getattr(given, "__qualname__", "")):
            raise UserError(
                f"{argument} must be a function at the top of a module, found {name}; move it "
                "there, so that other processes can import it"
            )
    if len({trunk.name for trunk in trunks}) < len(trunks):
        raise UserError(
            "trunks must have different names, found one twice; sample them with one seed and "
            "without overlap"
        )
    shards = Shards.begin(Path(folder), design)
    texts = write_texts(shards.folder / "corpora")
    report = Generated()
    started = time.perf_counter()
    waiting = []
    for trunk in trunks:
        if shards.holds(trunk):
            report.there.append(trunk.name)
        else:
            waiting.append(trunk)
    # The longest first, so that no process is left with a long one at the end.
    waiting.sort(key=lambda trunk: -cost(trunk, design))
    costs = {trunk.name: cost(trunk, design) for trunk in waiting}
    spent = 0.0

    def note(trunk: Trunk, result: ShardResult) -> None:
        nonlocal spent
        if result.error:
            report.failed[trunk.name] = result.error
        else:
            report.made.append(trunk.name)
        spent += costs.pop(trunk.name)
        report.steps += result.steps
        report.core_seconds += result.core_seconds
        seconds = time.perf_counter() - started
        progress(
            Progress(
                trunk=trunk.name,
                error=result.error,
                done=len(report.there) + len(report.made),
                failed=len(report.failed),
                total=len(trunks),
                steps=report.steps,
                seconds=seconds,
                seconds_left=seconds * sum(costs.values()) / spent,
            )
        )

    def note_lost(trunk: Trunk, reason: str) -> None:
        note(trunk, ShardResult(error=reason))

    make = ShardMaker(
        folder=shards.folder, design=design, texts=texts, make_run=make_run, fold=fold
    )
    try:
        if workers:
            with job_pool(make, executor=executor, workers=workers, tries=1, daemon=True) as pool:
                report.interrupted = pool.run(waiting, note, note_lost, stop)
        else:
            for trunk in waiting:
                if stop():
                    report.interrupted = True
                    break
                note(trunk, make(trunk))
    finally:
        for trunk in waiting:
            shards.sweep(trunk.name)
    report.seconds = time.perf_counter() - started
    return report


def cost(trunk: Trunk, design: Design) -> float:
    """Estimate the milliseconds of one core that a trunk takes, to compare trunks.

    A step takes 1 ms + 1.3 ms a layer + 20 ms a GFLOP, as measured for widths 16–128 on one core;
    half of that in a fold.
    """
    lengths = design.lengths(trunk.steps)
    size = trunk.size
    snapshots = (
        design.random
        + min(design.after_faults, len(trunk.faults))
        + (design.fired + design.rewound) / 2
    )
    branches = 1 + design.singles + design.sequences + 2 * design.replicas * design.replicated
    rest = design.continued * trunk.steps / 3
    if design.folds(size.width):
        branches = (branches + _EVERY * design.exhaustive) / 2
    steps = trunk.steps + snapshots * branches * (lengths.horizon + lengths.cooldown + rest)
    gigaflops = 6e-9 * size.parameters * size.batch_size * size.context
    return steps * (1 + 1.3 * size.layers + 20 * gigaflops)
