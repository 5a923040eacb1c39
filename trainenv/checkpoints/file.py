"""One checkpoint as a file: front (JSON header and manifest), then compressed chunks. No pickle either way.

    magic 8 · header length 8 · manifest length 8 · digest 16     little-endian; xxh3-128 of the lengths, header and manifest
    header      JSON: schema, tier, step, sequence, the whole state, dtype and shape of every tensor
    manifest    JSON, filled up with spaces: of every chunk its xxh3-64 and the lengths of its planes
    chunks      in the header's order, end to end

Where a chunk lies follows from the lengths before it, so chunks can't overlap or leave gaps. The manifest holds the checksum
of every chunk and the digest covers the manifest: each byte of the file is accounted for. A file is read only as far as what
was checked before allows: its length, the front's lengths, the digest, the schema, the memory it asks for, each chunk.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
import xxhash
import zstandard
from torch import Tensor

from trainenv.checkpoints import planes, quantiser, schema
from trainenv.checkpoints.disk import Disk
from trainenv.types import Snapshot, Tier, UserError

FORMAT = "trainenv checkpoint"
MAGIC = b"\x93trenv\r\n"  # as PNG's: a byte that is no text, and line ends that a careless copy would change
FIXED_MEMORY = 256 << 20  # bytes that reading may take beside what the header declares; what follows sees to it
FRONT_MOST = 8 << 20  # bytes that a header or a manifest may have
PARSED_MOST = 96 << 20  # bytes that either may become as Python objects
# What CPython allocates, at most, for a list, an object, an element, a pair and half a text.
COSTS = {b"[": 104, b"{": 272, b",": 48, b":": 256, b'"': 48}
TENSORS_MOST = 1 << 16  # each is a few objects, however small
DEEPEST = 64  # levels of nesting in a state: whoever walks one may recurse
NUMBERS = range(2**63)  # of steps and saves
DRIFT: dict[Tier, str | None] = {
    "exact": None,
    "8bit": "Moments are rounded to 8 bits in blocks of 256: going on from this file is not bit for bit going on.",
}
_TENSOR = "__tensor__"  # key of the mark that stands for a tensor in a state
_PROLOGUE = struct.Struct("<8sQQ16s")


class BrokenCheckpoint(UserError):
    """A checkpoint file is torn, damaged, or none of ours. The message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the front of a checkpoint file says, checked against its digest, the schema and the file's length.

    Attributes:
        step: optimizer steps completed.
        sequence: order of saving within a store, from 1; 0 outside of one.
        tier: `exact`, or `8bit` where moments were rounded.
        digest: 32 hex digits, xxh3-128 over the front, and through its checksums over the whole file.
        file_bytes: length of the file.
        memory_bytes: what loading allocates for tensors.
        state: everything that is no tensor, as in `Snapshot.state`.
        tensors: name → dtype and shape.
        rounded: name → how its elements were rounded, see `quantiser`.
    """

    step: int
    sequence: int
    tier: Tier
    digest: str
    file_bytes: int
    memory_bytes: int
    state: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = field(repr=False)
    rounded: Mapping[str, quantiser.Kind] = field(repr=False)


class _Part(NamedTuple):
    """An array as it lies in the file: a tensor, or the codes or the scales of a rounded one."""

    name: str
    words: int
    word_size: int

    @property
    def pieces(self) -> list[slice]:
        """The words of each chunk."""
        step = planes.CHUNK_BYTES // self.word_size
        return [slice(start, min(start + step, self.words)) for start in range(0, self.words, step)]

    @property
    def room(self) -> int:
        """Bytes of its lines in the manifest: of every chunk a checksum, and a length a plane."""
        return (21 + 8 * self.word_size) * -(-self.words * self.word_size // planes.CHUNK_BYTES)


class _Chunk(NamedTuple):
    """Where a chunk lies in the file, and where it belongs."""

    part: int
    piece: slice
    offset: int
    checksum: str
    lengths: list[int]


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(snapshot: Snapshot, path: Path, *, tier: Tier = "exact", sequence: int = 0, disk: Disk | None = None) -> Header:
    """Write a checkpoint, whole or not at all: a temporary file, fsync, rename, fsync of the folder.

    On any failure the temporary file is gone and what lay at `path` is intact.

    Raises:
        UserError: it is nothing that `read` would take: the state does not fit the schema, a tensor is sparse or of an unknown
            dtype, a number is out of range; or a moment that should be rounded is not finite.
        OSError: the disk is full or fails.
    """
    where = f"the snapshot of step {snapshot.step}"
    schema.check_state(snapshot.state, where)
    tensors = {name: (_dtype_name(name, t), tuple(t.shape)) for name, t in snapshot.tensors.items()}
    rounded = quantiser.kinds(snapshot.tensors) if tier == "8bit" else {}
    layout = _layout(tensors, rounded)
    header: dict[str, Any] = {
        "format": FORMAT,
        "schema": schema.VERSION,
        "tier": tier,
        "drift": DRIFT[tier],
        "step": snapshot.step,
        "sequence": sequence,
        "memory_bytes": _memory(tensors, layout),
        "state": snapshot.state,
        "tensors": tensors,
        "rounded": rounded,
    }
    room = _room(layout)
    try:
        front = json.dumps(header, separators=(",", ":"), default=dict).encode()
        if max(len(front), room) > FRONT_MOST:
            raise ValueError(f"beside its tensors it needs {max(len(front), room)} bytes in one piece, {FRONT_MOST} fit")
        _contents(parse_json(front), where)
    except UserError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where} does not fit into a checkpoint: {error}") from None
    disk = disk or Disk()
    with _replacing(path, disk) as file:
        offset = _PROLOGUE.size + len(front) + room
        table: list[list[Any]] = []
        compressor = zstandard.ZstdCompressor(level=planes.LEVEL)
        for part, array in zip(layout, _arrays(snapshot.tensors, rounded), strict=True):
            for piece in part.pieces:
                stored = planes.compress(array[piece], compressor)
                data = b"".join(stored)
                _write_all(disk, file, data, offset)
                offset += len(data)
                table.append([xxhash.xxh3_64_hexdigest(data), *map(len, stored)])
        manifest = json.dumps(table, separators=(",", ":")).encode().ljust(room)
        digest = _digest(front, manifest)
        _write_all(disk, file, _PROLOGUE.pack(MAGIC, len(front), room, digest) + front + manifest, 0)
    return Header(
        step=snapshot.step,
        sequence=sequence,
        tier=tier,
        digest=digest.hex(),
        file_bytes=offset,
        memory_bytes=header["memory_bytes"],
        state=snapshot.state,
        tensors=tensors,
        rounded=rounded,
    )


def write_whole(path: Path, data: bytes, disk: Disk) -> None:
    """Write a small file by the same protocol, whole or not at all."""
    with _replacing(path, disk) as file:
        _write_all(disk, file, data, 0)


@contextmanager
def _replacing(path: Path, disk: Disk) -> Iterator[int]:
    """An open temporary file that takes `path`'s place, for good, once the block has ended well; else it is gone."""
    temporary = path.with_name(f".{path.name}.tmp")
    file = disk.create(temporary)
    try:
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
        rest, offset = rest[taken:], offset + taken


