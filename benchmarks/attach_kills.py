"""Attached Trainers of transformers that are killed by SIGKILL, and resumed by their own means.

They are killed at random moments, spread over their length: while branches are trained and
accepted, and while rules roll back around a bad shard.

    python benchmarks/attach_kills.py --kills 20 --json

The result is one line: the number of moments and of kills; the number of runs that were resumed
from a checkpoint, and of these checkpoints that a Trainer without us could train on from; and the
number of runs that ended with the same weights and the same log, bit by bit. Every run must, and
every checkpoint; otherwise the exit code is not 0. The code is `tests/integrations/killing.py`,
because the tests run it too.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

if __name__ == "__main__":
    # Before torch is imported: a forked process can't use its parent's threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.integrations.killing import main

    main()
