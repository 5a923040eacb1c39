"""Checkpoints, snapshots and forks of GPT-2 small (124 M parameters, AdamW), beside what torch and others offer.

The model is trained for some steps first, in bf16 on the standard library's text, so that weights
and moments are real ones. What is compared is measured in turn, round by round in a rotating order;
figures are medians with the least and the greatest, ratios are medians over rounds of ours ÷ theirs
of the same round.

    size        of a file: weights and moments by `torch.save`, `torch.distributed.checkpoint`
                (dcp), safetensors, and by a `CheckpointStore` exact and with moments in 8 bits
    save        from memory to a file. Ours waits until the disk has it (fsync), as dcp does by
    default; torch.save and
                safetensors don't, so torch.save with an fsync after it is a row of its own. Nothing
                is left to be written by what came before.
    load        into memory, from files in the page cache; ours verifies every checksum. *Fresh* is
    the load call in a process
                of its own, as in resuming: all memory is touched for the first time. *Warm* is one
                    process that loads again
                and again, as in rewinding. `CPU` is the time of all cores together: ours uses as
                many as there are. A loader that only maps its file does the work later: `then read`
                is one pass over the loaded tensors.
    stand-still how long training waits for a save, `run.snapshot()` and `store.save(snapshot)`,
    beside a clone of every tensor
                of model and optimizer. Also with an earlier snapshot kept, which the new one is
                then compared with.
    beside      seconds of a training step while a save is being written, beside those of a step
    alone; and how many seconds of
                training a save costs in all, the stand-still included
    fork        snapshot and restore, beside a clone of every tensor and a copy back, with a
    training step between; and
                `run.fork()` beside a deepcopy of model and optimizer

Where memory is taken in this process, both sides take new memory: what was freed before has been
given back to the system, or else luck would decide which of them finds some that has been touched
already.

    python benchmarks/checkpoint.py --json

About ten minutes on two cores, 8 GB of memory and 8 GB of disk.
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
Times = dict[str, list[float]]  # seconds by what took them, a value a round


class Load(NamedTuple):
    """What a load took, in seconds: on the clock, of all cores together, and then to read every element once."""

    seconds: float
    cpu: float
    then_read: float


class BytePairs:
    """Batches of text in which two bytes are a token: a vocabulary as large as GPT-2's, without its tokenizer."""

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
    """GPT-2 small after some steps of 4 × 128 tokens."""
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
    """Every tensor of model and optimizer, each once."""
    found = [*run.model.state_dict().values(), *tensors_of(run.optimizer.state_dict())]
    return list({(t.data_ptr(), t.shape): t.detach() for t in found}.values())


def clones(run: TrainingRun) -> list[Tensor]:
    """What is in `live_tensors`, in memory of its own."""
    return [tensor.clone() for tensor in live_tensors(run)]


def give_back() -> None:
    """Give freed memory back to the system, where the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def writers(run: TrainingRun, snapshot: Snapshot) -> dict[str, Callable[[Path], None]]:
    """What saves the run at a path where nothing is."""

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
    """Load what a writer has saved."""
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
    """Seconds of each way to save, and bytes; the files of the last round stay."""
    snapshot = run.snapshot()
    ways = writers(run, snapshot)
    times: Times = {name: [] for name in ways}
    for turn in range(rounds):
        for name in rotated(ways, turn):
            path = folder / name
            _delete(path)
            os.sync()
            times[name].append(seconds(partial(ways[name], path)))
            told(f"save, round {turn + 1} of {rounds}", name, times[name][-1])
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
    """Seconds of each way to load, fresh and warm, and of reading what was loaded; all in processes of their own."""
    kinds = ("torch.save", "dcp", "safetensors", *TIERS)
    fresh: dict[str, list[Load]] = {kind: [] for kind in kinds}
    for turn in range(rounds):
        for kind in rotated(kinds, turn):
            fresh[kind].append(_in_child([kind], folder, 1)[0][kind])
            told(f"fresh load, round {turn + 1} of {rounds}", kind, fresh[kind][-1].seconds)
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
    """What loading took, by round and kind."""
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
    """Seconds that training stands still for a save, and for a clone of everything.

    The first round warms up.
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
                        told(
                            f"stand-still, round {turn} of {rounds}",
                            f"{way}{', one kept' if kept else ''}",
                            taken,
                        )
                del earlier
    shutil.rmtree(folder / "stand-still")
    return times


def beside(run: TrainingRun, folder: Path, rounds: int, alone: int = 4) -> dict[str, Times]:
    """Seconds of a step alone and of one beside a save, of that save, and of training that the save has cost."""
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
                # The last step was partly alone, unless it is the only one.
                steps[tier].append(statistics.median(taken[:-1] or taken))
                told(f"beside, round {turn + 1} of {rounds}", tier, steps[tier][-1])
    shutil.rmtree(folder / "beside")
    return {"step": steps, "save beside steps": saves, "training that a save costs": costs}


def fork_times(run: TrainingRun, rounds: int) -> Times:
    """Seconds of ours and of what people do instead. The first round warms up."""
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
                        told(f"fork, round {turn} of {rounds}", name, taken)
    return times


# ── figures ───────────────────────────────────────────────────────────────────────────────────────


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rotated(items: Any, turn: int) -> list[Any]:
    """In another order each turn: forwards and backwards, then the same from another one on."""
    order, first = list(items), turn // 2 % len(items)
    order = order[first:] + order[:first]
    return order[::-1] if turn % 2 else order


def ratios_to(times: Times, name: str) -> dict[str, float]:
    """Of each, the median over rounds of what it took ÷ what `name` took."""
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


def told(what: str, name: str, taken: float) -> None:
    print(f"{what}: {name} {taken:.2f} s", file=sys.stderr, flush=True)


def measure(folder: Path, rounds: int, steps: int) -> dict[str, Any]:
    """Everything, and whether the goals were met."""
    training = time.perf_counter()
    run = trained(steps)
    told("train", f"{steps} steps", time.perf_counter() - training)
    saves, sizes = save_times(run, folder, rounds)
    shares = {name: round(size / sizes["torch.save"], 4) for name, size in sizes.items()}
    loads = load_times(folder, rounds)
    for name in sizes:
        _delete(folder / name)
    forks = fork_times(run, 2 * rounds)
    still = stand_still(run, folder, 2 * rounds)
    slower = beside(run, folder, rounds)
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
    """Where to write: the folder asked for, or else one that is not memory."""
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
            f"{chosen} is in memory, no disk: saving will look faster than it is; give --folder",
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
    """Import what is otherwise imported at first use, so that no time is charged with it; ignore that dcp finds one process."""
    for module in ("safetensors.torch", "torch.distributed.checkpoint"):
        importlib.import_module(module)
    warnings.filterwarnings("ignore", module=r"torch\.distributed.*")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="steps to train for first")
    parser.add_argument(
        "--folder", type=Path, help="where to write; what is written is deleted at the end"
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
