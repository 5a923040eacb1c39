"""Checkpoints, snapshots and forks of GPT-2 small, compared with torch and other libraries.

The model has 124 M parameters and is trained with AdamW. It is first trained for some steps, in
bf16 on the source text of the standard library, so that weights and moments are realistic. The
compared methods take turns, in an order that rotates from round to round. Figures are medians with
minimum and maximum. Ratios are medians over rounds of ours ÷ theirs, both from the same round.

    size        Size of a file: weights and moments by `torch.save`, by
                `torch.distributed.checkpoint` (dcp), by safetensors, and by a `CheckpointStore`,
                exact and with moments in 8 bits.
    save        Time from memory to a file. Ours waits until the data are on the disk (fsync), as
                dcp does by default. torch.save and safetensors do not, so torch.save followed by an
                fsync has a row of its own. The disk has written all earlier data before each save.
    load        Time into memory, from files in the page cache; ours verifies every checksum.
                *Fresh* is one load in a new process, as when a run resumes: all memory is touched
                for the first time. *Warm* is a process that loads again and again, as when a run is
                rolled back. `CPU` is the time of all cores together: ours uses all cores. A loader
                that only maps its file does the work later; `then read` is one pass over the loaded
                tensors.
    stand-still Time that training waits for a save (`run.snapshot()` and `store.save(snapshot)`),
                against a clone of every tensor of model and optimizer. Also with an earlier
                snapshot kept, with which the new one is then compared.
    step        Time of a training step while a save is being written, against a step without one;
                and the training time that a save costs in total, the stand-still included.
    fork        Snapshot and restore, against a clone of every tensor and a copy back, with a
                training step in between; and `run.fork()` against a deepcopy of model and
                optimizer.

Where memory is allocated in this process, freed memory is first returned to the system. Both sides
then get new memory; otherwise chance would decide which of them reuses memory that was touched
before.

    python benchmarks/checkpoint.py --json

It takes about ten minutes on two cores, 8 GB of memory and 8 GB of disk.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from trainenv import Snapshot, TrainingRun, data
from trainenv.checkpoints.store import CheckpointStore
from trainenv.config.schema import RunConfig
from trainenv.models import build
from trainenv.training.optimizers import adamw
from trainenv.training.snapshots import tensors_of
from trainenv.types import Tier

VOCABULARY = 50257
TIERS: tuple[Tier, ...] = ("exact", "8bit")
DISK_NEEDED = 8 << 30  # bytes
OPPONENTS = {
    "save": "torch.save, fsync",
    "load fresh": "torch.save's",
    "load warm": "torch.save's",
    "load fresh, CPU": "torch.save's",
    "load fresh, then read": "torch.save's",
    "stand-still": "its clone",
    "step": "alone",
    "fork": "what people do instead",
}
INSTEAD = {
    "snapshot, restore": "clone, copy back",
    "snapshot": "clone",
    "restore": "copy back",
    "fork": "deepcopy",
}
Times = dict[str, list[float]]  # seconds by method, one value a round


class Load(NamedTuple):
    """Times of one load, in seconds.

    Attributes:
        seconds: Wall-clock time of the load.
        cpu: Processor time of the load, all cores together.
        then_read: Wall-clock time of reading every element once afterwards.
    """

    seconds: float
    cpu: float
    then_read: float


class BytePairs:
    """Batches of text in which two bytes are a token.

    The vocabulary is as large as that of GPT-2, without its tokenizer.
    """

    def __init__(self, config: RunConfig) -> None:
        self.context = config.model.context
        corpus = data.load(config.corpus)
        self._bytes = data.CorpusBatches(
            corpus=corpus, context=2 * self.context + 1, batch_size=config.batch_size
        )

    def __call__(self, index: int) -> Tensor:
        tokens: Tensor = self._bytes(index).micro[0]
        return (tokens[:, 0::2] * 256 + tokens[:, 1::2]) % VOCABULARY


def trained(steps: int) -> TrainingRun:
    """Train GPT-2 small for some steps of 4 × 128 tokens."""
    overrides = {
        "batch_size": 4,
        "accumulation": 1,
        "device": "cpu",
        "corpus.name": "stdlib",
        "corpus.tokenizer": "bytes",
        "model.context": 128,
        "model.positions": 1024,
        "schedule.warmup": 10,
        "monitor.enabled": False,
    }
    config = RunConfig.load("small", overrides)
    model = build.build(config, VOCABULARY, torch.device("cpu"))
    run = TrainingRun(model, adamw(model, config.optimizer), BytePairs(config), config)
    run.advance(steps)
    return run


def live_tensors(run: TrainingRun) -> list[Tensor]:
    """List every tensor of model and optimizer, each once."""
    found = [*run.model.state_dict().values(), *tensors_of(run.optimizer.state_dict())]
    return list({(t.data_ptr(), t.shape): t.detach() for t in found}.values())


def clones(run: TrainingRun) -> list[Tensor]:
    """Clone the tensors of `live_tensors`."""
    return [tensor.clone() for tensor in live_tensors(run)]


def give_back() -> None:
    """Return freed memory to the system, where the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def writers(run: TrainingRun, snapshot: Snapshot) -> dict[str, Callable[[Path], None]]:
    """Functions that save the run at a path where no file is yet, by method."""

    def with_torch(path: Path) -> None:
        torch.save({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}, path)

    def with_torch_and_fsync(path: Path) -> None:
        with path.open("wb") as file:
            torch.save(
                {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}, file
            )
            file.flush()
            os.fsync(file.fileno())

    def with_dcp(path: Path) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.save(dict(snapshot.tensors), checkpoint_id=path, no_dist=True)

    def with_safetensors(path: Path) -> None:
        from safetensors.torch import save_file

        save_file(dict(snapshot.tensors), path)

    def with_ours(path: Path, tier: Tier) -> None:
        with CheckpointStore(path, moments=tier) as store:
            store.save(snapshot, wait=True)

    return {
        "torch.save": with_torch,
        "torch.save, fsync": with_torch_and_fsync,
        "dcp": with_dcp,
        "safetensors": with_safetensors,
        "exact": lambda path: with_ours(path, "exact"),
        "8bit": lambda path: with_ours(path, "8bit"),
    }


