"""Chunks of a file of tensors: written whole or not at all, read with every checksum verified."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import xxhash
import zstandard

from trainenv.tools import portable
from trainenv.tools.tensor_file import compression, front
from trainenv.tools.tensor_file.filesystem import Disk
from trainenv.tools.tensor_file.layout import Chunk, Part
from trainenv.types import UserError

# Errors of opening and reading that say that the path holds no readable file of tensors.
_BROKEN = {errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EIO}


class BrokenFile(UserError):
    """A file of tensors that is torn, damaged, or of another format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of file, for errors.

    Attributes:
        name: Noun of the kind, such as `checkpoint`.
        broken: Class of the error for a broken file.
    """

    name: str
    broken: type[BrokenFile] = BrokenFile


def write(
    path: Path,
    header: bytes,
    layout: Sequence[Part],
    arrays: Iterable[compression.Words],
    disk: Disk,
) -> tuple[str, int]:
    """Write a file whole or not at all, and return its digest and length.

    The steps are: temporary file, fsync, rename, fsync of the folder. After a failure the temporary
    file is deleted and the file at `path` is as before. The one exception is a failed fsync of the
    folder: then the new file is in place, and a power cut may still undo the rename.

    Args:
        path: Place of the file. Its folder must exist.
        header: Encoded header.
        layout: The arrays of the file, in order.
        arrays: Words of each array, in the same order.
        disk: File system.

    Raises:
        OSError: The disk is full or fails.
    """
    with replacing(path, disk) as file:
        offset = front.chunks_start(header, layout)
        table: list[list[Any]] = []
        compressor = zstandard.ZstdCompressor(level=compression.LEVEL)
        for part, array in zip(layout, arrays, strict=True):
            for piece in part.pieces:
                stored = compression.compress(array[piece], compressor)
                data = b"".join(stored)
                write_all(disk, file, data, offset)
                offset += len(data)
                table.append([xxhash.xxh3_64_hexdigest(data), *map(len, stored)])
        sealed, digest = front.seal(header, layout, table)
        write_all(disk, file, sealed, 0)
    return digest, offset


def read(
    file: int, path: Path, layout: Sequence[Part], chunks: Sequence[Chunk], kind: Kind
) -> dict[str, compression.Words]:
    """Read all arrays of an open file by name, and verify the checksum of each chunk.

    Raises:
        BrokenFile: A chunk is damaged; of the class that `kind` names.
    """
    arrays = [compression.empty(part.words, part.word_size) for part in layout]
    in_threads(
        len(chunks),
        lambda places: _read_chunks(file, path, arrays, [chunks[place] for place in places], kind),
    )
    return {part.name: array for part, array in zip(layout, arrays)}


def write_whole(path: Path, data: bytes, disk: Disk) -> None:
    """Write a small file in the same steps as `write`, whole or not at all."""
    with replacing(path, disk) as file:
        write_all(disk, file, data, 0)


@contextmanager
def replacing(path: Path, disk: Disk) -> Iterator[int]:
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


def write_all(disk: Disk, file: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    rest = memoryview(data)
    while rest:
        written = disk.write(file, rest, offset)
        if written <= 0:
            raise OSError(f"the disk took none of {len(rest)} bytes")
        rest = rest[written:]
        offset = offset + written


def _read_chunks(
    file: int, path: Path, arrays: Sequence[compression.Words], chunks: Sequence[Chunk], kind: Kind
) -> None:
    decompressor = compression.decompressor()
    for chunk in chunks:
        stored = portable.read_at(file, sum(chunk.lengths), chunk.offset)
        if xxhash.xxh3_64_hexdigest(stored) != chunk.checksum:
            raise kind.broken(
                f"{path} is damaged: the checksum of the {sum(chunk.lengths)} bytes at "
                f"{chunk.offset} is wrong"
            )
        try:
            compression.decompress(
                memoryview(stored), chunk.lengths, arrays[chunk.part][chunk.piece], decompressor
            )
        except ValueError as error:
            raise kind.broken(f"{path} is damaged at {chunk.offset}: {error}") from None


def in_threads(count: int, work: Any) -> None:
    """Call `work(places)` for `count` places, split over the cores; the work releases the GIL."""
    workers = min(portable.cores(), 8, count)
    if workers <= 1:
        work(range(count))
        return
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work, range(worker, count, workers)) for worker in range(workers)]:
            done.result()


@contextmanager
def opened(path: Path, kind: Kind) -> Iterator[int]:
    """Open a regular file for reading, without following a link and without waiting."""
    try:
        file = portable.open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        raise UserError(f"expected a {kind.name} at {path}, found no file") from None
    except OSError as error:
        raise _refused(path, error, kind) from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise kind.broken(f"{path} is no regular file")
        yield file
    except OSError as error:
        raise _refused(path, error, kind) from None
    finally:
        os.close(file)


def _refused(path: Path, error: OSError, kind: Kind) -> UserError:
    """Make the error for a file that can't be read.

    A link, a folder or a failing disk is a broken file. A passing problem, such as too many open
    files, says nothing about the file and is a plain `UserError`.
    """
    message = f"{path} can't be read as a {kind.name}: {error.strerror}"
    if error.errno in _BROKEN:
        return kind.broken(message)
    return UserError(message)


def check_memory(needed: int, path: Path) -> None:
    """Check that the tensors of a file fit into the available memory.

    Raises:
        UserError: They don't.
    """
    available = psutil.virtual_memory().available
    if needed > available:
        raise UserError(
            f"{path} needs {needed / 2**30:.3g} GiB of memory, found "
            f"{available / 2**30:.3g} GiB available; free some, or load it on a larger machine"
        )
