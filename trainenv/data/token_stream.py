"""Tokens of a text too long to be read as a whole, made on demand in a fixed order.

They are kept on disk in chunks of a fixed size. Each chunk records where in the text the next one
starts, so that a stream resumes where it stopped; a torn chunk is made again. Every process makes
the same chunks, so runs may share a folder.
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
    """A position in the text.

    Attributes:
        shard: Index of the shard.
        document: Index of the document in the shard.
        token: Index of the token in the document.
    """

    shard: int
    document: int
    token: int


Piece = tuple[Position, IntArray]  # tokens of one document, and the position of the first


class TokenStream:
    """A growing array of tokens; existing tokens never change, so copies share it.

    Args:
        documents: Text to tokenise.
        tokenizer: Tokenizer; its separator follows each document.
        folder: Folder of the chunks; its name must differ for other texts and tokenizers.
        limit: Number of tokens after which the stream ends; None for the end of the text.
        chunk: Number of tokens of a chunk.
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
        # Index of the next chunk, pieces left over from the last one, pieces still to come.
        self._open: tuple[int, list[Piece], Iterator[Piece]] | None = None
        self._end: int | None = None
        self._lock = threading.RLock()

    def grow(self, stop: int) -> int:
        """Make the first `stop` tokens; return their number, lower if the stream ends before.

        Raises:
            UserError: The text could not be read, or the cache not written.
        """
        if self.limit is not None:
            stop = min(stop, self.limit)
        if self._end is None and stop > 0:
            self._chunk((stop - 1) // self.chunk)
        if self._end is None:
            return stop
        return min(stop, self._end)

    def cut(self, starts: Indices, length: int) -> Indices:
        """Return `length` tokens from each start [n, length], int64; `grow` must have made them."""
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
        """Return the tokens of a chunk: fewer where the text ends in it, none beyond the end."""
        with self._lock:
            if place not in self._kept:
                self._make_ready(place)
            if place not in self._kept:
                return np.zeros(0, dtype(self.tokenizer.vocab_size))
            self._kept.move_to_end(place)
            return self._kept[place][0]

    def _make_ready(self, place: int) -> None:
        """Read the chunk at `place`, or make the missing ones up to it."""
        have = place
        if not self._path(place).exists():
            have = min(place, self._last_on_disk())
        while have >= 0 and have not in self._kept and not self._read(have):
            have -= 1
        for missing in range(have + 1, place + 1):
            if self._end is not None and missing * self.chunk >= self._end:
                return
            start = Position(0, 0, 0)
            if missing:
                start = self._kept[missing - 1][1]
            self._keep(missing, *self._make(missing, start))

    def _last_on_disk(self) -> int:
        """Return the index of the last chunk in the folder, whole or torn; -1 without chunks."""
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
        """Tokenise a chunk from `position` on and write it; also return the next one's position."""
        if self._open is None or self._open[0] != place:
            self._open = (place, [], self._pieces(position))
        _, left_over, pieces = self._open
        self._open = None  # after a failure, a half-read iterator is not used again
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
        """Yield the tokens of each document from `position` on, with separator and position."""
        separator = self.tokenizer.separator
        _, document, drop = position
        for shard in range(position.shard, len(self.documents.shards)):
            rows = islice(self.documents.read(shard), document, None)
            while together := list(islice(rows, _TOGETHER)):
                for tokens in self.tokenizer.encode(together):
                    start = Position(shard, document, drop)
                    yield start, np.concatenate([tokens, separator])[drop:]
                    document += 1
                    drop = 0
            document = 0
            drop = 0

    def _path(self, place: int) -> Path:
        return self.folder / f"{self.chunk}-{place:06d}.tokens"

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenStream:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStream, (self.documents, self.tokenizer, self.folder, self.limit, self.chunk)