def _arrays(tensors: Mapping[str, Tensor], rounded: Mapping[str, quantiser.Kind]) -> Iterator[planes.Words]:
    """What `_layout` lists, one array after the other."""
    for name, tensor in tensors.items():
        if name not in rounded:
            yield planes.words(tensor)
            continue
        second = tensors.get(quantiser.second_of(name))
        kind, flat = rounded[name], planes.words(tensor).view("f4")
        codes, scales = quantiser.quantise(name, kind, flat, planes.words(second).view("f4") if second is not None else None)
        yield codes
        yield scales.view("u4")


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def read(path: Path) -> Snapshot:
    """Load a checkpoint, every checksum verified.

    Raises:
        BrokenCheckpoint: the file is torn, damaged or none of ours.
        UserError: there is no such file, or it needs more memory than there is.
    """
    try:
        return _read(path)
    except MemoryError:
        raise UserError(f"{path} needs more memory than the system gave; free some, or load it on a larger machine") from None


def _read(path: Path) -> Snapshot:
    with _opened(path) as file:
        header, layout, chunks = _front(file, path)
        _check_memory(header, path)
        arrays = [planes.empty(part.words, part.word_size) for part in layout]
        _in_threads(len(chunks), lambda places: _read_chunks(file, path, arrays, [chunks[place] for place in places]))
    stored = {part.name: array for part, array in zip(layout, arrays)}
    for name in header.rounded:
        if not quantiser.are_scales(stored[f"{name}/scales"].view("f4")):
            raise BrokenCheckpoint(f"{path} is no whole checkpoint: {_short(name)} has scales that are not finite or below 0")
    whole = {
        name: stored[name] if name in stored else planes.empty(math.prod(shape), 4) for name, (_, shape) in header.tensors.items()
    }
    _expand(header, stored, whole)
    tensors = {}
    for name, (dtype, shape) in header.tensors.items():
        tensors[name] = planes.tensor(whole.pop(name), planes.DTYPES[dtype], shape)
    return Snapshot(step=header.step, tensors=tensors, state=header.state, tier=header.tier)


