"""Kill a demo with SIGKILL at random moments, resume it each time, and compare the end.

    python benchmarks/loop_kills.py --json

The end must equal that of a demo that is never killed. Moments are drawn over the whole process,
including start-up, branches and report. A demo that ends before its moment counts no kill; the next
one starts in a new folder.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def started(folder: Path, steps: int, *, resume: bool) -> subprocess.Popen[bytes]:
    """Start the demo in a new process."""
    asked = ["--resume"] if resume else ["--steps", str(steps)]
    command = [sys.executable, "-m", "trainenv.cli", "demo", "--out", str(folder), "--json", *asked]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ends(folder: Path) -> dict[str, str]:
    """Read the fingerprint with which each run of a demo ended."""
    found = json.loads((folder / "summary.json").read_text())
    return {run["method"]: run["fingerprint"] for run in found["runs"]}


def killed_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kill a process after some seconds; return True unless it had already ended."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


def measure(kills: int, steps: int, seed: int) -> dict[str, Any]:
    rng, done, demos, during = random.Random(seed), 0, 0, {"left alone": 0, "branching": 0}
    unequal = failed = 0
    with tempfile.TemporaryDirectory() as root:
        began = time.perf_counter()
        alone = Path(root) / "alone"
        assert started(alone, steps, resume=False).wait() == 0
        whole, wanted = time.perf_counter() - began, ends(alone)
        while done < kills:
            demos += 1
            folder = Path(root) / f"killed-{demos}"
            resume = False
            while done < kills:
                # Start-up takes a large part of the whole, so short times would never reach a step.
                killed = killed_after(
                    started(folder, steps, resume=resume), rng.uniform(0.1, 0.9) * whole
                )
                if not killed:
                    break
                done += 1
                during["branching" if (folder / "branching").is_dir() else "left alone"] += 1
                resume = (folder / "config.yaml").is_file()
            if not (folder / "summary.json").is_file():
                failed += started(folder, steps, resume=resume).wait() != 0
            unequal += not (folder / "summary.json").is_file() or ends(folder) != wanted
            print(f"{done} of {kills} kills, {demos} demos, {unequal} unequal", file=sys.stderr)
    return {
        "kills": done,
        "during": during,
        "demos": demos,
        "steps": steps,
        "failed": failed,
        "unequal": unequal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30, help="number of kills")
    parser.add_argument("--steps", type=int, default=600, help="budget of the demo in steps")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the moments")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    found = measure(args.kills, args.steps, args.seed)
    print(json.dumps(found) if args.json else found)


if __name__ == "__main__":
    main()
