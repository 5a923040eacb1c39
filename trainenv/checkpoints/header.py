"""The front of a checkpoint file: what it says, where its chunks lie, and every check of both before anything is believed."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from torch import Tensor

from trainenv.checkpoints import compression, quantiser, schema
from trainenv.tools import portable
from trainenv.types import TENSOR, Snapshot, Tier, UserError

FORMAT = "trainenv checkpoint"
# as PNG's: a byte that is no text, and line ends that a careless copy would change
MAGIC = b"\x93trenv\r\n"
# bytes that reading may take beside what the header declares; what follows sees to it
FIXED_MEMORY = 256 << 20
FRONT_MOST = 8 << 20  # bytes that a header or a manifest may have
PARSED_MOST = 96 << 20  # bytes that either may become as Python objects
# What CPython allocates, at most, for a list, an object, an element, a pair and half a text.
COSTS = {b"[": 104, b"{": 272, b",": 48, b":": 256, b'"': 48}
TENSORS_MOST = 1 << 16  # each is a few objects, however small
DEEPEST = 64  # levels of nesting in a state: whoever walks one may recurse
NUMBERS = range(2**63)  # of steps and saves
DRIFT: dict[Tier, str | None] = {
    "exact": None,
    "8bit": (
        "Moments are rounded to 8 bits in blocks of 256: going on from this file is not bit for bit going on. "
        "In a GPT-2 of 0.12 M parameters training loss was off by 7e-6 nats after 10 steps, 3e-5 after 100 and "
        "5e-5 after 1000 (benchmarks/drift.py)."
    ),
}
PROLOGUE = struct.Struct("<8sQQ16s")


class BrokenCheckpoint(UserError):
    """A checkpoint file is torn, damaged, or none of ours.

    The message names the file and what is wrong with it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the front of a checkpoint file says, checked against its digest, the schema and the file's length.

    Attributes:
        step: optimizer steps completed.
        sequence: order of saving within a store, from 1; 0 outside of one.
        tier: `exact`, or `8bit` where moments were rounded.
        digest: 32 hex digits, xxh3-128 over the front, and through its checksums over the whole
            file.
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


class Part(NamedTuple):
    """An array as it lies in the file: a tensor, or the codes or the scales of a rounded one."""

    name: str
    words: int
    word_size: int

    @property
    def pieces(self) -> list[slice]:
        """The words of each chunk."""
        step = compression.CHUNK_BYTES // self.word_size
        return [slice(start, min(start + step, self.words)) for start in range(0, self.words, step)]

    @property
    def room(self) -> int:
        """Bytes of its lines in the manifest: of every chunk a checksum, and a length a plane."""
        return (21 + 8 * self.word_size) * -(
            -self.words * self.word_size // compression.CHUNK_BYTES
        )


class Chunk(NamedTuple):
    """Where a chunk lies in the file, and where it belongs."""

    part: int
    piece: slice
    offset: int
    checksum: str
    lengths: list[int]


# ── writing ───────────────────────────────────────────────────────────────────────────────────────


def compose(snapshot: Snapshot, tier: Tier, sequence: int) -> tuple[Header, bytes, list[Part]]:
    """A header whose digest and length are still to come, as it stands in the file, and how the arrays will lie there.

    Raises:
        UserError: it is nothing that `parse` would take.
    """
    where = f"the snapshot of step {snapshot.step}"
    schema.check_state(snapshot.state, where)
    tensors = {name: (_dtype_name(name, t), tuple(t.shape)) for name, t in snapshot.tensors.items()}
    rounded = quantiser.kinds(snapshot.tensors) if tier == "8bit" else {}
    layout = _layout(tensors, rounded)
    fields: dict[str, Any] = {
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
    try:
        front = json.dumps(fields, separators=(",", ":"), default=dict).encode()
        if max(len(front), room(layout)) > FRONT_MOST:
            raise ValueError(
                f"beside its tensors it needs {max(len(front), room(layout))} bytes in one piece, {FRONT_MOST} fit"
            )
        _contents(parse_json(front), where)
    except UserError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where} does not fit into a checkpoint: {error}") from None
    return _header(fields, tensors, rounded), front, layout


