"""Front of a checkpoint file: a header and a manifest, both checked before anything is allocated.

The header says which tensors there are and holds the rest of the state; the manifest holds the
checksum and the lengths of every chunk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainenv.checkpoints import quantiser, schema
from trainenv.checkpoints.layout import lay_out, memory_bytes
from trainenv.tools.tensor_file.chunks import BrokenFile
from trainenv.tools.tensor_file.front import (
    check_front_size,
    check_spec,
    chunks_start,
    dtype_name,
    read_front,
)
from trainenv.tools.tensor_file.layout import Chunk, Part, Specs, locate_chunks, manifest_bytes
from trainenv.tools.tensor_file.untrusted import parse_json, short
from trainenv.types import TENSOR, Snapshot, Tier, UserError

FORMAT = "trainenv checkpoint"
# Bytes that reading may take in addition to what the header declares; the limits below ensure it.
FIXED_MEMORY = 256 << 20
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


class BrokenCheckpoint(BrokenFile):
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
    tensors = {
        name: (dtype_name(name, tensor, "a checkpoint"), tuple(tensor.shape))
        for name, tensor in snapshot.tensors.items()
    }
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
        check_front_size(front, layout)
        _check_contents(parse_json(front), where)
    except UserError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where} does not fit into a checkpoint: {error}") from None
    return _header(fields, tensors, rounded), front, layout


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def parse(file: int, path: Path) -> tuple[Header, list[Part], list[Chunk]]:
    """Read header, layout and chunk positions of an open checkpoint, fully checked.

    Raises:
        BrokenCheckpoint: A length, the digest, the schema or a chunk's position is wrong.
    """
    length = os.fstat(file).st_size
    try:
        front, manifest, digest = read_front(file, "a checkpoint")
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
