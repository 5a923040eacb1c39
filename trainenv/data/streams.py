"""Batches by data index from an iterable that can save and load its place.

`torchdata.stateful_dataloader.StatefulDataLoader` and `datasets.IterableDataset` are such streams.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from trainenv.tools.checks import whole
from trainenv.tools.same_data import same_data
from trainenv.types import UserError

_TRIED = 3  # batches read to check that the stream comes back exactly


class StreamBatches:
    """Batches of a stream, a pure function of the data index, by recorded places.

        batches = StreamBatches(loader)
        run = TrainingRun(model, optimizer, batches, {"steps": 1000})

    The place of the stream (`state_dict`) is recorded every `every` batches. To go back, the newest
    place at or before the wanted index is loaded (`load_state_dict`), and the batches in between
    are read again. At its end the stream starts again from its first place, so each epoch is alike.

    The recorded places are part of a run's snapshots and checkpoints. So a run that is resumed in
    another process need not read the stream from its start.

    Args:
        stream: Iterable of batches with `state_dict` and `load_state_dict`, at its start.
        every: Number of batches from one recorded place to the next; as many of the newest batches
            are kept in memory.
        places: Largest number of recorded places, in addition to the start; the oldest are
            forgotten.

    Raises:
        UserError: The stream cannot save its place, does not come back to it exactly, or is empty.
    """

    def __init__(self, stream: Any, *, every: int = 16, places: int = 64) -> None:
        missing = [
            name
            for name in ("__iter__", "state_dict", "load_state_dict")
            if not callable(getattr(stream, name, None))
        ]
        if missing:
            remedy = "take a StatefulDataLoader, or a data set with random access"
            raise UserError(
                "a run that may go back needs data that can be read again: expected a stream with "
                f"state_dict and load_state_dict, found {type(stream).__name__} without "
                f"{' and '.join(missing)}; {remedy}, or only watch the run"
            )
        self._stream = stream
        self._every = whole("every", every, least=1)
        self._most = whole("places", places, least=1)
        self._places: OrderedDict[int, Any] = OrderedDict({0: _saved(stream)})
        self._recent: OrderedDict[int, Any] = OrderedDict()
        self._iterator: Iterator[Any] | None = None
        self._next = 0  # index of the batch that the iterator returns next
        self._check_exact()

    def __call__(self, index: int, /) -> Any:
        """Return the batch of data index `index` ≥ 0."""
        index = whole("index", index, least=0)
        if index in self._recent:
            return self._recent[index]
        if self._iterator is None or index < self._next or self._skips_ahead(index):
            self._go_to(max(place for place in self._places if place <= index))
        while self._next <= index:
            batch = self._read()
        return batch

    @property
    def recorded(self) -> tuple[int, ...]:
        """Data indices whose place in the stream is recorded, ascending."""
        return tuple(sorted(self._places))

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded places by data index; `load_state_dict` takes them on."""
        return {"places": dict(self._places)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on recorded places of the same stream, unless all of them are known."""
        if {int(index) for index in state["places"]} <= self._places.keys():
            return
        self._places = OrderedDict({0: self._places[0]})
        for index, place in sorted(state["places"].items()):
            self._places[int(index)] = place
        self._recent.clear()
        self._iterator = None

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamBatches:
        return self

    def _skips_ahead(self, index: int) -> bool:
        """Tell whether a recorded place is nearer to an index than the next batch is."""
        return any(self._next < place <= index for place in self._places)

    def _go_to(self, index: int) -> None:
        """Put the stream at a recorded place."""
        self._stream.load_state_dict(copy.deepcopy(self._places[index]))
        self._iterator = iter(self._stream)
        self._next = index

    def _read(self) -> Any:
        """Return the next batch, and record the place after it where one is due."""
        assert self._iterator is not None
        try:
            batch = next(self._iterator)
        except StopIteration:
            next_index = self._next
            self._go_to(0)
            self._next = next_index
            try:
                batch = next(self._iterator)
            except StopIteration:
                raise UserError(
                    f"expected batches in the stream {type(self._stream).__name__}, found none; "
                    "give one that is not used up"
                ) from None
        self._recent[self._next] = batch
        while len(self._recent) > self._every:
            self._recent.popitem(last=False)
        self._next += 1
        if self._next % self._every == 0 and self._next not in self._places:
            self._places[self._next] = _saved(self._stream)
            while len(self._places) > self._most + 1:
                del self._places[sorted(self._places)[1]]
        return batch

    def _check_exact(self) -> None:
        """Read the first batches, go back into the midst of them, and compare."""
        self._go_to(0)
        first = []
        for _ in range(_TRIED):
            first.append(self._read())
            if len(first) == 1:
                self._places[1] = _saved(self._stream)
        self._go_to(1)
        again = [self._read() for _ in range(_TRIED - 1)]
        if 1 % self._every:
            del self._places[1]
        if not same_data(first[1:], again):
            raise UserError(
                f"a stream must come back to its place exactly, found {type(self._stream).__name__}"
                " with other batches after load_state_dict; switch its shuffle buffer off, or take "
                "a data set with random access"
            )


def _saved(stream: Any) -> Any:
    """Return the place of a stream, independent of what the stream does later."""
    return copy.deepcopy(stream.state_dict())
