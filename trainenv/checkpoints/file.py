"""One checkpoint as a file of tensors; see `trainenv.tools.tensor_file` for the format.

Its header holds schema, tier, step, sequence, the whole state, and dtype and shape of each tensor.
Reading trusts nothing that it has not checked, in this order: length of the file, lengths of header
and manifest, digest, schema, memory needed, each chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from trainenv.checkpoints import header as front
from trainenv.checkpoints import quantiser
from trainenv.checkpoints.header import BrokenCheckpoint, Header
from trainenv.tools.tensor_file import chunks, compression
from trainenv.tools.tensor_file.filesystem import Disk
from trainenv.tools.tensor_file.untrusted import short
from trainenv.types import Snapshot, Tier, UserError

KIND = chunks.Kind(name="checkpoint", broken=BrokenCheckpoint)


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
    digest, length = chunks.write(
        path, first, layout, _arrays(snapshot.tensors, header.rounded), disk or Disk()
    )
    return replace(header, digest=digest, file_bytes=length)


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
    with chunks.opened(path, KIND) as file:
        header, layout, places = front.parse(file, path)
        chunks.check_memory(header.memory_bytes, path)
        stored = chunks.read(file, path, layout, places, KIND)
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
    with chunks.opened(path, KIND) as file:
        return front.parse(file, path)[0]


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

    chunks.in_threads(len(jobs), expand)