def read(kind: str, path: Path) -> list[Tensor]:
    """Load a file that a function of `writers` saved."""
    if kind in TIERS:
        return list(CheckpointStore(path).load().tensors.values())
    if kind == "safetensors":
        from safetensors.torch import load_file

        return list(load_file(path).values())
    if kind == "dcp":
        import torch.distributed.checkpoint as dcp

        reader = dcp.FileSystemReader(path)
        known: dict[str, Any] = reader.read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(found.size, dtype=found.properties.dtype)
            for name, found in known.items()
        }
        dcp.load(tensors, storage_reader=reader, no_dist=True)
        return list(tensors.values())
    return list(tensors_of(torch.load(path)))


def bytes_at(path: Path) -> int:
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def save_times(run: TrainingRun, folder: Path, rounds: int) -> tuple[Times, dict[str, int]]:
    """Measure seconds and bytes of each way to save; the files of the last round are kept."""
    snapshot = run.snapshot()
    ways = writers(run, snapshot)
    times: Times = {name: [] for name in ways}
    for turn in range(rounds):
        for name in rotated(ways, turn):
            path = folder / name
            _delete(path)
            os.sync()
            times[name].append(seconds(partial(ways[name], path)))
            print_time(f"save, round {turn + 1} of {rounds}", name, times[name][-1])
    _check_exact(snapshot, folder / "exact")
    return times, {name: bytes_at(folder / name) for name in ways}


def _check_exact(snapshot: Snapshot, path: Path) -> None:
    loaded = CheckpointStore(path).load(exact=True).tensors
    for name, tensor in snapshot.tensors.items():
        if not torch.equal(
            loaded[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)
        ):
            raise AssertionError(f"{name} came back from an exact checkpoint with other bits")


def load_times(folder: Path, rounds: int) -> dict[str, Times]:
    """Measure each way to load, fresh and warm, and the reading of the loaded tensors, in seconds.

    All loads run in separate processes.
    """
    kinds = ("torch.save", "dcp", "safetensors", *TIERS)
    fresh: dict[str, list[Load]] = {kind: [] for kind in kinds}
    for turn in range(rounds):
        for kind in rotated(kinds, turn):
            fresh[kind].append(_in_child([kind], folder, 1)[0][kind])
            print_time(f"fresh load, round {turn + 1} of {rounds}", kind, fresh[kind][-1].seconds)
    warm = _in_child(kinds, folder, rounds + 1)[1:]  # the first warms up
    return {
        "fresh": {kind: [load.seconds for load in loads] for kind, loads in fresh.items()},
        "fresh, CPU": {kind: [load.cpu for load in loads] for kind, loads in fresh.items()},
        "fresh, then read": {
            kind: [load.then_read for load in loads] for kind, loads in fresh.items()
        },
        "warm": {kind: [found[kind].seconds for found in warm] for kind in kinds},
    }


