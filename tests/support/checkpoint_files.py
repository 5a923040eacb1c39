"""Small checkpoints, and forged ones: any header, manifest and chunks under a digest and checksums that are right."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from trainenv.checkpoints import file, schema
from trainenv.checkpoints.layout import lay_out, memory_bytes
from trainenv.config.presets import configs_folder, read_yaml
from trainenv.tools.tensor_file.front import FRONT_MOST, MAGIC, check_spec
from trainenv.tools.tensor_file.layout import manifest_bytes
from trainenv.types import Snapshot, Tier

PROLOGUE = struct.Struct("<8sQQ16s")
TIERS: tuple[Tier, ...] = ("exact", "8bit")
MARK = "__tensor__"


def least(
    spec: Any, parts: Mapping[str, Any], name: str = "", tensors: dict[str, Tensor] | None = None
) -> Any:
    """The smallest value that the schema takes; `tensors` gets those that it must have."""
    if isinstance(spec, dict):
        required = {
            key: inner for key, inner in spec.items() if key != "*" and not key.endswith("?")
        }
        return {
            key: least(inner, parts, f"{name}/{key}", tensors) for key, inner in required.items()
        }
    if isinstance(spec, list):
        return (
            [least(inner, parts, f"{name}/{place}", tensors) for place, inner in enumerate(spec)]
            if len(spec) > 1
            else []
        )
    if spec == "tensor":
        assert tensors is not None
        tensors[name] = torch.zeros(1, dtype=torch.uint8)
        return {MARK: name}
    simple: dict[str, Any] = {"int": 0, "float": 0.0, "str": "", "bool": False, "tensors": None}
    if spec in simple:
        return simple[spec]
    return (
        None
        if spec.endswith("?")
        else spec.split("|")[0]
        if "|" in spec
        else least(parts[spec], parts, name, tensors)
    )


PARTS = read_yaml(configs_folder() / schema.SCHEMA)


def snapshot(
    objective: Any, tensors: Mapping[str, Tensor], *, step: int = 3, tier: Tier = "exact"
) -> Snapshot:
    """A run's snapshot with nothing in it but what the schema asks for, and these."""
    needed: dict[str, Tensor] = {}
    state = least(PARTS["training"], PARTS, "state", needed)
    return Snapshot(step, {**tensors, **needed}, {**state, "objective": objective}, tier)


def holding(tensors: Mapping[str, Tensor], **more: Any) -> Snapshot:
    """A snapshot of these tensors, each under its own name."""
    return snapshot([{MARK: name} for name in tensors], tensors, **more)


def adam(shape: tuple[int, ...] = (48, 100), seed: int = 0, place: str = "0") -> dict[str, Tensor]:
    """A parameter's moments as Adam leaves them: second moments over many orders of magnitude, firsts within reach."""
    generator = torch.Generator().manual_seed(seed)
    rows = (*shape[:-1], 1)
    root = torch.exp(
        torch.randn(shape, generator=generator) + 2 * torch.randn(rows, generator=generator) - 12
    )
    first = 0.3 * root * torch.randn(shape, generator=generator).clamp(-4, 4)
    area = f"optimizer/state/{place}"
    return {
        f"{area}/step": torch.tensor(7.0),
        f"{area}/exp_avg": first,
        f"{area}/exp_avg_sq": root.square(),
    }


def small() -> Snapshot:
    """A few KB in a file of either tier, with raw and with compressed planes, rounded moments, and a tied tensor."""
    moments = adam((64, 64))
    for name in ("exp_avg", "exp_avg_sq"):
        moments[f"optimizer/state/0/{name}"].view(-1)[48:] = 0
    tensors = {
        "model/weight": torch.arange(40.0),
        "model/flags": torch.tensor([[True, False, True]]),
        "model/nothing": torch.zeros(0, 3),
        "model/long": torch.zeros(5000, dtype=torch.int64),
        **moments,
    }
    return snapshot(
        [*({MARK: name} for name in tensors), {"tied": {MARK: "model/weight"}}, {"x": 0.5}], tensors
    )


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().resolve_conj().flatten().view(torch.uint8).numpy().tobytes()


def content(snapshot: Snapshot) -> Any:
    """All of a snapshot, comparable: NaN equal to NaN of the same bits, 0.0 not to −0.0, nor 1 to True."""
    tensors = {
        name: (str(t.dtype), tuple(t.shape), bits(t)) for name, t in snapshot.tensors.items()
    }
    return snapshot.step, snapshot.tier, repr(snapshot.state), list(tensors.items())


# ── taken apart, and put together again ─────────────────────────────────────────────────────────────────────────────


def apart(data: bytes) -> tuple[dict[str, Any], list[Any], bytes]:
    """Header, manifest and chunks of a whole file."""
    _, header, manifest, _ = PROLOGUE.unpack_from(data)
    middle = PROLOGUE.size + header
    return (
        json.loads(data[PROLOGUE.size : middle]),
        json.loads(data[middle : middle + manifest]),
        data[middle + manifest :],
    )


def chunks(table: list[Any], body: bytes) -> Iterator[bytes]:
    """The chunks of a file, one after the other."""
    start = 0
    for line in table:
        yield body[start : (start := start + sum(line[1:]))]


def encoded(value: Any) -> bytes:
    """Encode JSON as the writer does; bytes stay as they are."""
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()


def together(header: Any, table: Any, body: bytes, room: int | None = None) -> bytes:
    """A file of any header, manifest and chunks, rightly signed."""
    front, manifest = encoded(header), encoded(table)
    manifest = manifest.ljust(sums(header)[0] if room is None else room)
    digest = xxhash.xxh3_128_digest(
        struct.pack("<QQ", len(front), len(manifest)) + front + manifest
    )
    return PROLOGUE.pack(MAGIC, len(front), len(manifest), digest) + front + manifest + body


def sums(header: Any) -> tuple[int, int]:
    """Bytes that the manifest of such a header must have, and that its tensors have; zeros where the header makes no sense."""
    try:
        tensors = {name: check_spec(name, *entry) for name, entry in header["tensors"].items()}
        layout = lay_out(tensors, header["rounded"])
        room, total = manifest_bytes(layout), memory_bytes(tensors, layout)
    except (AttributeError, KeyError, TypeError, ValueError):
        return 0, 0
    return (room, total) if type(room) is type(total) is int and 0 < room <= FRONT_MOST else (0, 0)


def line(*planes: bytes) -> list[Any]:
    """A manifest's line of a chunk of these planes."""
    return [xxhash.xxh3_64_hexdigest(b"".join(planes)), *map(len, planes)]


def written(snapshot: Snapshot, tier: Tier = "exact", sequence: int = 0) -> bytes:
    """The bytes of a snapshot's file."""
    with tempfile.TemporaryDirectory() as folder:
        file.write(snapshot, Path(folder) / "cp", tier=tier, sequence=sequence)
        return (Path(folder) / "cp").read_bytes()


def forged(data: bytes, change: Callable[[dict[str, Any]], Any], *, total: bool = True) -> bytes:
    """The file with a changed header, newly signed; with `total`, the memory it declares follows the tensors."""
    header, table, body = apart(data)
    change(header)
    if total:
        header["memory_bytes"] = sums(header)[1] or header["memory_bytes"]
    return together(header, table, body)
