"""One checkpoint as a file: front (JSON header and manifest), then compressed chunks.

No pickle either way.

    magic 8 · header length 8 · manifest length 8 · digest 16     little-endian; xxh3-128 of the
    lengths, header and manifest header      JSON: schema, tier, step, sequence, the whole state,
    dtype and shape of every tensor manifest    JSON, filled up with spaces: of every chunk its
    xxh3-64 and the lengths of its planes chunks      in the header's order, end to end

Where a chunk lies follows from the lengths before it, so chunks can't overlap or leave gaps. The
manifest holds the checksum of every chunk and the digest covers the manifest: each byte of the file
is accounted for. A file is read only as far as what was checked before allows: its length, the
front's lengths, the digest, the schema, the memory it asks for, each chunk.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import xxhash
import zstandard
from torch import Tensor

from trainenv.checkpoints import compression, quantiser
from trainenv.checkpoints import header as front
from trainenv.checkpoints.filesystem import Disk
from trainenv.checkpoints.header import BrokenCheckpoint, Chunk, Header
from trainenv.tools import portable
from trainenv.types import Snapshot, Tier, UserError

_BROKEN = {
    errno.ELOOP,
    errno.EISDIR,
    errno.ENXIO,
    errno.ENODEV,
    errno.EIO,
}  # what is there is no checkpoint


def write(
    snapshot: Snapshot,
    path: Path,
    *,
    tier: Tier = "exact",
    sequence: int = 0,
    disk: Disk | None = None,
) -> Header:
    """Write a checkpoint, whole or not at all: a temporary file, fsync, rename, fsync of the folder.

    On any failure the temporary file is gone and what lay at `path` is intact, but for one: where
    the fsync of the folder fails, the new file is in place, and a power cut may still undo that.

    Raises:
        UserError: it is nothing that `read` would take: the state does not fit the schema, a tensor
            is sparse or of an unknown dtype, a number is out of range; or a moment that should be
            rounded is not finite.
        OSError: the disk is full or fails.
    """
    header, first, layout = front.compose(snapshot, tier, sequence)
    disk = disk or Disk()
    with _replacing(path, disk) as file:
        offset = front.start(first, layout)
        table: list[list[Any]] = []
        compressor = zstandard.ZstdCompressor(level=compression.LEVEL)
        for part, array in zip(layout, _arrays(snapshot.tensors, header.rounded), strict=True):
            for piece in part.pieces:
                stored = compression.compress(array[piece], compressor)
                data = b"".join(stored)
                _write_all(disk, file, data, offset)
                offset += len(data)
                table.append([xxhash.xxh3_64_hexdigest(data), *map(len, stored)])
        sealed, digest = front.seal(first, layout, table)
        _write_all(disk, file, sealed, 0)
    return replace(header, digest=digest, file_bytes=offset)


def write_whole(path: Path, data: bytes, disk: Disk) -> None:
    """Write a small file by the same protocol, whole or not at all."""
    with _replacing(path, disk) as file:
        _write_all(disk, file, data, 0)


@contextmanager
def _replacing(path: Path, disk: Disk) -> Iterator[int]:
    """An open temporary file that takes `path`'s place, for good, once the block has ended well; else it is gone."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        file = disk.create(temporary)
        try:
            yield file
            disk.sync(file)
        finally:
            disk.close(file)
        disk.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            disk.unlink(temporary)
        raise
    disk.sync_folder(path.parent)