def read_header(path: Path) -> Header:
    """The front of a checkpoint. Its chunks are not read, so damage to them goes unnoticed.

    Raises:
        BrokenCheckpoint: the front or the length of the file is not right.
        UserError: there is no such file.
    """
    with _opened(path) as file:
        return _front(file, path)[0]


def _read_chunks(file: int, path: Path, arrays: Sequence[planes.Words], chunks: Sequence[_Chunk]) -> None:
    decompressor = planes.decompressor()
    for chunk in chunks:
        stored = os.pread(file, sum(chunk.lengths), chunk.offset)
        if xxhash.xxh3_64_hexdigest(stored) != chunk.checksum:
            raise BrokenCheckpoint(
                f"{path} is damaged: the checksum of the {sum(chunk.lengths)} bytes at {chunk.offset} is wrong"
            )
        try:
            planes.decompress(memoryview(stored), chunk.lengths, arrays[chunk.part][chunk.piece], decompressor)
        except ValueError as error:
            raise BrokenCheckpoint(f"{path} is damaged at {chunk.offset}: {error}") from None


def _expand(header: Header, stored: Mapping[str, planes.Words], whole: Mapping[str, planes.Words]) -> None:
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
    workers = min(len(os.sched_getaffinity(0)), 8, count)
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
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UserError(f"expected a checkpoint at {path}, found no file") from None
    except OSError as error:
        raise BrokenCheckpoint(f"{path} can't be opened as a checkpoint: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise BrokenCheckpoint(f"{path} is no regular file")
        yield file
    except OSError as error:
        raise BrokenCheckpoint(f"{path} can't be read: {error.strerror}") from None
    finally:
        os.close(file)


def _front(file: int, path: Path) -> tuple[Header, list[_Part], list[_Chunk]]:
    """Header and layout of an open checkpoint; everything in them has been checked against everything else."""

    def broken(reason: str) -> BrokenCheckpoint:
        return BrokenCheckpoint(f"{path} is no whole checkpoint: {reason}")

    length = os.fstat(file).st_size
    prologue = os.pread(file, _PROLOGUE.size, 0)
    if len(prologue) < _PROLOGUE.size:
        raise broken(f"it ends after {length} bytes")
    magic, header_length, manifest_length, digest = _PROLOGUE.unpack(prologue)
    if magic != MAGIC:
        raise broken(f"it starts with {magic!r}, a checkpoint with {MAGIC!r}")
    if max(header_length, manifest_length) > FRONT_MOST or _PROLOGUE.size + header_length + manifest_length > length:
        raise broken(f"a header of {header_length} and a manifest of {manifest_length} bytes don't fit into {length}")
    front = os.pread(file, header_length, _PROLOGUE.size)
    manifest = os.pread(file, manifest_length, _PROLOGUE.size + header_length)
    if _digest(front, manifest) != digest:
        raise broken("the digest of its header and manifest is wrong")
    try:
        header = parse_json(front)
        tensors, rounded, layout = _contents(header, str(path))
        if manifest_length != _room(layout):
            raise ValueError(f"its manifest should have {_room(layout)} bytes, found {manifest_length}")
        chunks = _chunks(layout, parse_json(manifest), length, _PROLOGUE.size + header_length + manifest_length)
    except UserError as error:
        raise BrokenCheckpoint(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise broken(str(error)) from None
    checked = Header(
        step=header["step"],
        sequence=header["sequence"],
        tier=header["tier"],
        digest=digest.hex(),
        file_bytes=length,
        memory_bytes=header["memory_bytes"],
        state=header["state"],
        tensors=tensors,
        rounded=rounded,
    )
    return checked, layout, chunks


def parse_json(data: bytes) -> Any:
    """Parse JSON that nobody vouches for.

    Raises:
        ValueError: it is no JSON in ASCII, nested too deeply, holds a key twice, or would take more than `PARSED_MOST`.
    """
    if sum(data.count(sign) * cost for sign, cost in COSTS.items()) > PARSED_MOST:
        raise ValueError("its JSON has too many parts")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands twice in one object")
        return found

    try:
        return json.loads(data.decode("ascii"), object_pairs_hook=once)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def _contents(header: Any, where: str) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, quantiser.Kind], list[_Part]]:
    """What a header says of the tensors: dtypes and shapes, how they were rounded, and how they lie in the file.

    Raises:
        ValueError: the header contradicts the schema or itself.
    """
    if isinstance(header, dict) and header.get("schema") != schema.VERSION:
        raise ValueError(f"its schema is version {_short(header.get('schema'))}, this trainenv reads version {schema.VERSION}")
    schema.check_header(header, where)
    if header["format"] != FORMAT:
        raise ValueError(f"its format is {_short(header['format'])}, a checkpoint's {FORMAT!r}")
    for name in ("step", "sequence"):
        if header[name] not in NUMBERS:
            raise ValueError(f"its {name} must be at least 0 and below 2**63, found {_short(header[name])}")
    if len(header["tensors"]) > TENSORS_MOST:
        raise ValueError(f"it has {len(header['tensors'])} tensors, {TENSORS_MOST} fit")
    tensors = {name: _checked(name, *entry) for name, entry in header["tensors"].items()}
    rounded = _check_rounded(header["rounded"], tensors, header["tier"])
    if (named := _named(header["state"])) != tensors.keys():
        raise ValueError(f"state and tensors disagree about {_short(min(named ^ tensors.keys()))}")
    layout = _layout(tensors, rounded)
    if header["memory_bytes"] != _memory(tensors, layout):
        raise ValueError(f"it declares {_short(header['memory_bytes'])} bytes of tensors, they have {_memory(tensors, layout)}")
    return tensors, rounded, layout


