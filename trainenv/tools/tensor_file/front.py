"""Front of a file of tensors: a header and a manifest, checked before anything is allocated."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Sequence
from typing import Any

import torch
import xxhash
from torch import Tensor

from trainenv.tools import portable
from trainenv.tools.tensor_file import compression
from trainenv.tools.tensor_file.layout import Part, manifest_bytes
from trainenv.tools.tensor_file.untrusted import short
from trainenv.types import UserError

# As in PNG: one byte that is no text, and line ends that a careless copy would change.
MAGIC = b"\x93trenv\r\n"
FRONT_MOST = 8 << 20  # bytes that a header or a manifest may have
PROLOGUE = struct.Struct("<8sQQ16s")


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


def check_front_size(front: bytes, layout: Sequence[Part]) -> None:
    """Check that header and manifest are not too long to be read.

    Raises:
        ValueError: One of them is.
    """
    longest = max(len(front), manifest_bytes(layout))
    if longest > FRONT_MOST:
        raise ValueError(
            f"its header or manifest would need {longest} bytes, at most {FRONT_MOST} fit"
        )


def dtype_name(name: str, tensor: Tensor, kind: str) -> str:
    """Return the name of a tensor's dtype.

    Args:
        name: Name of the tensor, for the error.
        tensor: Tensor to store.
        kind: Kind of file with its article, for the error: "a checkpoint".

    Raises:
        UserError: A file can't hold the tensor.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in compression.DTYPES or tensor.layout != torch.strided:
        raise UserError(
            f"{name} has the dtype {dtype} and the layout {tensor.layout}, which {kind} can't hold"
        )
    return dtype


def read_front(file: int, kind: str) -> tuple[bytes, bytes, bytes]:
    """Return header, manifest and digest of an open file.

    Args:
        file: Open file.
        kind: Kind of file with its article, for the error: "a checkpoint".

    Raises:
        ValueError: The magic, a length or the digest is wrong.
    """
    length = os.fstat(file).st_size
    prologue = portable.read_at(file, PROLOGUE.size, 0)
    if len(prologue) < PROLOGUE.size:
        raise ValueError(f"it ends after {length} bytes")
    magic, header_length, manifest_length, digest = PROLOGUE.unpack(prologue)
    if magic != MAGIC:
        raise ValueError(f"it starts with {magic!r}, {kind} with {MAGIC!r}")
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


def _digest(front: bytes, manifest: bytes) -> bytes:
    digest = xxhash.xxh3_128(struct.pack("<QQ", len(front), len(manifest)))
    digest.update(front)
    digest.update(manifest)
    return digest.digest()