def _read_into(held: list[Tensor], kind: str, path: Path) -> None:
    held += read(kind, path)


def _read_through(held: Sequence[Tensor]) -> None:
    for tensor in held:
        tensor.sum()


def _in_child(kinds: Sequence[str], folder: Path, rounds: int) -> list[dict[str, Load]]:
    command = [sys.executable, __file__, "--child", json.dumps([list(kinds), str(folder), rounds])]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [
        {kind: Load(*taken) for kind, taken in turn.items()}
        for turn in json.loads(found.splitlines()[-1])
    ]


def child(kinds: Sequence[str], folder: Path, rounds: int) -> list[dict[str, Load]]:
    """Measure loads in this process; return the times by round and kind."""
    found: list[dict[str, Load]] = []
    for turn in range(rounds):
        measured = {}
        for kind in rotated(kinds, turn):
            held: list[Tensor] = []
            before = time.process_time()
            load = seconds(partial(_read_into, held, kind, folder / kind))
            cpu = time.process_time() - before
            measured[kind] = Load(load, cpu, seconds(partial(_read_through, held)))
            held.clear()
            gc.collect()
        found.append(measured)
    return found


# ── the training thread ───────────────────────────────────────────────────────────────────────────


def stand_still(run: TrainingRun, folder: Path, rounds: int) -> Times:
    """Measure the seconds that training waits for a save, and for a clone of every tensor.

    The first round is a warm-up.
    """
    ways = ("clone", *TIERS)
    times: Times = {name: [] for way in ways for name in (way, f"{way}, one kept")}
    with CheckpointStore(folder / "stand-still", keep_last=1) as store:

        def once(way: str) -> float:
            held: list[Any] = []
            give_back()
            os.sync()
            if way == "clone":
                return seconds(lambda: held.append(clones(run)))
            taken = seconds(
                lambda: store.save(run.snapshot(), moments="exact" if way == "exact" else "8bit")
            )
            store.wait()
            return taken

        for turn in range(rounds + 1):
            for kept in (False, True):
                earlier = run.snapshot() if kept else None
                if kept:
                    run.advance(1)
                for way in rotated(ways, turn):
                    taken = once(way)
                    if turn:
                        times[f"{way}, one kept" if kept else way].append(taken)
                        print_time(
                            f"stand-still, round {turn} of {rounds}",
                            f"{way}{', one kept' if kept else ''}",
                            taken,
                        )
                del earlier
    shutil.rmtree(folder / "stand-still")
    return times


def steps_during_saves(
    run: TrainingRun, folder: Path, rounds: int, alone: int = 4
) -> dict[str, Times]:
    """Measure the seconds of a training step without a save and during one.

    Also returned are the seconds of that save, and the training time that it costs.
    """
    steps: Times = {"alone": [], **{tier: [] for tier in TIERS}}
    saves: Times = {tier: [] for tier in TIERS}
    costs: Times = {tier: [] for tier in TIERS}
    with CheckpointStore(folder / "beside", keep_last=1) as store:
        for turn in range(rounds):
            steps["alone"].append(
                statistics.median(seconds(lambda: run.advance(1)) for _ in range(alone))
            )
            for tier in rotated(TIERS, turn):
                os.sync()
                others = set(threading.enumerate())
                started = time.perf_counter()
                store.save(run.snapshot(), moments=tier)
                writing = set(threading.enumerate()) - others
                taken = []
                while any(thread.is_alive() for thread in writing):
                    taken.append(seconds(lambda: run.advance(1)))
                store.wait()
                saves[tier].append(time.perf_counter() - started)
                costs[tier].append(saves[tier][-1] - len(taken) * steps["alone"][-1])
                # The save ended during the last step: leave it out unless it is the only one.
                steps[tier].append(statistics.median(taken[:-1] or taken))
                print_time(
                    f"step during a save, round {turn + 1} of {rounds}", tier, steps[tier][-1]
                )
    shutil.rmtree(folder / "beside")
    return {"step": steps, "save beside steps": saves, "training that a save costs": costs}