def _named(state: Any) -> set[str]:
    """Names of the tensors that a state which fits the schema refers to. Walked without recursion and without a copy.

    Raises:
        ValueError: it is nested too deeply.
    """
    named = set()
    path: list[Iterator[Any]] = [iter((state,))]
    while path:
        for value in path[-1]:
            if isinstance(value, dict) and _TENSOR in value:
                named.add(value[_TENSOR])
            elif isinstance(value, dict | list) and value:
                path.append(iter(value.values() if isinstance(value, dict) else value))
                break
        else:
            path.pop()
        if len(path) > DEEPEST:
            raise ValueError(f"its state is nested more than {DEEPEST} levels deep")
    return named


def _checked(name: str, dtype: str, shape: list[int]) -> tuple[str, tuple[int, ...]]:
    if dtype not in planes.DTYPES:
        raise ValueError(f"{_short(name)} has the unknown dtype {_short(dtype)}")
    if len(shape) > 64 or any(not 0 <= size < 2**48 for size in shape) or math.prod(max(size, 1) for size in shape) >= 2**60:
        raise ValueError(f"{_short(name)} has an impossible shape")
    return dtype, tuple(shape)


def _short(found: object) -> str:
    """What a file says, fit to be repeated: no control characters, and no more than a line of it."""
    text = ascii(found)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _check_rounded(
    rounded: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]]], tier: Tier
) -> dict[str, quantiser.Kind]:
    """Only float32 tensors are rounded, in the tier that says so, and a direction has its second moment beside it."""
    if rounded and tier != "8bit":
        raise ValueError(f"tensors of a file of the tier {tier!r} are rounded")
    for name, kind in rounded.items():
        dtype, shape = tensors.get(name, ("", ()))
        if kind not in quantiser.KINDS or dtype != "float32":
            raise ValueError(f"{_short(name)} can't be rounded as {_short(kind)}")
        second = quantiser.second_of(name)
        if kind == "direction" and (rounded.get(second) != "root" or tensors.get(second) != (dtype, shape)):
            raise ValueError(f"{_short(name)} lacks the second moment that it was rounded beside")
        if {f"{name}/codes", f"{name}/scales"} & tensors.keys():
            raise ValueError(f"the parts of {_short(name)} have the names of other tensors")
    return dict(rounded)


