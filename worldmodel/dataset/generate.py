"""Build a data set over processes: resumable, interruptible, and one that dies takes only its trunk with it.

generate("branches", sample(200, seed=0), make_run, workers=4)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainenv.types import Fold, UserError
from trainenv.worldmodel.dataset.contract import MakeRun
from trainenv.worldmodel.dataset.crew import Crew, Job, make_shard
from trainenv.worldmodel.dataset.design import Design
from trainenv.worldmodel.dataset.store import Shards
from trainenv.worldmodel.dataset.texts import write_texts
from trainenv.worldmodel.dataset.trunks import Trunk

_EVERY = 100  # legal actions, about


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the building is, after each trunk.

    Attributes:
        trunk: the one that has just ended, and what was wrong with it, if anything.
        done: trunks that are there, those from before included; `failed` those that can't be made.
        total: trunks wanted.
        steps: optimizer steps trained since the start; `seconds` since then.
        seconds_left: an estimate from the cost of what is left.
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
    """What came of it.

    Attributes:
        made: trunks made now, in the order they were finished; `there` those that were there
            before.
        failed: trunks that could not be made, and why.
        interrupted: whether `stop` ended it before all was made.
        steps: optimizer steps trained, `seconds` of wall-clock time and `core_seconds` of the
            processes' own.
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
    progress: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Generated:
    """Make the shards that are not there yet.

    The same trunks and fold give the same bytes, however often it was interrupted.

    An interrupt (Ctrl-C) drops the trunks in hand, ends the processes and is raised again; what is
    finished stays.

    Args:
        folder: of the data set; made if it does not exist.
        trunks: all that are wanted; different names.
        make_run: configuration → run. With workers, a function at the top of a module, so that
            other processes can import it.
        design: of the branches; the default one if left out.
        fold: puts runs side by side, `trainenv.rollouts.folded.Folded`; without it branches are
            trained one after the other. With workers, at the top of a module too.
        workers: processes; 0 builds in this one. Each trains on one thread.
        progress: called after each trunk.
        stop: asked about twice a second (without workers: before each trunk); True drops the trunks
            in hand and returns.

    Raises:
        UserError: the folder holds something else, or the processes can't work at all.
    """
    design = Design() if design is None else design
    for argument, given in {"make_run": make_run, "fold": fold}.items():
        if workers and "<" in (name := getattr(given, "__qualname__", "")):
            raise UserError(
                f"{argument} must be a function at the top of a module, found {name}; other processes import it"
            )
    if len({trunk.name for trunk in trunks}) < len(trunks):
        raise UserError(
            "trunks must have different names, found one twice; sample them with one seed and without overlap"
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
    # The longest first: no process is left alone with a long one at the end.
    waiting.sort(key=lambda trunk: -cost(trunk, design))
    costs = {trunk.name: cost(trunk, design) for trunk in waiting}
    spent = 0.0

    def note(name: str, error: str, steps: int, core_seconds: float) -> None:
        nonlocal spent
        if error:
            report.failed[name] = error
        else:
            report.made.append(name)
        spent += costs.pop(name)
        report.steps = report.steps + steps
        report.core_seconds = report.core_seconds + core_seconds
        seconds = time.perf_counter() - started
        progress(
            Progress(
                trunk=name,
                error=error,
                done=len(report.there) + len(report.made),
                failed=len(report.failed),
                total=len(trunks),
                steps=report.steps,
                seconds=seconds,
                seconds_left=seconds * sum(costs.values()) / spent,
            )
        )

    job = Job(folder=shards.folder, design=design, texts=texts, make_run=make_run, fold=fold)
    try:
        if workers:
            with Crew(job, workers) as crew:
                report.interrupted = crew.work(waiting, note, stop)
        else:
            for trunk in waiting:
                if stop():
                    report.interrupted = True
                    break
                note(trunk.name, *make_shard(job, trunk))
    finally:
        for trunk in waiting:
            shards.sweep(trunk.name)
    report.seconds = time.perf_counter() - started
    return report


def cost(trunk: Trunk, design: Design) -> float:
    """About how many milliseconds of a core a trunk takes: to weigh trunks against each other.

    A step: 1 ms + 1.3 ms a layer + 20 ms a GFLOP, as measured for widths 16–128 on one core; half
    of it in a fold.
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
    folds = design.folds(size.width)
    branches = (branches + _EVERY * design.exhaustive) / 2 if folds else branches
    steps = trunk.steps + snapshots * branches * (lengths.horizon + lengths.cooldown + rest)
    gigaflops = 6e-9 * size.parameters * size.batch_size * size.context
    return steps * (1 + 1.3 * size.layers + 20 * gigaflops)