def _write_all(disk: Disk, file: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        taken = disk.write(file, rest, offset)
        if taken <= 0:
            raise OSError(f"the disk took none of {len(rest)} bytes")
        rest = rest[taken:]
        offset = offset + taken


def _arrays(
    tensors: Mapping[str, Tensor], rounded: Mapping[str, quantiser.Kind]
) -> Iterator[compression.Words]:
    """What the layout lists, one array after the other."""
    for name, tensor in tensors.items():
        if name not in rounded:
            yield compression.words(tensor)
            continue
        second = tensors.get(quantiser.second_of(name))
        kind = rounded[name]
        flat = compression.words(tensor).view("f4")
        codes, scales = quantiser.quantise(
            name, kind, flat, compression.words(second).view("f4") if second is not None else None
        )
        yield codes
        yield scales.view("u4")


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def read(path: Path) -> Snapshot:
    """Load a checkpoint, every checksum verified.

    Raises:
        BrokenCheckpoint: the file is torn, damaged or none of ours.
        UserError: there is no such file, or it needs more memory than there is.
    """
    try:
        return _read(path)
    except MemoryError:
        raise UserError(
            f"{path} needs more memory than the system gave; free some, or load it on a larger machine"
        ) from None


def _read(path: Path) -> Snapshot:
    with _opened(path) as file:
        header, layout, chunks = front.parse(file, path)
        _check_memory(header, path)
        arrays = [compression.empty(part.words, part.word_size) for part in layout]
        _in_threads(
            len(chunks),
            lambda places: _read_chunks(file, path, arrays, [chunks[place] for place in places]),
        )
    stored = {part.name: array for part, array in zip(layout, arrays)}
    for name in header.rounded:
        if not quantiser.are_scales(stored[f"{name}/scales"].view("f4")):
            raise BrokenCheckpoint(
                f"{path} is no whole checkpoint: {front.short(name)} has scales that are not finite or below 0"
            )
    whole = {
        name: stored[name] if name in stored else compression.empty(math.prod(shape), 4)
        for name, (_, shape) in header.tensors.items()
    }
    _expand(header, stored, whole)
    tensors = {}
    for name, (dtype, shape) in header.tensors.items():
        tensors[name] = compression.tensor(whole.pop(name), compression.DTYPES[dtype], shape)
    return Snapshot(step=header.step, tensors=tensors, state=header.state, tier=header.tier)


def read_header(path: Path) -> Header:
    """The front of a checkpoint. Its chunks are not read, so damage to them goes unnoticed.

    Raises:
        BrokenCheckpoint: the front or the length of the file is not right.
        UserError: there is no such file.
    """
    with _opened(path) as file:
        return front.parse(file, path)[0]


def _read_chunks(
    file: int, path: Path, arrays: Sequence[compression.Words], chunks: Sequence[Chunk]
) -> None:
    decompressor = compression.decompressor()
    for chunk in chunks:
        stored = portable.read_at(file, sum(chunk.lengths), chunk.offset)
        if xxhash.xxh3_64_hexdigest(stored) != chunk.checksum:
            raise BrokenCheckpoint(
                f"{path} is damaged: the checksum of the {sum(chunk.lengths)} bytes at {chunk.offset} is wrong"
            )
        try:
            compression.decompress(
                memoryview(stored), chunk.lengths, arrays[chunk.part][chunk.piece], decompressor
            )
        except ValueError as error:
            raise BrokenCheckpoint(f"{path} is damaged at {chunk.offset}: {error}") from None


def _expand(
    header: Header, stored: Mapping[str, compression.Words], whole: Mapping[str, compression.Words]
) -> None:
    """Codes and scales → moments, a stretch at a time."""
    jobs = [
        (name, kind, slice(start, start + quantiser.STRETCH))
        for name, kind in header.rounded.items()
        for start in range(0, len(whole[name]), quantiser.STRETCH)
    ]

    def parts(name: str, piece: slice) -> tuple[Any, Any]:
        blocks = slice(piece.start // quantiser.BLOCK, piece.stop // quantiser.BLOCK)
        return stored[f"{name}/codes"][piece], stored[f"{name}/scales"].view("f4")[blocks]

    def expand(places: Sequence[int]) -> None:
        for name, kind, piece in (jobs[place] for place in places):
            root = parts(quantiser.second_of(name), piece) if kind == "direction" else None
            quantiser.dequantise(kind, *parts(name, piece), root, whole[name].view("f4")[piece])

    _in_threads(len(jobs), expand)


def _in_threads(count: int, work: Any) -> None:
    """`work(places)` for `count` places, dealt out to as many threads as there are cores; everything in it leaves the GIL."""
    workers = min(portable.cores(), 8, count)
    if workers <= 1:
        work(range(count))
        return
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work, range(worker, count, workers)) for worker in range(workers)]:
            done.result()


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A regular file, opened for reading; no link is followed, and nothing waits."""
    try:
        file = portable.open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        raise UserError(f"expected a checkpoint at {path}, found no file") from None
    except OSError as error:
        raise _refused(path, error) from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise BrokenCheckpoint(f"{path} is no regular file")
        yield file
    except OSError as error:
        raise _refused(path, error) from None
    finally:
        os.close(file)


def _refused(path: Path, error: OSError) -> UserError:
    """A link, a folder or a failing disk is a broken checkpoint; what may pass (too many open files, say) tells nothing of it."""
    kind = BrokenCheckpoint if error.errno in _BROKEN else UserError
    return kind(f"{path} can't be read as a checkpoint: {error.strerror}")


def _check_memory(header: Header, path: Path) -> None:
    available = psutil.virtual_memory().available
    if header.memory_bytes > available:
        raise UserError(
            f"{path} needs {header.memory_bytes / 2**30:.3g} GiB of memory, found {available / 2**30:.3g} GiB available; "
            "free some, or load it on a larger machine"
        )
