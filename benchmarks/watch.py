"""Cost to a run of being watched: its heartbeat, its trackers, and a server that reads its folder.

A run is trained in short stretches, in turn with and without each of:

- *heartbeat*: the thread that writes `live.jsonl` once a second, which every run has;
- *tensorboard*: that and the tracker of this name;
- *watched*: the heartbeat, and a server in another process that reads the folder every second, as
  it does while a browser is connected.

The cost is the median over the rounds of (stretch with ÷ stretch without, next to each other) − 1,
with the middle half of the rounds as its interval. The CPU time of the reading process is given as
a share of a core, because on a free core it costs the run nothing.

    python benchmarks/watch.py --rounds 30 --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

import trainenv
from trainenv.records.live_log import LiveLog
from trainenv.records.observer import Observer, Observers
from trainenv.records.run_folder import RunFolder
from trainenv.trackers import open_trackers

BLOCK = 8  # steps between two reports to the observers, as in a run
READER = """
import sys, time
from pathlib import Path
from trainenv.watch import RunReader
from trainenv.watch.state import curves_of, facts_of
from trainenv.watch.story import story_of
reader = RunReader(Path(sys.argv[1]))
while True:
    reader.poll()
    facts_of(reader), curves_of(reader), story_of(reader)
    time.sleep(1)
"""


class Stretches:
    """Stretches of one run, trained with different observers.

    Args:
        preset: Preset of the run.
        seconds: Length of a stretch, seconds.
        place: Folder for the records.
    """

    def __init__(self, preset: str, seconds: float, place: Path) -> None:
        config = trainenv.RunConfig.load(preset, {"steps": 10**7})
        self.run = trainenv.TrainingRun.from_config(config)
        self.folder = RunFolder.create(place / "run", config)
        self.folder.validation(0, 5.0)
        self.run.advance(BLOCK)
        started = time.perf_counter()
        self.run.advance(4 * BLOCK)
        self.ms_per_step = 1000 * (time.perf_counter() - started) / (4 * BLOCK)
        self.blocks = max(round(1000 * seconds / self.ms_per_step / BLOCK), 1)

    def train(self, observers: list[Observer] | None) -> float:
        """Train a stretch and return its seconds; None observes nothing at all."""
        all_of_them = Observers()
        all_of_them.start(self.run, self.folder, observers or [])
        started = time.perf_counter()
        for _ in range(self.blocks):
            window = self.run.advance(BLOCK)
            self.folder.telemetry.append(window)
            all_of_them.steps(window, 0)
        taken = time.perf_counter() - started
        all_of_them.finish(None)
        return taken


def measure(stretches: Stretches, rounds: int) -> dict[str, Any]:
    """Measure the cost of each kind of observation."""
    tracked = trainenv.RunConfig.load("tiny", {"trackers": ["tensorboard"]})
    kinds: dict[str, Any] = {
        "heartbeat": lambda: [LiveLog()],
        "tensorboard": lambda: [LiveLog(), *open_trackers(tracked)],
        "watched": lambda: [LiveLog()],
    }
    ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
    reading: list[float] = []
    for place in range(rounds):
        for kind, make in kinds.items():
            first = place % 2 == 0  # which of the two comes first alternates
            plain = 0.0
            if first:
                plain = stretches.train(None)
            if kind == "watched":
                taken, share = _watched(stretches, make())
                reading.append(share)
            else:
                taken = stretches.train(make())
            if not first:
                plain = stretches.train(None)
            ratios[kind].append(taken / plain - 1)
    found: dict[str, Any] = {kind: _interval(values) for kind, values in ratios.items()}
    return {
        "ms_per_step": stretches.ms_per_step,
        "steps_of_a_stretch": stretches.blocks * BLOCK,
        "rounds": rounds,
        "cost": found,
        "reader_share_of_a_core": statistics.median(reading),
    }


def _watched(stretches: Stretches, observers: list[Observer]) -> tuple[float, float]:
    """Train a stretch while another process reads the folder; return seconds and its CPU share."""
    reader = subprocess.Popen([sys.executable, "-c", READER, str(stretches.folder.path)])
    try:
        process = psutil.Process(reader.pid)
        time.sleep(4)  # until its packages are imported
        before = process.cpu_times()
        taken = stretches.train(observers)
        after = process.cpu_times()
    finally:
        reader.kill()
        reader.wait()
    used = after.user + after.system - before.user - before.system
    return taken, used / taken


def _interval(values: list[float]) -> dict[str, float]:
    quarters = statistics.quantiles(values, n=4)
    return {"median": statistics.median(values), "low": quarters[0], "high": quarters[2]}


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="mini", help="preset of the run (default: mini)")
    parser.add_argument("--rounds", type=int, default=20, help="stretches of each kind")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a stretch")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = measure(Stretches(args.preset, args.seconds, Path(place)), args.rounds)
    if args.json:
        print(json.dumps(found))
        return
    for kind, cost in found["cost"].items():
        low, median, high = (100 * cost[name] for name in ("low", "median", "high"))
        print(f"{kind:12} {median:+.2f} % of a step (middle half {low:+.2f} to {high:+.2f})")
    print(f"a step takes {found['ms_per_step']:.1f} ms")
    print(f"the reader takes {100 * found['reader_share_of_a_core']:.1f} % of a core")


if __name__ == "__main__":
    main()
