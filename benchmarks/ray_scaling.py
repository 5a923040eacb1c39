"""Scaling of a verification and of a comparison over the workers of a Ray cluster.

For each number of workers: the seconds of one verification of `--branches` branches, and of a
comparison of `--cells` cells. Both start with a warm cluster: the first use of a worker, which
imports torch, is timed apart. Then what the driver and the object store do for it, in bytes and
milliseconds, and from these, on paper, what `--paper` workers would ask of them. Those figures are
multiplied, not measured.

A local Ray is started with as many cores as workers are asked for, whatever the machine has. More
workers than `machine_cores` therefore cannot be faster.

    python benchmarks/ray_scaling.py --json
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainenv import TrainingRun
from trainenv.compare import compare
from trainenv.compare.cells import measure_cell
from trainenv.compare.suite import Suite, suite_of
from trainenv.composition.named_methods import find_methods
from trainenv.distributed import job_pool
from trainenv.distributed.ray_cluster import connected
from trainenv.distributed.ray_peer import Shared
from trainenv.rollouts import remote
from trainenv.rollouts.executor import Rollouts
from trainenv.rollouts.pool import Workers
from trainenv.rollouts.worker import packed
from trainenv.types import Intervention

RUN: dict[str, Any] = {
    "model.width": 64,
    "model.layers": 2,
    "validation": {"every": 0, "sequences": 4},
    "steps": 200,
}
STEPS = 10
"""Optimizer steps of a branch."""
METHODS = ("nothing", "zclip")
REQUESTS = 200
"""Number of requests, jobs and puts that a millisecond figure is the median or the mean of."""


def cells_of(cells: int) -> Suite:
    """Return a suite of so many small cells."""
    size = {"model": {"width": 8, "layers": 1, "heads": 1, "context": 16}, "batch_size": 4}
    values = {
        "seeds": max(1, cells // len(METHODS)),
        "methods": list(METHODS),
        "sizes": {"small": size | {"steps": 40}},
        "corpora": {"bytes": {"name": "stdlib"}},
        "scenarios": {"calm": {"size": "small", "corpus": "bytes", "group": "calm"}},
    }
    return suite_of(values, "ray")


def verification_seconds(run: TrainingRun, branches: int, workers: int) -> dict[str, Any]:
    """Time one verification, after one that starts the workers; return what it found too."""
    sequences = [(Intervention(lr_scale=1 - place / 200),) for place in range(branches)]
    took = []
    for _ in range(2):
        rollouts = Rollouts(
            run, decision_steps=STEPS, fold=False, workers=workers, executor="ray", validation=5.0
        )
        started = time.perf_counter()
        found = rollouts.run(sequences, STEPS, measure="horizon")
        took.append(time.perf_counter() - started)
    return {
        "first_seconds": round(took[0], 2),
        "seconds": round(took[1], 2),
        "bits": [outcome.validation for outcome in found],
    }


def comparison_seconds(cells: int, workers: int) -> dict[str, Any]:
    """Time a comparison on a warm cluster."""
    suite = cells_of(cells)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        found = compare(
            Path(folder) / "out",
            suite,
            find_methods(METHODS),
            measure_cell,
            workers=workers,
            executor="ray",
        )
        seconds = time.perf_counter() - started
    rows = sorted(found["rows"], key=lambda row: (row["seed"], row["method"]))
    return {
        "cells": len(rows),
        "seconds": round(seconds, 2),
        "cell_seconds": round(statistics.mean(row["seconds"] for row in rows), 3),
        "bits": [row["final_loss"] for row in rows],
    }


def echo(job: int) -> int:
    """Do nothing; processes of the cluster are sent this function."""
    return job


def costs(run: TrainingRun) -> dict[str, Any]:
    """Measure bytes and milliseconds of what the driver and the object store do."""
    wire = packed(run.snapshot())
    puts = []
    for _ in range(20):
        started = time.perf_counter()
        shared = Shared(wire, executor="ray", workers=1)
        puts.append(time.perf_counter() - started)
        del shared
    with Workers(run.config, 1, "ray") as workers:
        from trainenv.rollouts.parts_digest import parts_digest

        (worker,) = workers.ready(parts_digest(run))
        worker.send("start", {0: (workers.shared(wire), 0, run.fork().ledger)})
        worker.receive()
        trips = []
        processor = time.process_time()
        for _ in range(REQUESTS):
            started = time.perf_counter()
            worker.send("scale", {0: 1.0})
            worker.receive()
            trips.append(time.perf_counter() - started)
        processor = time.process_time() - processor
        worker.send("advance", {0: STEPS})
        answer = pickle.dumps(worker.receive())
    with job_pool(echo, executor="ray", workers=1) as pool:
        pool.run(range(3), lambda job, result: None, lambda job, reason: None)
        started, spent = time.perf_counter(), time.process_time()
        pool.run(range(REQUESTS), lambda job, result: None, lambda job, reason: None)
        jobs = (time.perf_counter() - started) / REQUESTS
        job_processor = (time.process_time() - spent) / REQUESTS
    return {
        "snapshot_bytes": len(pickle.dumps(wire)),
        "put_ms": round(1e3 * statistics.median(puts), 3),
        "request_ms": round(1e3 * statistics.median(trips), 3),
        "request_driver_ms": round(1e3 * processor / REQUESTS, 3),
        "answer_bytes": len(answer),
        "job_ms": round(1e3 * jobs, 3),
        "job_driver_ms": round(1e3 * job_processor, 3),
    }


def on_paper(found: Mapping[str, Any], workers: int) -> dict[str, Any]:
    """Multiply the measured bytes and milliseconds for many workers with one branch each."""
    asked = found["costs"]
    cell = found["comparison"][0]["cell_seconds"]
    return {
        "workers": workers,
        # One start, one intervention, four stretches, four evaluations and one snapshot.
        "verification_driver_seconds": round(11e-3 * workers * asked["request_driver_ms"], 2),
        # Each node fetches the start once; every branch that is kept comes back whole.
        "snapshots_to_driver_bytes": workers * asked["snapshot_bytes"],
        "answers_to_driver_bytes": workers * asked["answer_bytes"],
        "start_bytes_in_each_store": asked["snapshot_bytes"],
        "cells_per_second_by_workers": round(workers / cell, 1),
        "cells_per_second_by_driver": round(1e3 / asked["job_driver_ms"], 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--branches", type=int, default=64)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--paper", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    args = parser.parse_args(arguments)
    ray: Any = connected("ray", workers=max(args.workers))
    run = TrainingRun.from_config("tiny", RUN)
    run.advance(5)
    found: dict[str, Any] = {
        "benchmark": "ray_scaling",
        "machine_cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "parameters": sum(one.numel() for one in run.model.parameters()),
        "verification": [],
        "comparison": [],
    }
    bits: dict[str, list[Any]] = {"verification": [], "comparison": []}
    for workers in args.workers:
        measured = {
            "verification": verification_seconds(run, args.branches, workers),
            "comparison": {},
        }
        remote.dismiss(run)
        measured["comparison"] = comparison_seconds(args.cells, workers)
        for name, one in measured.items():
            bits[name].append(one.pop("bits"))
            found[name].append({"workers": workers, **one})
    found["same_bits"] = {name: all(one == seen[0] for one in seen) for name, seen in bits.items()}
    found["costs"] = costs(run)
    found["paper"] = on_paper(found, args.paper)
    ray.shutdown()
    print(json.dumps(found, indent=None if args.json else 2))


if __name__ == "__main__":
    main()
