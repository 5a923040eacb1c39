"""Front of a checkpoint file: a header and a manifest, both checked before anything is allocated.

The header says which tensors there are and holds the rest of the state; the manifest holds the
checksum and the lengths of every chunk.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from trainenv.checkpoints import compression, quantiser, schema
from trainenv.checkpoints.layout import (
    Chunk,
    Part,
    Specs,
    lay_out,
    locate_chunks,
    manifest_bytes,
    memory_bytes,
)
from trainenv.checkpoints.untrusted import parse_json, short
from trainenv.tools import portable
from trainenv.types import TENSOR, Snapshot, Tier, UserError

FORMAT = "trainenv checkpoint"
# As in PNG: one byte that is no text, and line ends that a careless copy would change.
MAGIC = b"\x93trenv\r\n"
# Bytes that reading may take in addition to what the header declares; the limits below ensure it.
FIXED_MEMORY = 256 << 20
FRONT_MOST = 8 << 20  # bytes that a header or a manifest may have
TENSORS_MOST = 1 << 16  # each is a few objects, however small
DEEPEST = 64  # levels of nesting in a state, since other code may walk it recursively
NUMBERS = range(2**63)  # of steps and saves
# Written into every file, so its text is part of the format.
DRIFT: dict[Tier, str | None] = {
    "exact": None,
    "8bit": (
        "Moments are rounded to 8 bits in blocks of 256: going on from this file is not bit for "
        "bit going on. In a GPT-2 of 0.12 M parameters training loss was off by 7e-6 nats after 10 "
        "steps, 3e-5 after 100 and 5e-5 after 1000 (benchmarks/drift.py)."
    ),
}
PROLOGUE = struct.Struct("<8sQQ16s")


class BrokenCheckpoint(UserError):
    """A checkpoint file that is torn, damaged, or of another format.

    The message names the file and what is wrong with it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Header of a checkpoint file, checked against its digest, the schema and the file's length.

    Attributes:
        step: Optimizer steps completed.
        sequence: Order of saving within a store, from 1; 0 outside of a store.
        tier: `exact`, or `8bit` where moments were rounded.
        digest: The xxh3-128 of the front, 32 hex digits; through the checksums in the front it
            covers the whole file.
        file_bytes: Length of the file, bytes.
        memory_bytes: Memory that loading allocates for tensors, bytes.
        state: Everything that is not a tensor, as in `Snapshot.state`.
        tensors: Dtype and shape of each tensor, by name.
        rounded: Kind of rounding of each rounded tensor, by name; see `quantiser`.
    """

    step: int
    sequence: int
    tier: Tier
    digest: str
    file_bytes: int
    memory_bytes: int
    state: Mapping[str, Any] = field(repr=False)
    tensors: Specs = field(repr=False)
    rounded: Mapping[str, quantiser.Kind] = field(repr=False)


# ── writing ───────────────────────────────────────────────────────────────────────────────────────


def compose(snapshot: Snapshot, tier: Tier, sequence: int) -> tuple[Header, bytes, list[Part]]:
    """Return the header, its bytes and the layout; digest and file length are still missing.

    Raises:
        UserError: The result would be refused by `parse`.
    """
    where = f"the snapshot of step {snapshot.step}"
    schema.check_state(snapshot.state, where)
    tensors = {name: (_dtype_name(name, t), tuple(t.shape)) for name, t in snapshot.tensors.items()}
    rounded: dict[str, quantiser.Kind] = {}
    if tier == "8bit":
        rounded = quantiser.kinds(snapshot.tensors)
    layout = lay_out(tensors, rounded)
    fields: dict[str, Any] = {
        "format": FORMAT,
        "schema": schema.VERSION,
        "tier": tier,
        "drift": DRIFT[tier],
        "step": snapshot.step,
        "sequence": sequence,
        "memory_bytes": memory_bytes(tensors, layout),
        "state": snapshot.state,
        "tensors": tensors,
        "rounded": rounded,
    }
    try:
        front = json.dumps(fields, separators=(",", ":"), default=dict).encode()
        longest = max(len(front), manifest_bytes(layout))
        if longest > FRONT_MOST:
            raise ValueError(
                f"its header or manifest would need {longest} bytes, at most {FRONT_MOST} fit"
            )
        _check_contents(parse_json(front), where)
    except UserError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where} does not fit into a checkpoint: {error}") from None
    return _header(fields, tensors, rounded), front, layout


def chunks_start(front: bytes, layout: Sequence[Part]) -> int:
    """Return the position of the first chunk, bytes."""
    return PROLOGUE.size + len(front) + manifest_bytes(layout)


def seal(front: bytes, layout: Sequence[Part], table: Sequence[Sequence[Any]]) -> tuple[bytes, str]:
    """Return the first bytes of a file whose chunks have been written, and its digest.

    Args:
        front: Encoded header.
        layout: The arrays of the file, in order.
        table: Checksum and lengths of the planes of each chunk.
    """
    manifest = json.dumps(table, separators=(",", ":")).encode().ljust(manifest_bytes(layout))
    digest = _digest(front, manifest)
    return PROLOGUE.pack(MAGIC, len(front), len(manifest), digest) + front + manifest, digest.hex()


def _dtype_name(name: str, tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in compression.DTYPES or tensor.layout != torch.strided:
        raise UserError(
            f"{name} has the dtype {dtype} and the layout {tensor.layout}, "
            "which a checkpoint can't hold"
        )
    return dtype


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def parse(file: int, path: Path) -> tuple[Header, list[Part], list[Chunk]]:
    """Read header, layout and chunk positions of an open checkpoint, fully checked.

    Raises:
        BrokenCheckpoint: A length, the digest, the schema or a chunk's position is wrong.
    """
    length = os.fstat(file).st_size
    try:
        front, manifest, digest = _read_front(file, length)
        header = parse_json(front)
        tensors, rounded, layout = _check_contents(header, str(path))
        if len(manifest) != manifest_bytes(layout):
            raise ValueError(
                f"its manifest should have {manifest_bytes(layout)} bytes, found {len(manifest)}"
            )
        chunks = locate_chunks(layout, parse_json(manifest), length, chunks_start(front, layout))
    except UserError as error:
        raise BrokenCheckpoint(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"{path} is no whole checkpoint: {error}") from None
    whole = replace(_header(header, tensors, rounded), digest=digest.hex(), file_bytes=length)
    return whole, layout, chunks


def _read_front(file: int, length: int) -> tuple[bytes, bytes, bytes]:
    """Return header, manifest and digest of an open file of `length` bytes.

    Raises:
        ValueError: The magic, a length or the digest is wrong.
    """
    prologue = portable.read_at(file, PROLOGUE.size, 0)
    if len(prologue) < PROLOGUE.size:
        raise ValueError(f"it ends after {length} bytes")
    magic, header_length, manifest_length, digest = PROLOGUE.unpack(prologue)
    if magic != MAGIC:
        raise ValueError(f"it starts with {magic!r}, a checkpoint with {MAGIC!r}")
    end = PROLOGUE.size + header_length + manifest_length
    if max(header_length, manifest_length) > FRONT_MOST or end > length:
        raise ValueError(
            f"a header of {header_length} and a manifest of {manifest_length} bytes "
            f"don't fit into {length}"
        )
    front = portable.read_at(file, header_length, PROLOGUE.size)
    manifest = portable.read_at(file, manifest_length, PROLOGUE.size + header_length)
    if _digest(front, manifest) != digest:
        raise ValueError("the digest of its header and manifest is wrong")
    return front, manifest, digest


def _check_contents(
    header: Any, where: str
) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, quantiser.Kind], list[Part]]:
    """Return dtype and shape of each tensor, the kinds of rounding, and the layout.

    Raises:
        ValueError: The header contradicts the schema or itself.
    """
    if isinstance(header, dict) and header.get("schema") != schema.VERSION:
        raise ValueError(
            f"its schema is version {short(header.get('schema'))}, "
            f"this trainenv reads version {schema.VERSION}"
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
    tensors = {name: check_spec(name, *entry) for name, entry in header["tensors"].items()}
    rounded = _check_rounded(header["rounded"], tensors, header["tier"])
    if (named := _named_tensors(header["state"])) != tensors.keys():
        raise ValueError(f"state and tensors disagree about {short(min(named ^ tensors.keys()))}")
    layout = lay_out(tensors, rounded)
    needed = memory_bytes(tensors, layout)
    if header["memory_bytes"] != needed:
        raise ValueError(
            f"it declares {short(header['memory_bytes'])} bytes of tensors, they have {needed}"
        )
    return tensors, rounded, layout


def _named_tensors(state: Any) -> set[str]:
    """Collect the names of the tensors that a state refers to, without recursion or a copy.

    Raises:
        ValueError: The state is nested too deeply.
    """
    named = set()
    path: list[Iterator[Any]] = [iter((state,))]
    while path:
        for value in path[-1]:
            if isinstance(value, dict) and TENSOR in value:
                named.add(value[TENSOR])
            elif isinstance(value, dict) and value:
                path.append(iter(value.values()))
                break
            elif isinstance(value, list) and value:
                path.append(iter(value))
                break
        else:
            path.pop()
        if len(path) > DEEPEST:
            raise ValueError(f"its state is nested more than {DEEPEST} levels deep")
    return named


def check_spec(name: str, dtype: str, shape: list[int]) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of a tensor, if the dtype is known and the shape possible.

    Raises:
        ValueError: One of them is not.
    """
    if dtype not in compression.DTYPES:
        raise ValueError(f"{short(name)} has the unknown dtype {short(dtype)}")
    if (
        len(shape) > 64
        or any(not 0 <= size < 2**48 for size in shape)
        or math.prod(max(size, 1) for size in shape) >= 2**60
    ):
        raise ValueError(f"{short(name)} has an impossible shape")
    return dtype, tuple(shape)


def _check_rounded(
    rounded: Mapping[str, Any], tensors: Specs, tier: Tier
) -> dict[str, quantiser.Kind]:
    """Return the kinds of rounding, checked against the tensors and the tier.

    Only float32 tensors of an `8bit` file are rounded; a direction needs its second moment.

    Raises:
        ValueError: One of this is not so.
    """
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
            raise ValueError(f"{short(name)} lacks the second moment that it was rounded with")
        if {f"{name}/codes", f"{name}/scales"} & tensors.keys():
            raise ValueError(f"the parts of {short(name)} have the names of other tensors")
    return dict(rounded)


# ── both ways ─────────────────────────────────────────────────────────────────────────────────────


def _header(
    fields: Mapping[str, Any], tensors: Specs, rounded: Mapping[str, quantiser.Kind]
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


def _digest(front: bytes, manifest: bytes) -> bytes:
    digest = xxhash.xxh3_128(struct.pack("<QQ", len(front), len(manifest)))
    digest.update(front)
    digest.update(manifest)
    return digest.digest()
