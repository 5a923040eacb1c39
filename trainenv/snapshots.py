"""Nested state ↔ `Snapshot`: tensors under flat names, the rest as JSON. Fingerprint, save and load. No pickle anywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from trainenv.types import Snapshot, UserError

FORMAT = "trainenv snapshot 1"
_TENSOR = "__tensor__"


def capture(step: int, state: Mapping[str, Any]) -> Snapshot:
    """A snapshot of nested dicts and lists of tensors and JSON values. Every tensor is cloned."""
    tensors: dict[str, Tensor] = {}
    return Snapshot(step=step, tensors=tensors, state=_split(state, "", tensors, {}))


def expand(snapshot: Snapshot) -> dict[str, Any]:
    """The nested state that `capture` was given. Its tensors are the snapshot's own: whoever keeps one must clone it."""
    expanded = _join(snapshot.state, snapshot.tensors)
    assert isinstance(expanded, dict)
    return expanded


def fingerprint(snapshot: Snapshot, leave_out: tuple[str, ...] = ()) -> str:
    """A 128-bit hash (xxh3) of everything in a snapshot but the top-level parts in `leave_out`."""
    digest = xxhash.xxh3_128()
    state = {key: value for key, value in snapshot.state.items() if key not in leave_out}
    digest.update(json.dumps([snapshot.step, state], sort_keys=True).encode())
    for name in sorted(_names(state)):
        tensor = snapshot.tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(snapshot: Snapshot, path: str | Path) -> Path:
    """Write one safetensors file, whole or not at all: a temporary file is flushed to disk and renamed."""
    from safetensors.torch import save as to_bytes

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, "step": str(snapshot.step), "state": json.dumps(snapshot.state)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(to_bytes({name: tensor.cpu().contiguous() for name, tensor in snapshot.tensors.items()}, header))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load(path: str | Path) -> Snapshot:
    """Read what `save` wrote.

    Raises:
        UserError: no such file, or not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError(f"expected a snapshot at {path}, found no file; give the path that `save` returned")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise UserError(
                    f"{path} is no snapshot of this version: expected format {FORMAT!r}, found {header.get('format')!r}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a mapping
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable snapshot ({error}); take an earlier one") from None
    return Snapshot(step=int(header["step"]), tensors=tensors, state=json.loads(header["state"]))


def _names(state: Any) -> set[str]:
    """Names of the tensors that a state refers to."""
    if isinstance(state, Mapping):
        return {state[_TENSOR]} if _TENSOR in state else set().union(*map(_names, state.values()))
    return set().union(*map(_names, state)) if isinstance(state, list) else set()


def _split(value: Any, name: str, tensors: dict[str, Tensor], aliases: dict[Any, str]) -> Any:
    if isinstance(value, Tensor):
        return {_TENSOR: _clone(value, name, tensors, aliases)}
    if isinstance(value, Mapping):
        if any("/" in str(key) for key in value):
            raise UserError(
                f"keys of a state must not hold a slash, found {next(key for key in value if '/' in str(key))!r} in {name!r}"
            )
        return {str(key): _split(part, f"{name}/{key}" if name else str(key), tensors, aliases) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_split(part, f"{name}/{place}", tensors, aliases) for place, part in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"the state {name!r} must be tensors, numbers, strings, lists and dicts, found {type(value).__name__}")


def _clone(tensor: Tensor, name: str, tensors: dict[str, Tensor], aliases: dict[Any, str]) -> str:
    """Clone a tensor under `name`, unless the same memory was cloned before (tied weights): returns the name it has."""
    key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    if tensor.numel() and key in aliases:
        return aliases[key]
    tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    aliases[key] = name
    return name


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, Mapping):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _join(part, tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [_join(part, tensors) for part in value]
    return value


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dicts and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)
