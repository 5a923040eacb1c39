"""Containment of Stable-Baselines3: the process has the same generators and threads afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from trainenv.tools.rng import exclusive


@contextmanager
def contained() -> Iterator[None]:
    """Restore the random generators and threads of the process afterwards.

    Stable-Baselines3 seeds and uses the global generators. It runs on one thread, so that its sums
    have the same bits everywhere.
    """
    with exclusive():
        python = random.getstate()
        numpy = np.random.get_state()  # noqa: NPY002
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.random.fork_rng(devices=[]):
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            torch.set_num_threads(threads)