def fork_times(run: TrainingRun, rounds: int) -> Times:
    """Measure our forks and the usual alternatives, in seconds; round 0 is a warm-up."""
    times: Times = {name: [] for pair in INSTEAD.items() for name in pair}

    def there_and_back(
        names: Sequence[str], take: Callable[[], Any], put_back: Callable[[Any], Any]
    ) -> dict[str, float]:
        held: list[Any] = []
        taken = seconds(lambda: held.append(take()))
        run.advance(1)
        back = seconds(lambda: put_back(held[0]))
        return dict(zip(names, (taken, back, taken + back)))

    def made(name: str, make: Callable[[], Any]) -> dict[str, float]:
        held: list[Any] = []
        return {name: seconds(lambda: held.append(make()))}

    def copy_back(clones: list[Tensor]) -> None:
        for tensor, clone in zip(live_tensors(run), clones, strict=True):
            tensor.copy_(clone)

    pairs: list[list[Callable[[], dict[str, float]]]] = [
        [
            lambda: there_and_back(
                ("snapshot", "restore", "snapshot, restore"), run.snapshot, run.restore
            ),
            lambda: there_and_back(
                ("clone", "copy back", "clone, copy back"), lambda: clones(run), copy_back
            ),
        ],
        [
            lambda: made("fork", run.fork),
            lambda: made("deepcopy", lambda: copy.deepcopy((run.model, run.optimizer))),
        ],
    ]
    for pair in pairs:
        for turn in range(rounds + 1):
            for way in rotated(pair, turn):
                give_back()
                for name, taken in way().items():
                    if turn:
                        times[name].append(taken)
                        print_time(f"fork, round {turn} of {rounds}", name, taken)
    return times


# ── figures ───────────────────────────────────────────────────────────────────────────────────────


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rotated(items: Any, turn: int) -> list[Any]:
    """Order of the items in this turn.

    Turns alternate between forward and backward; after each pair the order starts one item later.
    """
    order, first = list(items), turn // 2 % len(items)
    order = order[first:] + order[:first]
    return order[::-1] if turn % 2 else order


