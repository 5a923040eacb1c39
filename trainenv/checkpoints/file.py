"""One checkpoint as a file: a JSON header, a JSON manifest, then compressed chunks; no pickle.

    magic 8 · header length 8 · manifest length 8 · digest 16 bytes, little-endian
    header      JSON: schema, tier, step, sequence, the whole state, dtype and shape of each tensor
    manifest    JSON, padded with spaces: for each chunk its xxh3-64 and the lengths of its planes
    chunks      in the order of the header, end to end

The digest is the xxh3-128 of both lengths, header and manifest. It covers the manifest, and the
manifest holds the checksum of each chunk, so every byte of the file is covered. The position of a
chunk follows from the lengths before it: chunks cannot overlap or leave gaps.

Reading trusts nothing that it has not checked, in this order: length of the file, lengths of header
and manifest, digest, schema, memory needed, each chunk.
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
from trainenv.checkpoints.header import BrokenCheckpoint, Header
from trainenv.checkpoints.layout import Chunk
from trainenv.checkpoints.untrusted import short
from trainenv.tools import portable
from trainenv.types import Snapshot, Tier, UserError

# Errors of opening and reading that say that the path holds no readable checkpoint.
_BROKEN = {errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EIO}


def write(
    snapshot: Snapshot,
    path: Path,
    *,
    tier: Tier = "exact",
    sequence: int = 0,
    disk: Disk | None = None,
) -> Header:
    """Write a checkpoint, whole or not at all.

    The steps are: temporary file, fsync, rename, fsync of the folder. After a failure the temporary
    file is deleted and the file at `path` is as before. The one exception is a failed fsync of the
    folder: then the new file is in place, and a power cut may still undo the rename.

    Raises:
        UserError: `read` would refuse the result: the state does not fit the schema, a tensor is
            sparse or of an unknown dtype, or a number is out of range. Or a moment to be rounded is
            not finite.
        OSError: The disk is full or fails.
    """
    header, first, layout = front.compose(snapshot, tier, sequence)
    disk = disk or Disk()
    with _replacing(path, disk) as file:
        offset = front.chunks_start(first, layout)
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
    """Write a small file in the same steps, whole or not at all."""
    with _replacing(path, disk) as file:
        _write_all(disk, file, data, 0)


@contextmanager
def _replacing(path: Path, disk: Disk) -> Iterator[int]:
    """Open a temporary file that replaces `path` if the block succeeds, and is deleted if not."""
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
        written = disk.write(file, rest, offset)
        if written <= 0:
            raise OSError(f"the disk took none of {len(rest)} bytes")
        rest = rest[written:]
        offset = offset + written


def _arrays(
    tensors: Mapping[str, Tensor], rounded: Mapping[str, quantiser.Kind]
) -> Iterator[compression.Words]:
    """Yield the arrays of a file in the order of its layout."""
    for name, tensor in tensors.items():
        if name not in rounded:
            yield compression.words(tensor)
            continue
        moment = compression.words(tensor).view("f4")
        second = None
        if (found := tensors.get(quantiser.second_of(name))) is not None:
            second = compression.words(found).view("f4")
        codes, scales = quantiser.quantise(name, rounded[name], moment, second)
        yield codes
        yield scales.view("u4")


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def read(path: Path) -> Snapshot:
    """Load a checkpoint and verify every checksum.

    Raises:
        BrokenCheckpoint: The file is torn, damaged or of another format.
        UserError: The file does not exist, or needs more memory than is available.
    """
    try:
        return _read(path)
    except MemoryError:
        raise UserError(
            f"{path} needs more memory than the system gave; free some, or load it on a larger "
            "machine"
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
                f"{path} is no whole checkpoint: {short(name)} has scales that are not finite or "
                "below 0"
            )
    moments = {
        name: compression.empty(math.prod(header.tensors[name][1]), 4) for name in header.rounded
    }
    _expand(header, stored, moments)
    whole = stored | moments
    tensors = {}
    for name, (dtype, shape) in header.tensors.items():
        tensors[name] = compression.tensor(whole.pop(name), compression.DTYPES[dtype], shape)
    return Snapshot(step=header.step, tensors=tensors, state=header.state, tier=header.tier)


def read_header(path: Path) -> Header:
    """Read the header of a checkpoint; damage to its chunks is not noticed.

    Raises:
        BrokenCheckpoint: Header, manifest or length of the file is wrong.
        UserError: The file does not exist.
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
                f"{path} is damaged: the checksum of the {sum(chunk.lengths)} bytes at "
                f"{chunk.offset} is wrong"
            )
        try:
            compression.decompress(
                memoryview(stored), chunk.lengths, arrays[chunk.part][chunk.piece], decompressor
            )
        except ValueError as error:
            raise BrokenCheckpoint(f"{path} is damaged at {chunk.offset}: {error}") from None


def _expand(
    header: Header,
    stored: Mapping[str, compression.Words],
    moments: Mapping[str, compression.Words],
) -> None:
    """Restore moments from their codes and scales, one stretch at a time."""
    jobs = [
        (name, kind, slice(start, start + quantiser.STRETCH))
        for name, kind in header.rounded.items()
        for start in range(0, len(moments[name]), quantiser.STRETCH)
    ]

    def parts(name: str, piece: slice) -> tuple[Any, Any]:
        blocks = slice(piece.start // quantiser.BLOCK, piece.stop // quantiser.BLOCK)
        return stored[f"{name}/codes"][piece], stored[f"{name}/scales"].view("f4")[blocks]

    def expand(places: Sequence[int]) -> None:
        for name, kind, piece in (jobs[place] for place in places):
            root = None
            if kind == "direction":
                root = parts(quantiser.second_of(name), piece)
            quantiser.dequantise(kind, *parts(name, piece), root, moments[name].view("f4")[piece])

    _in_threads(len(jobs), expand)


def _in_threads(count: int, work: Any) -> None:
    """Call `work(places)` for `count` places, split over the cores; the work releases the GIL."""
    workers = min(portable.cores(), 8, count)
    if workers <= 1:
        work(range(count))
        return
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work, range(worker, count, workers)) for worker in range(workers)]:
            done.result()


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a regular file for reading, without following a link and without waiting."""
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
    """Make the error for a file that can't be read.

    A link, a folder or a failing disk is a broken checkpoint. A passing problem, such as too many
    open files, says nothing about the checkpoint and is a plain `UserError`.
    """
    message = f"{path} can't be read as a checkpoint: {error.strerror}"
    if error.errno in _BROKEN:
        return BrokenCheckpoint(message)
    return UserError(message)


def _check_memory(header: Header, path: Path) -> None:
    available = psutil.virtual_memory().available
    if header.memory_bytes > available:
        raise UserError(
            f"{path} needs {header.memory_bytes / 2**30:.3g} GiB of memory, found "
            f"{available / 2**30:.3g} GiB available; free some, or load it on a larger machine"
        )
