"""What savers leave that are killed by SIGKILL, at random times and at every point of the protocol by which they save.

    python benchmarks/kills.py --kills 1000 --json

One line: how many were killed, at which points; how many folders could not be resumed from, or only
from an older save than the last acknowledged; how many files were listed and not whole; how many
loaded and were not, bit for bit, what was saved. The last three must be 0, and are the exit code.
`tests/checkpoints/killing.py` is the code, for the tests run it too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Before torch is imported: a forked process can't use its parent's threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.support.killing import main

    main()