def ratios_to(times: Times, name: str) -> dict[str, float]:
    """Median over rounds of the time of each method ÷ the time of `name`."""
    return {
        ours: round(statistics.median(a / b for a, b in zip(taken, times[name], strict=True)), 4)
        for ours, taken in times.items()
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def goal(what: str, value: float, at_most: float) -> dict[str, Any]:
    return {"what": what, "value": value, "goal": at_most, "met": value <= at_most}


def print_time(what: str, name: str, taken: float) -> None:
    print(f"{what}: {name} {taken:.2f} s", file=sys.stderr, flush=True)


def measure(folder: Path, rounds: int, steps: int) -> dict[str, Any]:
    """Run all measurements, and compare them with the goals."""
    training = time.perf_counter()
    run = trained(steps)
    print_time("train", f"{steps} steps", time.perf_counter() - training)
    saves, sizes = save_times(run, folder, rounds)
    shares = {name: round(size / sizes["torch.save"], 4) for name, size in sizes.items()}
    loads = load_times(folder, rounds)
    for name in sizes:
        _delete(folder / name)
    forks = fork_times(run, 2 * rounds)
    still = stand_still(run, folder, 2 * rounds)
    slower = steps_during_saves(run, folder, rounds)
    fresh = ratios_to(loads["fresh"], "torch.save")
    ratios = {
        "save": ratios_to(saves, "torch.save, fsync"),
        **{f"load {kind}": ratios_to(times, "torch.save") for kind, times in loads.items()},
        "stand-still": ratios_to(
            {name: times for name, times in still.items() if not name.endswith("kept")}, "clone"
        )
        | ratios_to(
            {name: times for name, times in still.items() if name.endswith("kept")},
            "clone, one kept",
        ),
        "step": ratios_to(slower["step"], "alone"),
        "fork": {ours: ratios_to(forks, theirs)[ours] for ours, theirs in INSTEAD.items()},
    }
    goals = [
        *(
            goal(f"size of {tier} ÷ torch.save", shares[tier], most)
            for tier, most in (("exact", 0.85), ("8bit", 0.45))
        ),
        *(goal(f"fresh load of {tier} ÷ torch.load", fresh[tier], 1.5) for tier in TIERS),
        *(
            goal(f"stand-still of {tier} ÷ clone", ratios["stand-still"][tier], 1.2)
            for tier in TIERS
        ),
        goal(
            "snapshot and restore ÷ clone and copy back", ratios["fork"]["snapshot, restore"], 1.2
        ),
    ]
    return {
        "benchmark": "checkpoint",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "steps": steps,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "bytes": sizes,
        "bytes_of_torch_save": shares,
        "seconds": {
            "save": {name: spread(times) for name, times in saves.items()},
            **{
                f"load {kind}": {name: spread(values) for name, values in times.items()}
                for kind, times in loads.items()
            },
            "stand-still": {name: spread(times) for name, times in still.items()},
            **{
                what: {name: spread(values) for name, values in times.items()}
                for what, times in slower.items()
            },
            "fork": {name: spread(times) for name, times in forks.items()},
        },
        "ratios": ratios,
        "goals": goals,
    }


def show(result: dict[str, Any]) -> None:
    print(
        f"GPT-2 small, {result['parameters'] / 1e6:.0f} M parameters, {result['threads']} threads, "
        f"{result['rounds']} rounds"
    )
    print(f"\n{'size':30} {'MB':>8} {'÷ torch.save':>14}")
    for name, size in result["bytes"].items():
        print(f"  {name:28} {size / 1e6:8.0f} {result['bytes_of_torch_save'][name]:14.3f}")
    for what, rows in result["seconds"].items():
        print(
            f"\n{what + ', s':30} {'median':>8} {'min':>8} {'max':>8} "
            f"{'÷ ' + OPPONENTS[what] if what in OPPONENTS else '':>28}"
        )
        for name, row in rows.items():
            share = result["ratios"].get(what, {}).get(name)
            line = f"  {name:28} {row['median']:8.3f} {row['min']:8.3f} {row['max']:8.3f}"
            print(line if share is None else f"{line} {share:28.3f}")
    print(f"\n{'goal':45} {'found':>8} {'at most':>8}")
    for row in result["goals"]:
        print(
            f"  {row['what']:43} {row['value']:8.3f} {row['goal']:8.2f}   "
            f"{'met' if row['met'] else 'missed'}",
            flush=True,
        )


def real_disk(folder: Path | None) -> Path:
    """Choose the folder to write to: the requested one, or else one not in memory."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        candidates = [folder]
    else:
        candidates = [Path(tempfile.gettempdir()), Path.cwd()]
    chosen = next(
        (found for found in candidates if _filesystem(found) not in ("tmpfs", "ramfs")),
        candidates[-1],
    )
    if _filesystem(chosen) in ("tmpfs", "ramfs"):
        print(
            f"{chosen} is in memory, not on a disk: saves would seem too fast; give --folder",
            file=sys.stderr,
        )
    return chosen


def _filesystem(path: Path) -> str:
    def contains(mountpoint: str) -> bool:
        return path.resolve().is_relative_to(mountpoint)

    mounts = [
        (len(part.mountpoint), part.fstype)
        for part in psutil.disk_partitions(all=True)
        if contains(part.mountpoint)
    ]
    return max(mounts, default=(0, "unknown"))[1]


def _prepare() -> None:
    """Import modules before anything is measured.

    They would otherwise be imported at first use, and a measured time would include it. Also
    silence the warnings of dcp about running in a single process.
    """
    for module in ("safetensors.torch", "torch.distributed.checkpoint"):
        importlib.import_module(module)
    warnings.filterwarnings("ignore", module=r"torch\.distributed.*")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement")
    parser.add_argument(
        "--steps", type=int, default=20, help="training steps before the measurements"
    )
    parser.add_argument(
        "--folder", type=Path, help="folder for the files; they are deleted at the end"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on the last line"
    )
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    _prepare()
    if args.child:
        kinds, folder, rounds = args.child
        print(json.dumps(child(kinds, Path(folder), rounds)))
        return 0
    if args.rounds < 1 or args.steps < 1:
        parser.error(
            f"--rounds and --steps must be 1 or more, found {args.rounds} and {args.steps}"
        )
    disk = real_disk(args.folder)
    if (free := shutil.disk_usage(disk).free) < DISK_NEEDED:
        print(
            f"{disk} should have {DISK_NEEDED >> 30} GiB free, found {free / 2**30:.1f}; give "
            "--folder",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory(dir=disk, prefix="checkpoint-benchmark-") as folder:
        result = measure(Path(folder), args.rounds, args.steps)
    show(result)
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
