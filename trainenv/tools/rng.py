"""The random state of a run, kept apart from its surroundings.

A run draws from the usual global generators (dropout does, and a user's own code may), but only
between `enter` and `leave`: what the caller's generators held before is put back, so that runs in
one process never disturb each other. The generators are those of the process: of its threads, one
at a time is inside (`exclusive`), and each run has the bits that it has alone.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainenv.tools import portable

_lock = threading.RLock()  # a global, as the generators and settings are that it guards


@contextmanager
def exclusive() -> Iterator[None]:
    """Keep other threads from the global generators and torch's numeric settings inside the block.

    A thread may be in several such blocks at once. Whoever trains in threads and draws by hand, to
    initialise a model say, does so in such a block too.
    """
    with _lock:
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start torch's generators from `seed` inside the block, and put them back after it."""
    used = torch.cuda.is_initialized()  # a GPU that is not yet used need not be woken
    with (
        exclusive(),
        torch.random.fork_rng(devices=range(torch.cuda.device_count()) if used else ()),
    ):
        (torch.manual_seed if used else torch.default_generator.manual_seed)(seed)
        yield


def _new_lock() -> None:
    global _lock
    _lock = threading.RLock()


portable.after_fork_in_child(_new_lock)  # a thread that held it is not there to give it back


class RandomState:
    """The state of torch's (host and device), Python's and NumPy's global generators, as one value."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        if _lock.acquire(blocking=False):
            _lock.release()
        else:
            warnings.warn(
                "another thread is training while this run is made; if the weights of its model were drawn just now, neither "
                "run is reproducible: make model and run inside `with trainenv.tools.rng.exclusive():`",
                stacklevel=4,
            )
        with exclusive(), self._restored(_read(device)):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 — the legacy generator is the global one that user code draws from
            self._state = _read(device)

    @contextmanager
    def active(self, *, keep: bool = True) -> Iterator[None]:
        """Make the run's state the global one inside the block, and the surroundings' again after it.

        Args:
            keep: whether the run goes on from where the block left its state, or from where it was.
        """
        with exclusive(), self._restored(_read(self._device)):
            _write(self._state, self._device)
            try:
                yield
            finally:
                if keep:
                    self._state = _read(self._device)

    @contextmanager
    def _restored(self, surroundings: dict[str, Any]) -> Iterator[None]:
        try:
            yield
        finally:
            _write(surroundings, self._device)

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = self._state["python"]
        name, keys, position, has_gauss, cached = self._state["numpy"]
        return {
            **{
                key: value.clone()
                for key, value in self._state.items()
                if isinstance(value, Tensor)
            },
            "python": torch.tensor(words, dtype=torch.int64),
            "python_rest": [version, gauss],
            "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "numpy_rest": [str(name), int(position), int(has_gauss), float(cached)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take on what `state_dict` gave.

        Raises:
            TypeError, ValueError, RuntimeError: a generator refuses its part; the state is as it
                was.
        """
        version, gauss = state["python_rest"]
        name, position, has_gauss, cached = state["numpy_rest"]
        keys = state["numpy"].cpu().numpy().astype(np.uint32)
        loaded: dict[str, Any] = {
            key: state[key].cpu().clone() for key in ("torch", "cuda") if key in state
        }
        loaded["python"] = (version, tuple(state["python"].tolist()), gauss)
        loaded["numpy"] = (name, keys, position, has_gauss, cached)
        # Tried on generators of nobody's: a refusal in the middle of a step would come too late.
        torch.Generator().set_state(loaded["torch"])
        random.Random().setstate(loaded["python"])
        np.random.RandomState().set_state(loaded["numpy"])
        self._state |= loaded


def _read(device: torch.device) -> dict[str, Any]:
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _write(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
