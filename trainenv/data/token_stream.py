"""Tokens of a text too long to be read as a whole: made when they are asked for, in a fixed order, and kept on disk.

The cache holds chunks of one fixed size. Each notes where in the text the next one starts, so that
a stream resumes where it stopped, and a chunk that was torn is made again. A chunk is the same
whoever makes it, so runs may share a folder.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainenv.data import cache
from trainenv.data.corpus import Indices
from trainenv.data.documents import Documents
from trainenv.data.tokenizers import IntArray, Tokenizer, dtype

CHUNK = 1 << 20  # tokens of a chunk
_KEPT = 4  # chunks kept in memory
_TOGETHER = 256  # documents tokenised in one call, which uses every core


class Position(NamedTuple):
    """A place in the text: `token` tokens into the document at place `document` of the shard at place `shard`."""

    shard: int
    document: int
    token: int


Piece = tuple[Position, IntArray]  # tokens of one document, and where they start


class TokenStream:
    """A growing array of tokens. What it holds at a place never changes, so copies share it.

    Args:
        documents: the text.
        tokenizer: makes the tokens; its separator follows each document.
        folder: where chunks are kept; its name must tell texts and tokenizers apart.
        limit: tokens after which the stream ends, or None: at the end of the text.
        chunk: tokens of a chunk.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Tokenizer,
        folder: Path,
        limit: int | None = None,
        chunk: int = CHUNK,
    ):
        self.documents = documents
        self.tokenizer = tokenizer
        self.folder = folder
        self.limit = limit
        self.chunk = chunk
        self._kept: OrderedDict[int, tuple[IntArray, Position]] = OrderedDict()
        self._open: tuple[int, list[Piece], Iterator[Piece]] | None = (
            None  # the next chunk, what is left over, what comes
        )
        self._end: int | None = None
        self._lock = threading.RLock()

    def grow(self, stop: int) -> int:
        """How many of the first `stop` tokens there are: all of them, unless the stream ends before.

        Raises:
            UserError: the text could not be read on, or the cache not be written.
        """
        if self.limit is not None:
            stop = min(stop, self.limit)
        if self._end is None and stop > 0:
            self._chunk((stop - 1) // self.chunk)
        return stop if self._end is None else min(stop, self._end)

    def cut(self, starts: Indices, length: int) -> Indices:
        """The `length` tokens from each start, [n, length] int64. They must be there (`grow`)."""
        return np.stack([self._slice(int(start), int(start) + length) for start in starts]).astype(
            np.int64
        )

    def _slice(self, start: int, stop: int) -> IntArray:
        first = start // self.chunk
        last = (stop - 1) // self.chunk
        if first == last:
            return self._chunk(first)[start - first * self.chunk : stop - first * self.chunk]
        tokens = np.concatenate([self._chunk(place) for place in range(first, last + 1)])
        return tokens[start - first * self.chunk : stop - first * self.chunk]

    def _chunk(self, place: int) -> IntArray:
        """The tokens of a chunk: fewer than `chunk` of them where the text ends in it, none beyond."""
        with self._lock:
            if place not in self._kept:
                self._make_ready(place)
            if place not in self._kept:
                return np.zeros(0, dtype(self.tokenizer.vocab_size))
            self._kept.move_to_end(place)
            return self._kept[place][0]

    def _make_ready(self, place: int) -> None:
        """Read the chunk at `place`, or make those that are missing up to it."""
        have = place if self._path(place).exists() else min(place, self._last_on_disk())
        while have >= 0 and have not in self._kept and not self._read(have):
            have -= 1
        for missing in range(have + 1, place + 1):
            if self._end is not None and missing * self.chunk >= self._end:
                return
            before = self._kept[missing - 1][1] if missing else Position(0, 0, 0)
            self._keep(missing, *self._make(missing, before))

    def _last_on_disk(self) -> int:
        """The last chunk in the folder, whole or not; -1 where there is none."""
        return max(
            (int(file.stem.split("-")[1]) for file in self.folder.glob(f"{self.chunk}-*.tokens")),
            default=-1,
        )

    def _read(self, place: int) -> bool:
        facts = cache.facts(self._path(place))
        if facts is None:
            return False
        tokens = np.frombuffer(self._path(place).read_bytes(), dtype(self.tokenizer.vocab_size))
        self._keep(place, tokens, Position(*facts["next"]))
        return True

    def _make(self, place: int, position: Position) -> tuple[IntArray, Position]:
        """Tokenise a chunk from `position` on and write it; where the next one starts."""
        if self._open is None or self._open[0] != place:
            self._open = (place, [], self._pieces(position))
        _, left_over, pieces = self._open
        self._open = None  # what a failure leaves half read is not read on
        parts = []
        missing = self.chunk
        for position, piece in chain(left_over, pieces):
            parts.append(piece[:missing])
            if len(piece) >= missing:
                position = position._replace(token=position.token + missing)
                self._open = (place + 1, [(position, piece[missing:])], pieces)
                break
            missing -= len(piece)
        tokens = np.concatenate([np.zeros(0, dtype(self.tokenizer.vocab_size)), *parts])
        cache.write(self._path(place), tokens.tobytes(), next=list(position), tokens=len(tokens))
        return tokens, position

    def _keep(self, place: int, tokens: IntArray, after: Position) -> None:
        self._kept[place] = (tokens, after)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        if len(tokens) < self.chunk:
            self._end = place * self.chunk + len(tokens)

    def _pieces(self, position: Position) -> Iterator[Piece]:
        """The tokens of each document from `position` on, separator included, with where they start."""
        separator = self.tokenizer.separator
        for shard in range(position.shard, len(self.documents.shards)):
            first, drop = position[1:] if shard == position.shard else (0, 0)
            rows = islice(self.documents.read(shard), first, None)
            while together := list(islice(rows, _TOGETHER)):
                for tokens in self.tokenizer.encode(together):
                    yield Position(shard, first, drop), np.concatenate([tokens, separator])[drop:]
                    first = first + 1
                    drop = 0

    def _path(self, place: int) -> Path:
        return self.folder / f"{self.chunk}-{place:06d}.tokens"

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenStream:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStream, (self.documents, self.tokenizer, self.folder, self.limit, self.chunk)