def seal(front: bytes, layout: Sequence[Part], table: Sequence[Sequence[Any]]) -> tuple[bytes, str]:
    """The first bytes of a file whose chunks have been written, and its digest.

    Args:
        front: the header.
        layout: how the arrays lie.
        table: of every chunk its checksum and the lengths of its planes.
    """
    manifest = json.dumps(table, separators=(",", ":")).encode().ljust(room(layout))
    digest = _digest(front, manifest)
    return PROLOGUE.pack(MAGIC, len(front), len(manifest), digest) + front + manifest, digest.hex()


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def parse(file: int, path: Path) -> tuple[Header, list[Part], list[Chunk]]:
    """Header and layout of an open checkpoint; everything in them has been checked against everything else."""

    def broken(reason: str) -> BrokenCheckpoint:
        return BrokenCheckpoint(f"{path} is no whole checkpoint: {reason}")

    length = os.fstat(file).st_size
    prologue = portable.read_at(file, PROLOGUE.size, 0)
    if len(prologue) < PROLOGUE.size:
        raise broken(f"it ends after {length} bytes")
    magic, header_length, manifest_length, digest = PROLOGUE.unpack(prologue)
    if magic != MAGIC:
        raise broken(f"it starts with {magic!r}, a checkpoint with {MAGIC!r}")
    if (
        max(header_length, manifest_length) > FRONT_MOST
        or PROLOGUE.size + header_length + manifest_length > length
    ):
        raise broken(
            f"a header of {header_length} and a manifest of {manifest_length} bytes don't fit into {length}"
        )
    front = portable.read_at(file, header_length, PROLOGUE.size)
    manifest = portable.read_at(file, manifest_length, PROLOGUE.size + header_length)
    if _digest(front, manifest) != digest:
        raise broken("the digest of its header and manifest is wrong")
    try:
        header = parse_json(front)
        tensors, rounded, layout = _contents(header, str(path))
        if manifest_length != room(layout):
            raise ValueError(
                f"its manifest should have {room(layout)} bytes, found {manifest_length}"
            )
        chunks = _chunks(
            layout, parse_json(manifest), length, PROLOGUE.size + header_length + manifest_length
        )
    except UserError as error:
        raise BrokenCheckpoint(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise broken(str(error)) from None
    return (
        replace(_header(header, tensors, rounded), digest=digest.hex(), file_bytes=length),
        layout,
        chunks,
    )


def parse_json(data: bytes) -> Any:
    """Parse JSON that nobody vouches for.

    Raises:
        ValueError: it is no JSON in ASCII, nested too deeply, holds a key twice, or would take more
            than `PARSED_MOST`.
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


def _contents(
    header: Any, where: str
) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, quantiser.Kind], list[Part]]:
    """What a header says of the tensors: dtypes and shapes, how they were rounded, and how they lie in the file.

    Raises:
        ValueError: the header contradicts the schema or itself.
    """
    if isinstance(header, dict) and header.get("schema") != schema.VERSION:
        raise ValueError(
            f"its schema is version {short(header.get('schema'))}, this trainenv reads version {schema.VERSION}"
        )
    schema.check_header(header, where)
    if header["format"] != FORMAT:
        raise ValueError(f"its format is {short(header['format'])}, a checkpoint's {FORMAT!r}")
    for name in ("step", "sequence"):
        if header[name] not in NUMBERS:
            raise ValueError(
                f"its {name} must be at least 0 and below 2**63, found {short(header[name])}"
            )
    if len(header["tensors"]) > TENSORS_MOST:
        raise ValueError(f"it has {len(header['tensors'])} tensors, {TENSORS_MOST} fit")
    tensors = {name: _checked(name, *entry) for name, entry in header["tensors"].items()}
    rounded = _check_rounded(header["rounded"], tensors, header["tier"])
    if (named := _named(header["state"])) != tensors.keys():
        raise ValueError(f"state and tensors disagree about {short(min(named ^ tensors.keys()))}")
    layout = _layout(tensors, rounded)
    if header["memory_bytes"] != _memory(tensors, layout):
        raise ValueError(
            f"it declares {short(header['memory_bytes'])} bytes of tensors, they have {_memory(tensors, layout)}"
        )
    return tensors, rounded, layout


def _named(state: Any) -> set[str]:
    """Names of the tensors that a state which fits the schema refers to.

    Walked without recursion and without a copy.

    Raises:
        ValueError: it is nested too deeply.
    """
    named = set()
    path: list[Iterator[Any]] = [iter((state,))]
    while path:
        for value in path[-1]:
            if isinstance(value, dict) and TENSOR in value:
                named.add(value[TENSOR])
            elif isinstance(value, dict | list) and value:
                path.append(iter(value.values() if isinstance(value, dict) else value))
                break
        else:
            path.pop()
        if len(path) > DEEPEST:
            raise ValueError(f"its state is nested more than {DEEPEST} levels deep")
    return named


def _checked(name: str, dtype: str, shape: list[int]) -> tuple[str, tuple[int, ...]]:
    if dtype not in compression.DTYPES:
        raise ValueError(f"{short(name)} has the unknown dtype {short(dtype)}")
    if (
        len(shape) > 64
        or any(not 0 <= size < 2**48 for size in shape)
        or math.prod(max(size, 1) for size in shape) >= 2**60
    ):
        raise ValueError(f"{short(name)} has an impossible shape")
    return dtype, tuple(shape)


def short(found: object) -> str:
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
            raise ValueError(f"{short(name)} can't be rounded as {short(kind)}")
        second = quantiser.second_of(name)
        if kind == "direction" and (
            rounded.get(second) != "root" or tensors.get(second) != (dtype, shape)
        ):
            raise ValueError(f"{short(name)} lacks the second moment that it was rounded beside")
        if {f"{name}/codes", f"{name}/scales"} & tensors.keys():
            raise ValueError(f"the parts of {short(name)} have the names of other tensors")
    return dict(rounded)


def _chunks(layout: Sequence[Part], table: Any, length: int, offset: int) -> list[Chunk]:
    """Where every chunk lies.

    Raises:
        ValueError: the manifest and the layout disagree, or the chunks don't end where the file
            does.
    """
    expected = sum(len(part.pieces) for part in layout)
    if not isinstance(table, list) or len(table) != expected:
        raise ValueError(
            f"its manifest should list {expected} chunks, found {len(table) if isinstance(table, list) else short(table)}"
        )
    chunks = []
    lines = iter(table)
    for place, part in enumerate(layout):
        for piece in part.pieces:
            line = next(lines)
            raw = piece.stop - piece.start
            if not (
                isinstance(line, list)
                and len(line) == 1 + part.word_size
                and isinstance(line[0], str)
                and len(line[0]) == 16
            ):
                raise ValueError(
                    f"its manifest has no checksum and {part.word_size} lengths for a chunk of {short(part.name)}"
                )
            # of which a manifest may have so many that a copy would count
            checksum = line.pop(0)
            lengths = line
            if not all(type(size) is int and 0 < size <= raw for size in lengths):
                raise ValueError(
                    f"its manifest has impossible lengths for a chunk of {short(part.name)}"
                )
            chunks.append(Chunk(place, piece, offset, checksum, lengths))
            offset += sum(lengths)
    if offset != length:
        raise ValueError(f"it should have {offset} bytes, found {length}")
    return chunks


# ── both ways ─────────────────────────────────────────────────────────────────────────────────────


def _header(
    fields: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    rounded: Mapping[str, quantiser.Kind],
) -> Header:
    return Header(
        step=fields["step"],
        sequence=fields["sequence"],
        tier=fields["tier"],
        digest="",
        file_bytes=0,
        memory_bytes=fields["memory_bytes"],
        state=fields["state"],
        tensors=tensors,
        rounded=rounded,
    )


def _layout(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], rounded: Mapping[str, quantiser.Kind]
) -> list[Part]:
    """The arrays of a file in their order."""
    parts = []
    for name, (dtype, shape) in tensors.items():
        count = math.prod(shape)
        size = compression.DTYPES[dtype].itemsize
        if name in rounded:
            parts += [
                Part(f"{name}/codes", count, 1),
                Part(f"{name}/scales", quantiser.scale_count(count), 4),
            ]
        else:
            word = compression.word_size(compression.DTYPES[dtype])
            parts.append(Part(name, count * size // word, word))
    return parts


def start(front: bytes, layout: Sequence[Part]) -> int:
    """Where the first chunk lies."""
    return PROLOGUE.size + len(front) + room(layout)


def room(layout: Sequence[Part]) -> int:
    """Bytes of the manifest."""
    return 2 + sum(part.room for part in layout)


def _memory(tensors: Mapping[str, tuple[str, tuple[int, ...]]], layout: Sequence[Part]) -> int:
    """Bytes that loading allocates: every tensor, and beside it the codes and scales of rounded ones."""
    whole = sum(
        math.prod(shape) * compression.DTYPES[dtype].itemsize for dtype, shape in tensors.values()
    )
    return whole + sum(part.words * part.word_size for part in layout if part.name not in tensors)


def _digest(front: bytes, manifest: bytes) -> bytes:
    digest = xxhash.xxh3_128(struct.pack("<QQ", len(front), len(manifest)))
    digest.update(front)
    digest.update(manifest)
    return digest.digest()


def _dtype_name(name: str, tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in compression.DTYPES or tensor.layout != torch.strided:
        raise UserError(
            f"{name} has the dtype {dtype} and the layout {tensor.layout}, which a checkpoint can't hold"
        )
    return dtype