def _chunks(layout: Sequence[_Part], table: Any, length: int, offset: int) -> list[_Chunk]:
    """Where every chunk lies.

    Raises:
        ValueError: the manifest and the layout disagree, or the chunks don't end where the file does.
    """
    expected = sum(len(part.pieces) for part in layout)
    if not isinstance(table, list) or len(table) != expected:
        raise ValueError(
            f"its manifest should list {expected} chunks, found {len(table) if isinstance(table, list) else _short(table)}"
        )
    chunks, lines = [], iter(table)
    for place, part in enumerate(layout):
        for piece in part.pieces:
            line, raw = next(lines), piece.stop - piece.start
            if not (
                isinstance(line, list) and len(line) == 1 + part.word_size and isinstance(line[0], str) and len(line[0]) == 16
            ):
                raise ValueError(f"its manifest has no checksum and {part.word_size} lengths for a chunk of {_short(part.name)}")
            checksum, lengths = line.pop(0), line  # of which a manifest may have so many that a copy would count
            if not all(type(size) is int and 0 < size <= raw for size in lengths):
                raise ValueError(f"its manifest has impossible lengths for a chunk of {_short(part.name)}")
            chunks.append(_Chunk(place, piece, offset, checksum, lengths))
            offset += sum(lengths)
    if offset != length:
        raise ValueError(f"it should have {offset} bytes, found {length}")
    return chunks


def _check_memory(header: Header, path: Path) -> None:
    available = psutil.virtual_memory().available
    if header.memory_bytes > available:
        raise UserError(
            f"{path} needs {header.memory_bytes / 2**30:.3g} GiB of memory, found {available / 2**30:.3g} GiB available; "
            "free some, or load it on a larger machine"
        )


# ── both ways ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _layout(tensors: Mapping[str, tuple[str, tuple[int, ...]]], rounded: Mapping[str, quantiser.Kind]) -> list[_Part]:
    """The arrays of a file in their order."""
    parts = []
    for name, (dtype, shape) in tensors.items():
        count, size = math.prod(shape), planes.DTYPES[dtype].itemsize
        if name in rounded:
            parts += [_Part(f"{name}/codes", count, 1), _Part(f"{name}/scales", quantiser.scale_count(count), 4)]
        else:
            word = planes.word_size(planes.DTYPES[dtype])
            parts.append(_Part(name, count * size // word, word))
    return parts


def _room(layout: Sequence[_Part]) -> int:
    """Bytes of the manifest."""
    return 2 + sum(part.room for part in layout)


def _memory(tensors: Mapping[str, tuple[str, tuple[int, ...]]], layout: Sequence[_Part]) -> int:
    """Bytes that loading allocates: every tensor, and beside it the codes and scales of rounded ones."""
    whole = sum(math.prod(shape) * planes.DTYPES[dtype].itemsize for dtype, shape in tensors.values())
    return whole + sum(part.words * part.word_size for part in layout if part.name not in tensors)


def _digest(front: bytes, manifest: bytes) -> bytes:
    digest = xxhash.xxh3_128(struct.pack("<QQ", len(front), len(manifest)))
    digest.update(front)
    digest.update(manifest)
    return digest.digest()


def _dtype_name(name: str, tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in planes.DTYPES or tensor.layout != torch.strided:
        raise UserError(f"{name} has the dtype {dtype} and the layout {tensor.layout}, which a checkpoint can't hold")
    return dtype
