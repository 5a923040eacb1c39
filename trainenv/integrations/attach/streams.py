"""Streams that can save and load their place, as a source of batches by position."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from trainenv.data import StreamBatches
from trainenv.tools import rng
from trainenv.tools.packing import pack, unpack


class StreamSource:
    """A stream whose places are recorded, so that its batches can be had again.

    Args:
        stream: Stream with `state_dict` and `load_state_dict`, at its start.
        length: Number of batches of an epoch; for a stream without a length those of the run.
        device: Device of the run, whose random generators a stream must leave as they are.
        place: Function that puts a batch on the device; None to leave it.

    Raises:
        UserError: The stream does not come back to its place exactly, or is empty.
    """

    def __init__(
        self,
        stream: Any,
        length: int,
        device: torch.device,
        *,
        place: Callable[[Any], Any] | None = None,
    ) -> None:
        self._stream = stream
        self._length = length
        self._device = device
        self._place = place
        with rng.unchanged(device):
            self._batches = StreamBatches(stream)

    def __len__(self) -> int:
        return self._length

    def begin(self, epoch: int) -> Iterator[Any]:
        """See `trainenv.integrations.attach.data.Source`."""
        if isinstance(self._stream, DataLoader | LoaderOverStream):
            torch.empty((), dtype=torch.int64).random_()  # seed of workers
        return iter(range(epoch * self._length, (epoch + 1) * self._length))

    def fetch(self, address: Any) -> Any:
        """See `trainenv.integrations.attach.data.Source`."""
        with rng.unchanged(self._device):
            batch = self._batches(address)
        if self._place is None:
            return batch
        return self._place(batch)

    def generators(self) -> list[torch.Generator]:
        """See `trainenv.integrations.attach.data.Source`."""
        return []

    def state(self) -> Any:
        """See `trainenv.integrations.attach.data.Source`: the recorded places."""
        return pack(self._batches.state_dict(), "the place of the stream")

    def load(self, state: Any) -> None:
        """See `trainenv.integrations.attach.data.Source`."""
        self._batches.load_state_dict(unpack(state))


class LoaderOverStream:
    """A `DataLoader` without worker processes, over a data set that saves its place.

    Args:
        loader: Loader.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._data: Any = loader.dataset

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)

    def state_dict(self) -> Any:
        """Return the place of the data."""
        return self._data.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Go to a place of the data."""
        self._data.load_state_dict(state)


def stream_in(loader: Any) -> Any:
    """Return the stream of a loader that can save its place; None if there is none."""
    if saves_place(loader):
        return loader
    if not isinstance(loader, DataLoader) or loader.num_workers:
        return None
    if isinstance(loader.dataset, IterableDataset) and saves_place(loader.dataset):
        return LoaderOverStream(loader)
    return None


def saves_place(thing: Any) -> bool:
    """Tell if a stream can save and load its place."""
    methods = ("state_dict", "load_state_dict")
    return all(callable(getattr(thing, name, None)) for name in methods)
