"""Layout of the arrays in a file of tensors: their order, their chunks and the position of each.

Everything here follows from the dtypes and shapes in the header and from the lengths in the
manifest. No position is stored, so a file cannot make chunks overlap or leave gaps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trainenv.tools.tensor_file import compression
from trainenv.tools.tensor_file.untrusted import short

Specs = Mapping[str, tuple[str, tuple[int, ...]]]  # name of a tensor → dtype and shape


class Part(NamedTuple):
    """One array in the file: a tensor, or the codes or the scales of a rounded tensor.

    Attributes:
        name: Name of the tensor; in a checkpoint with `/codes` or `/scales` appended where it is
            rounded.
        words: Number of words in the array.
        word_size: Bytes of a word, which is also the number of byte planes of a chunk.
    """

    name: str
    words: int
    word_size: int

    @property
    def pieces(self) -> list[slice]:
        """The range of words in each chunk."""
        step = compression.CHUNK_BYTES // self.word_size
        return [slice(start, min(start + step, self.words)) for start in range(0, self.words, step)]

    @property
    def room(self) -> int:
        """Bytes reserved in the manifest: for each chunk a checksum and one length a byte plane."""
        chunks = -(-self.words * self.word_size // compression.CHUNK_BYTES)
        return (21 + 8 * self.word_size) * chunks


class Chunk(NamedTuple):
    """Position, checksum and destination of one chunk.

    Attributes:
        part: Index of its array in the layout.
        piece: Range of words that it holds.
        offset: Position in the file, bytes.
        checksum: The xxh3-64 of the stored bytes, 16 hex digits.
        lengths: Stored length of each byte plane, bytes.
    """

    part: int
    piece: slice
    offset: int
    checksum: str
    lengths: list[int]


def plain_part(name: str, dtype: str, shape: Sequence[int]) -> Part:
    """Return the part of a tensor that is stored as it is."""
    kind = compression.DTYPES[dtype]
    word = compression.word_size(kind)
    return Part(name, math.prod(shape) * kind.itemsize // word, word)


def manifest_bytes(layout: Sequence[Part]) -> int:
    """Return the length of the manifest of a file with this layout."""
    return 2 + sum(part.room for part in layout)


def locate_chunks(layout: Sequence[Part], table: Any, length: int, offset: int) -> list[Chunk]:
    """Find every chunk by adding up the lengths in the manifest.

    Args:
        layout: The arrays of the file, in order.
        table: Parsed manifest: for each chunk its checksum and the lengths of its planes. Its rows
            are used up.
        length: Length of the file, bytes.
        offset: Position of the first chunk, bytes.

    Raises:
        ValueError: Manifest and layout disagree, or the last chunk does not end where the file
            ends.
    """
    expected = sum(len(part.pieces) for part in layout)
    if not isinstance(table, list):
        raise ValueError(f"its manifest should list {expected} chunks, found {short(table)}")
    if len(table) != expected:
        raise ValueError(f"its manifest should list {expected} chunks, found {len(table)}")
    chunks = []
    rows = iter(table)
    for place, part in enumerate(layout):
        for piece in part.pieces:
            checksum, lengths = _checked_row(next(rows), part, piece.stop - piece.start)
            chunks.append(Chunk(place, piece, offset, checksum, lengths))
            offset += sum(lengths)
    if offset != length:
        raise ValueError(f"it should have {offset} bytes, found {length}")
    return chunks


def _checked_row(row: Any, part: Part, raw: int) -> tuple[str, list[int]]:
    """Split a row of the manifest into checksum and lengths; no plane is longer than `raw`."""
    if not (
        isinstance(row, list)
        and len(row) == 1 + part.word_size
        and isinstance(row[0], str)
        and len(row[0]) == 16
    ):
        raise ValueError(
            f"its manifest has no checksum and {part.word_size} lengths for a chunk of "
            f"{short(part.name)}"
        )
    checksum = row.pop(0)  # in place: a manifest may have so many rows that copies would count
    if not all(type(size) is int and 0 < size <= raw for size in row):
        raise ValueError(f"its manifest has impossible lengths for a chunk of {short(part.name)}")
    return checksum, row
