"""The random state of a run, kept apart from its surroundings.

A run draws from the usual global generators: dropout does, and a user's own code may. Inside
`RandomState.active` the global generators hold the state of the run; afterwards they hold the
state of the caller again, so runs in one process never disturb each other. The generators belong
to the whole process. Therefore only one thread at a time is inside (`exclusive`), and every run
draws the same numbers as if it were alone.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainenv.tools import portable

_lock = threading.RLock()  # global, like the generators and settings that it guards


@contextmanager
def exclusive() -> Iterator[None]:
    """Keep other threads from the global generators and torch's numeric settings inside the block.

    Blocks may be nested in one thread. If you train in threads and draw random numbers in your own
    code, for example to initialise a model, do it inside such a block too.
    """
    with _lock:
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start torch's generators from `seed` inside the block, and restore them after it."""
    used = torch.cuda.is_initialized()  # do not initialise a GPU that is not used yet
    devices = range(torch.cuda.device_count()) if used else ()
    with exclusive(), torch.random.fork_rng(devices=devices):
        if used:
            torch.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def all_seeded(seed: int) -> Iterator[None]:
    """Start the generators of torch (host), Python and NumPy from `seed`; restore them after it."""
    with exclusive(), unchanged(torch.device("cpu")):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield


def _new_lock() -> None:
    global _lock
    _lock = threading.RLock()


# A thread that held the lock does not exist in the child, so it could not release it.
portable.after_fork_in_child(_new_lock)


class RandomState:
    """State of the global generators of torch (host and device), Python and NumPy.

    Args:
        seed: Random seed that all of them start from.
        device: Device of the run.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        if _lock.acquire(blocking=False):
            _lock.release()
        else:
            warnings.warn(
                "another thread is training while this run is made; if the weights of its model "
                "were drawn just now, neither run is reproducible: make model and run inside "
                "`with trainenv.tools.rng.exclusive():`",
                stacklevel=4,
            )
        with exclusive(), unchanged(device):
            torch.manual_seed(seed)
            random.seed(seed)
            # The legacy generator: it is the global one, which user code draws from.
            np.random.seed(seed % 2**32)  # noqa: NPY002
            self._state = read(device)

    @contextmanager
    def active(self, *, keep: bool = True) -> Iterator[None]:
        """Make the state of the run the global one inside the block, and restore the old one after.

        Args:
            keep: True to continue from the state at the end of the block; False to continue from
                the state at its start.
        """
        with exclusive(), unchanged(self._device):
            write(self._state, self._device)
            try:
                yield
            finally:
                if keep:
                    self._state = read(self._device)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        return as_tensors(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            TypeError, ValueError, RuntimeError: A generator refuses its part; the state is
                unchanged.
        """
        self._state |= from_tensors(state)


@contextmanager
def unchanged(device: torch.device) -> Iterator[None]:
    """Restore the state of the global generators after the block, whatever it draws."""
    before = read(device)
    try:
        yield
    finally:
        write(before, device)


def as_tensors(generators: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of the global generators, as `read` returns it, as tensors and JSON."""
    version, words, gauss = generators["python"]
    name, keys, position, has_gauss, cached = generators["numpy"]
    return {
        **{key: value.clone() for key, value in generators.items() if isinstance(value, Tensor)},
        "python": torch.tensor(words, dtype=torch.int64),
        "python_rest": [version, gauss],
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": [str(name), int(position), int(has_gauss), float(cached)],
    }


def from_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of the global generators that `as_tensors` was given.

    Raises:
        TypeError, ValueError, RuntimeError: A generator would refuse its part.
    """
    version, gauss = state["python_rest"]
    name, position, has_gauss, cached = state["numpy_rest"]
    keys = state["numpy"].cpu().numpy().astype(np.uint32)
    loaded: dict[str, Any] = {
        key: state[key].cpu().clone() for key in ("torch", "cuda") if key in state
    }
    loaded["python"] = (version, tuple(state["python"].tolist()), gauss)
    loaded["numpy"] = (name, keys, position, has_gauss, cached)
    # Try it on new generators: an error in the middle of a step would come too late.
    torch.Generator().set_state(loaded["torch"])
    random.Random().setstate(loaded["python"])
    np.random.RandomState().set_state(loaded["numpy"])
    return loaded


def read(device: torch.device) -> dict[str, Any]:
    """Return the state of the global generators."""
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def write(state: Mapping[str, Any], device: torch.device) -> None:
    """Set the state of the global generators."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
