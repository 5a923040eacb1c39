"""Files left by savers that are killed by SIGKILL.

They are killed at random times and at every point of the protocol by which they save.

    python benchmarks/kills.py --kills 1000 --json

The result is one line: the number of kills, and at which points; the number of folders from which a
run could not resume, or only from a save older than the last acknowledged one; the number of files
that were listed and incomplete; the number that loaded and were not, bit for bit, the saved state.
The last three must be 0; otherwise the exit code is not 0. The code is `tests/support/killing.py`,
because the tests run it too.
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
