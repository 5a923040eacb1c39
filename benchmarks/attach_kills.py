"""Attached Trainers of transformers that are killed by SIGKILL, and resumed by their own means.

They are killed at random moments, spread over their length: while branches are trained and
accepted, and while rules roll back around a bad shard.

    python benchmarks/attach_kills.py --kills 20 --json

The result is one line: the number of moments and of kills; the number of runs that were resumed
from a checkpoint, and of these checkpoints that a Trainer without us could train on from; and the
number of runs that ended with the same weights and the same log, bit by bit. Every run must, and
every checkpoint; otherwise the exit code is not 0. The trainings are in
`tests/integrations/killing.py`, because the tests run them too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import warnings
from pathlib import Path


def main() -> None:
    # Before torch is imported: a forked process can't use its parent's threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.integrations.killing import measure

    parser = argparse.ArgumentParser(description="attached Trainers, killed and resumed")
    parser.add_argument("--kills", type=int, default=20, help="number of moments")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the moments")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with contextlib.redirect_stdout(io.StringIO()):  # the Trainers' logs
        found = measure(options.kills, options.seed)
    print(json.dumps(found) if options.json else found)
    resumed = found.get("resumed from a checkpoint", 0)
    fine = found["same end"] == found["moments"] and found["loaded by a plain Trainer"] == resumed
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
