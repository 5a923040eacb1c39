"""Data of somebody else's loader, by position: the same batches in the same order, again and again.

The order of an epoch is that of the loader's own sampler, drawn from the random state that the
loader itself would have drawn from. So a run that never goes back sees the batches and the random
numbers that it would have seen without us; and one that goes back sees the same batches again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset

from trainenv.integrations.attach.streams import StreamSource, stream_in
from trainenv.tools import rng
from trainenv.types import UserError

_KEPT = 4  # epochs whose order can be drawn again, the newest included


class Source(Protocol):
    """Batches of an epoch by place."""

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        ...

    def begin(self, epoch: int, /) -> Iterator[Any]:
        """Draw the order of an epoch, as the loader would, and return the address of each batch."""
        ...

    def fetch(self, address: Any, /) -> Any:
        """Return the batch at an address."""
        ...

    def generators(self) -> Sequence[torch.Generator]:
        """Return the random generators of its own that the order is drawn from."""
        ...

    def state(self) -> Any:
        """Return what it has recorded, as tensors and JSON; None for nothing."""
        ...

    def load(self, state: Any, /) -> None:
        """Take on what `state` returned."""
        ...


class Stateless:
    """Source that records nothing."""

    def state(self) -> Any:
        """See `Source`."""
        return None

    def load(self, state: Any) -> None:
        """See `Source`."""


class LoaderSource(Stateless):
    """A `DataLoader` of torch without worker processes, over a data set with a length.

    Args:
        loader: Loader.
        place: Function that puts a batch on the device; None to leave it.
        counted: True if whoever owns the loader gives its sampler the number of each epoch.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        place: Callable[[Any], Any] | None = None,
        counted: bool = False,
    ) -> None:
        self._loader = loader
        self._place = place
        self._counted = counted

    def __len__(self) -> int:
        return len(self._loader)

    def begin(self, epoch: int) -> Iterator[Any]:
        """See `Source`. The draws are those of `iter(loader)`, in their order."""
        loader = self._loader
        sampler: Any = loader.batch_sampler or loader.sampler
        told: tuple[Any, ...] = (sampler, getattr(sampler, "sampler", None), loader.dataset)
        for one in told:
            if self._counted and callable(getattr(one, "set_epoch", None)):
                one.set_epoch(epoch)
        addresses: Iterator[Any] = iter(sampler)
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)  # seed of workers
        return addresses

    def fetch(self, address: Any) -> Any:
        """See `Source`."""
        loader = self._loader
        data: Any = loader.dataset
        if loader.batch_sampler is None:
            examples = data[address]
        elif callable(getattr(data, "__getitems__", None)):
            examples = data.__getitems__(address)
        else:
            examples = [data[place] for place in address]
        batch = loader.collate_fn(examples)
        if self._place is None:
            return batch
        return self._place(batch)

    def generators(self) -> list[torch.Generator]:
        """See `Source`."""
        loader = self._loader
        sampler = loader.sampler
        found = [loader.generator, getattr(sampler, "generator", None)]
        every = {id(one): one for one in found if isinstance(one, torch.Generator)}
        return list(every.values())


class SequenceSource(Stateless):
    """Batches that are in a list, or in anything with a length and places.

    Args:
        batches: Batches of an epoch.
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def begin(self, epoch: int) -> Iterator[Any]:
        """See `Source`."""
        return iter(range(len(self)))

    def fetch(self, address: Any) -> Any:
        """See `Source`."""
        return self._batches[address]

    def generators(self) -> list[torch.Generator]:
        """See `Source`."""
        return []


def source_of(
    loader: Any, *, steps: int | None = None, device: torch.device | None = None
) -> Source:
    """Return the source of a loader.

    Args:
        loader: Loader.
        steps: Number of batches that a stream without a length will be asked for, if known.
        device: Device of the run; None to refuse streams.

    Raises:
        UserError: It cannot be gone through by position; the sentence says why.
    """
    stream = stream_in(loader)
    if stream is not None and device is not None:
        with suppress(TypeError):  # a stream without a length
            steps = len(loader)
        if steps is None:
            raise UserError(
                "steps must be given for a stream without a length, found "
                f"{type(loader).__name__}; give the number of optimizer steps"
            )
        return StreamSource(stream, steps, device)
    if isinstance(loader, DataLoader):
        if isinstance(loader.dataset, IterableDataset):
            raise UserError(
                "the data must have positions, to be trained on again after a rewind, found a "
                "stream (IterableDataset) without state_dict and load_state_dict; give a data set "
                "with a length or a stream that saves its place, or use mode='watch'"
            )
        if loader.num_workers:
            raise UserError(
                "the loader must not fetch ahead in worker processes, so that it can go back, "
                f"found num_workers={loader.num_workers}; set it to 0, or use mode='watch'"
            )
        if type(loader).__iter__ is not DataLoader.__iter__:
            raise UserError(
                "the loader must hand out batches as torch's DataLoader does, found "
                f"{type(loader).__name__} with its own __iter__; give a DataLoader, or use "
                "mode='watch'"
            )
        return LoaderSource(loader)
    if hasattr(loader, "__len__") and hasattr(loader, "__getitem__"):
        return SequenceSource(loader)
    raise UserError(
        "the data must have positions, to be trained on again after a rewind, found "
        f"{type(loader).__name__}; give a DataLoader or a list of batches, or use mode='watch'"
    )


class Data:
    """Batches by epoch and place, and windows of them: the micro-batches of a step.

    Args:
        source: Source of the batches.
        accumulation: Micro-batches of a step; the last step of an epoch may have fewer.
        ahead: True if the loader fetches the next batch before it hands one out.
        device: Device of the run, whose random generators belong to its state.
    """

    def __init__(
        self, source: Source, *, accumulation: int, ahead: bool, device: torch.device
    ) -> None:
        self._source = source
        self.accumulation = accumulation
        self._ahead = ahead
        self._device = device
        self.length = len(source)
        self.epoch_steps = -(-self.length // accumulation)
        # By epoch: random state before its order was drawn, and its addresses.
        self._starts: dict[int, dict[str, Any]] = {}
        self._orders: dict[int, list[Any]] = {}
        # Epoch and place of the batch that was fetched ahead; the random state before; the batch.
        self._next: tuple[int, int] | None = None
        self._before: dict[str, Any] | None = None
        self._fetched: list[Any] = []

    def epoch_of(self, index: int) -> int:
        """Return the epoch of a data index, which is the number of a window over all epochs."""
        return index // self.epoch_steps

    def window(self, index: int) -> range:
        """Return the places, in its epoch, of the micro-batches of a data index."""
        start = index % self.epoch_steps * self.accumulation
        return range(start, min(start + self.accumulation, self.length))

    def __call__(self, index: int) -> list[Any]:
        """Return the micro-batches of a data index; see `trainenv.types.Batches`."""
        return [self.fetch(self.epoch_of(index), place) for place in self.window(index)]

    def sample(self) -> Any:
        """Return the first batch of an ordered epoch, for its size; changes nothing."""
        generators = self._read()
        try:
            return self._source.fetch(next(self._source.begin(0)))
        finally:
            self._write(generators)

    def fetch(self, epoch: int, place: int) -> Any:
        """Return a micro-batch; the one after it may be fetched ahead.

        Args:
            epoch: Epoch.
            place: Place in the epoch.
        """
        if self._next == (epoch, place):
            batch = self._take_fetched()
        else:
            batch = self._source.fetch(self._address(epoch, place))
        self._next = None
        self._fetched = []
        if self._ahead and place + 1 < self.length:
            self._next = (epoch, place + 1)
            self._before = self._read()
            self._fetched = [self._source.fetch(self._address(epoch, place + 1))]
        return batch

    def _take_fetched(self) -> Any:
        if self._fetched:
            return self._fetched[0]
        assert self._next is not None
        assert self._before is not None
        now = self._read()
        self._write(self._before)  # what is random in a batch was drawn then
        try:
            return self._source.fetch(self._address(*self._next))
        finally:
            self._write(now)

    def _address(self, epoch: int, place: int) -> Any:
        if epoch not in self._orders:
            self._orders[epoch] = self._draw(epoch)
        return self._orders[epoch][place]

    def _draw(self, epoch: int) -> list[Any]:
        """Draw the order of an epoch: for the first time, or again from the same random state.

        It is drawn to its end at once: some samplers draw once more there.
        """
        if epoch not in self._starts:
            self._starts[epoch] = self._read()
            for old in sorted(self._starts)[:-_KEPT]:
                del self._starts[old]
                self._orders.pop(old, None)
            return list(self._source.begin(epoch))
        now = self._read()
        self._write(self._starts[epoch])
        try:
            return list(self._source.begin(epoch))
        finally:
            self._write(now)

    def _read(self) -> dict[str, Any]:
        own = {f"own {place}": one.get_state() for place, one in enumerate(self._own())}
        return rng.as_tensors(rng.read(self._device)) | own

    def _write(self, generators: Mapping[str, Any]) -> None:
        rng.write(rng.from_tensors(generators), self._device)
        for place, one in enumerate(self._own()):
            if f"own {place}" in generators:
                one.set_state(generators[f"own {place}"])

    def _own(self) -> Sequence[torch.Generator]:
        return self._source.generators()

    # ── a part ────────────────────────────────────────────────────────────────────────────────────

    def state(self) -> Any:
        """See `trainenv.integrations.attach.parts.Part`."""
        return {
            "own": [one.get_state() for one in self._own()],
            "starts": {str(epoch): start for epoch, start in self._starts.items()},
            "next": None if self._next is None else list(self._next),
            "before": None if self._next is None else self._before,
            "source": self._source.state(),
        }

    def load(self, state: Any) -> None:
        """See `trainenv.integrations.attach.parts.Part`."""
        for one, saved in zip(self._own(), state["own"]):
            one.set_state(saved.cpu().clone())
        starts = {int(epoch): start for epoch, start in state["starts"].items()}
        for epoch in list(self._orders):
            if epoch not in starts or not _same(starts[epoch], self._starts.get(epoch)):
                del self._orders[epoch]
        self._starts = starts
        if state.get("source") is not None:
            self._source.load(state["source"])
        self._next = None
        self._fetched = []
        if state["next"] is not None:
            epoch, place = state["next"]
            self._next = (epoch, place)
            self._before = state["before"]


def _same(one: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    """Tell if two random states are equal."""
    if other is None or one.keys() != other.keys():
        return False
    return all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )
